import trio

from shoal.node.turns import Turns


async def test_a_turn_is_taken_while_the_block_runs_and_not_after_it():
    turns = Turns()
    async with turns.take("a"):
        assert turns.taken("a")
        assert not turns.taken("b")
    assert not turns.taken("a")


async def test_whoever_is_cancelled_before_its_turn_leaves_nothing_behind():
    turns = Turns()
    with trio.CancelScope() as scope:
        scope.cancel()
        async with turns.take("a"):
            pass
    assert scope.cancelled_caught
    assert not turns.taken("a")


async def test_whoever_is_cancelled_while_it_waits_ends_nobody_elses_turn():
    turns = Turns()
    async with turns.take("a"):
        with trio.move_on_after(0):
            async with turns.take("a"):
                pass
        assert turns.taken("a")
    assert not turns.taken("a")


async def test_so_many_have_a_turn_at_once_and_the_next_waits():
    turns, most, now = Turns(at_once=2), 0, 0

    async def work():
        nonlocal most, now
        async with turns.take("a"):
            now += 1
            most = max(most, now)
            await trio.lowlevel.checkpoint()
            now -= 1

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(work)
    assert most == 2
    assert not turns.taken("a")
