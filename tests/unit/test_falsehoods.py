"""What is brought to the disputes of a peer that is false again and again."""

from types import SimpleNamespace

import trio

from shoal.node.checked import Opinion
from shoal.node.errors import StoreError
from shoal.node.falsehoods import EVIDENCE_OF_ONE, FALSE_FOR_S, Falsehoods
from shoal.node.records import Unit, UnitState

CHECKED = SimpleNamespace(
    machine=SimpleNamespace(provider="bob", right="bob"),
    opinions={"mallory": Opinion(b"award", b"receipt")},
    unit=Unit("0" * 27, 0, UnitState.DONE, {}),
)


def accused(falsehoods, times):
    """Whether each of so many false opinions of one verifier is to be disputed."""
    found = [falsehoods.convicted(CHECKED, "mallory") for _ in range(times)]
    return [each.accused for each in found]


async def test_who_is_false_again_long_after_is_disputed_again(autojump_clock):
    falsehoods = Falsehoods(None, None, None, None)
    enough = [True] * EVIDENCE_OF_ONE
    assert accused(falsehoods, EVIDENCE_OF_ONE + 2) == [*enough, False, False]
    await trio.sleep(FALSE_FOR_S)
    assert not falsehoods.is_false("mallory")
    assert accused(falsehoods, EVIDENCE_OF_ONE + 1) == [*enough, False]


class FullDisk:
    """Deliveries that cannot write down anything."""

    async def take_away(self, _peer, _detail):
        raise StoreError("there is no room", code="disk_full")


async def test_who_cannot_be_parted_with_for_a_full_disk_is_disputed_all_the_same():
    disputed = []

    async def accuse(*parts):
        disputed.append(parts)

    async with trio.open_nursery() as nursery:
        house = SimpleNamespace(accuse=accuse)
        falsehoods = Falsehoods(house, FullDisk(), nursery, None)
        falsehoods.follow([falsehoods.convicted(CHECKED, "mallory")])
    assert disputed == [(b"award", b"receipt", None, "0" * 27, 0)]
