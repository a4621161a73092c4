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
