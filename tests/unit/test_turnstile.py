import math

import pytest
import trio
import trio.lowlevel
from trio.testing import wait_all_tasks_blocked

from shoal.compute.turnstile import Turnstile


@pytest.fixture
def turnstile():
    return Turnstile()


async def test_the_foremost_rank_goes_first_and_within_it_who_came_first(turnstile, nursery):
    order = []

    async def pass_through(rank, name):
        async with turnstile.turn(rank):
            order.append(name)

    async with turnstile.turn(0):
        for rank, name in ((2, "c"), (1, "a"), (2, "d"), (1, "b"), (0, "owner")):
            nursery.start_soon(pass_through, rank, name)
            await wait_all_tasks_blocked()
        assert not order
    await wait_all_tasks_blocked()
    assert order == ["owner", "a", "b", "c", "d"]


async def test_one_is_inside_at_a_time(turnstile):
    inside = most = 0

    async def pass_through():
        nonlocal inside, most
        async with turnstile.turn(0):
            inside += 1
            most = max(most, inside)
            await trio.lowlevel.checkpoint()
            inside -= 1

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(pass_through)
    assert most == 1


async def test_who_gives_up_is_passed_over(turnstile, nursery):
    order = []

    async def pass_through(name, scope):
        with scope:
            async with turnstile.turn(0):
                order.append(name)

    early = trio.CancelScope()
    async with turnstile.turn(0):
        nursery.start_soon(pass_through, "impatient", early)
        await wait_all_tasks_blocked()
        nursery.start_soon(pass_through, "patient", trio.CancelScope())
        await wait_all_tasks_blocked()
        early.cancel()
        await wait_all_tasks_blocked()
    await wait_all_tasks_blocked()
    assert order == ["patient"]


async def test_a_turn_that_comes_as_its_waiter_gives_up_goes_to_the_next(turnstile, nursery):
    order = []

    async def pass_through(name, scope):
        with scope:
            async with turnstile.turn(0):
                await trio.lowlevel.checkpoint()
                order.append(name)

    scope = trio.CancelScope()
    async with turnstile.turn(0):
        nursery.start_soon(pass_through, "unlucky", scope)
        await wait_all_tasks_blocked()
        nursery.start_soon(pass_through, "next", trio.CancelScope())
        await wait_all_tasks_blocked()
        scope.cancel()
    await wait_all_tasks_blocked()
    assert order == ["next"]


async def test_who_waits_long_goes_on_waiting_at_the_rank_before(
    turnstile, nursery, autojump_clock
):
    order = []

    async def pass_through(rank, name, patience_s=math.inf):
        async with turnstile.turn(rank, name, patience_s):
            order.append(name)
            await trio.sleep(1)

    async def keep_busy():
        for _ in range(100):
            await pass_through(0, "owner")

    for _ in range(2):  # so that one of them always waits
        nursery.start_soon(keep_busy)
    await trio.sleep(0.1)
    with trio.fail_after(10):
        await pass_through(3, "old", patience_s=2)
    assert len(order) in range(6, 9)
    with trio.move_on_after(10):
        await pass_through(3, "never")
    assert "never" not in order
    early = trio.CancelScope()
    with early:
        early.deadline = trio.current_time() + 5
        await pass_through(3, "impatient", patience_s=2)
    assert "impatient" not in order
    nursery.cancel_scope.cancel()


async def test_an_error_inside_frees_the_turn(turnstile):
    with pytest.raises(ValueError, match="inside"):
        async with turnstile.turn(0):
            raise ValueError("inside")
    with trio.fail_after(1):
        async with turnstile.turn(0):
            pass
