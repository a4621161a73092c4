import math

import pytest
import trio
import trio.lowlevel
from trio.testing import wait_all_tasks_blocked

from shoal.compute.turnstile import Alone, Claim, Turnstile


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


# --- several places -----------------------------------------------------------------------


class Memory:
    """So much that those inside share."""

    def __init__(self, size):
        self.left = size


class Wants(Claim):
    def __init__(self, memory, size):
        self._memory, self._size = memory, size

    def fits(self):
        return self._size <= self._memory.left

    def enter(self):
        self._memory.left -= self._size

    def leave(self):
        self._memory.left += self._size


class Crowd:
    """Callers who stay inside until they are told to go."""

    def __init__(self, turnstile, nursery):
        self._turnstile, self._nursery = turnstile, nursery
        self.inside, self._go, self._scopes = [], {}, {}

    async def comes(self, name, rank=2, claim=None):
        self._go[name], self._scopes[name] = trio.Event(), trio.CancelScope()

        async def stay():
            with self._scopes[name]:
                async with self._turnstile.turn(rank, name, claim=claim):
                    self.inside.append(name)
                    await self._go[name].wait()
                    self.inside.remove(name)

        self._nursery.start_soon(stay)
        await wait_all_tasks_blocked()

    async def goes(self, name):
        self._go[name].set()
        await wait_all_tasks_blocked()

    async def gives_up(self, name):
        self._scopes[name].cancel()
        await wait_all_tasks_blocked()


async def test_as_many_are_inside_as_there_are_places(nursery):
    crowd = Crowd(Turnstile(2), nursery)
    for name in "abc":
        await crowd.comes(name)
    assert crowd.inside == ["a", "b"]
    await crowd.goes("a")
    assert crowd.inside == ["b", "c"]
    await crowd.goes("b")
    await crowd.goes("c")


async def test_who_is_next_waits_until_it_fits_and_is_passed_by_nobody_who_wants_less(nursery):
    memory = Memory(10)
    crowd = Crowd(Turnstile(3), nursery)
    await crowd.comes("a", claim=Wants(memory, 6))
    await crowd.comes("large", claim=Wants(memory, 8))
    await crowd.comes("small", claim=Wants(memory, 1))
    assert crowd.inside == ["a"]
    await crowd.comes("owner", rank=0, claim=Wants(memory, 2))  # the foremost rank goes first
    assert crowd.inside == ["a", "owner"]
    await crowd.goes("a")
    assert crowd.inside == ["owner", "large"]
    await crowd.gives_up("small")
    await crowd.goes("large")
    await crowd.goes("owner")
    assert memory.left == 10


async def test_alone_anything_fits(nursery):
    memory = Memory(10)
    crowd = Crowd(Turnstile(2), nursery)
    await crowd.comes("huge", claim=Wants(memory, 99))
    assert crowd.inside == ["huge"]
    await crowd.goes("huge")
    assert memory.left == 10


async def test_who_gives_up_in_front_lets_those_behind_in_that_fit(nursery):
    memory = Memory(10)
    crowd = Crowd(Turnstile(2), nursery)
    await crowd.comes("a", claim=Wants(memory, 6))
    await crowd.comes("large", claim=Wants(memory, 8))
    await crowd.comes("small", claim=Wants(memory, 1))
    await crowd.gives_up("large")
    assert crowd.inside == ["a", "small"]
    await crowd.goes("a")
    await crowd.goes("small")


async def test_who_wants_to_be_alone_waits_for_all_and_nobody_enters_meanwhile(nursery):
    turnstile = Turnstile(3)
    crowd = Crowd(turnstile, nursery)
    await crowd.comes("a")
    await crowd.comes("b")
    await crowd.comes("alone", claim=Alone())
    await crowd.comes("c")
    assert crowd.inside == ["a", "b"]
    await crowd.goes("a")
    await crowd.goes("b")
    assert crowd.inside == ["alone"]
    await crowd.goes("alone")
    assert crowd.inside == ["c"]
    await crowd.goes("c")
    assert not turnstile.taken
