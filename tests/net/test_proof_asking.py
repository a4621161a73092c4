"""Asking for proofs, in virtual time: when, whom, and once."""

import pytest
import trio
from challenge_samples import ALICE, BOB, CAROL, WALL_MS, signed_proof
from strategies import signed_advert

from shoal.node.errors import NetworkError
from shoal.node.membership import Link
from shoal.node.proof_asking import RETRY_AFTER_S, open_proof_asking
from shoal.node.proofs import ProofBook
from shoal.protocol.adverts import AdvertTable
from shoal.protocol.challenge_messages import Proofs, ProofsWanted
from shoal.protocol.device_offers import ClassRate, DeviceOffer

RATES = (ClassRate("exact", "x20", 2e9),)
CPU = DeviceOffer("cpu", "cpu", "a CPU", 1, rates=RATES)


class Members:
    """A table with Bob's advert, and a link to him."""

    def __init__(self):
        self.table = AdvertTable()
        self.links = {BOB.peer_id: Link(since_s=0.0)}
        self.sequence = 0
        self.advertise(proven_at_ms=WALL_MS)

    def advertise(self, **changes):
        self.sequence += 1
        fields = {"protocol": (1, 2), "devices": (CPU,), "lifetime_s": 3600.0} | changes
        envelope = signed_advert(BOB, sequence=self.sequence, **fields)
        self.table.accept(envelope, age_s=0.0, now_s=0.0, wall_ms=WALL_MS)

    def proven(self, book):
        return book.claims(self.table.get(BOB.peer_id).advert, WALL_MS)[0].proven


class Wire:
    """Answers for Bob, and counts how often he was asked."""

    def __init__(self):
        self.asked = 0
        self.proofs = (signed_proof(CAROL),)
        self.failing = False

    async def request(self, peer, body, timeout_s):
        assert (peer, body) == (BOB.peer_id, ProofsWanted())
        self.asked += 1
        if self.failing:
            raise NetworkError("gone", code="no_answer")
        return Proofs(proofs=self.proofs)


@pytest.fixture
def book():
    return ProofBook(ALICE.peer_id, frozenset({CAROL.peer_id}))


async def test_a_linked_node_is_asked_once_for_what_is_new(autojump_clock, book):
    members, wire = Members(), Wire()
    async with open_proof_asking(wire, members, book):
        await trio.sleep(100)
        assert (wire.asked, members.proven(book)) == (1, True)
        members.advertise(proven_at_ms=WALL_MS)
        await trio.sleep(100)
        assert wire.asked == 1
        members.advertise(proven_at_ms=WALL_MS + 1)
        await trio.sleep(100)
        assert wire.asked == 2


@pytest.mark.parametrize("changes", [{"proven_at_ms": 0}, {"protocol": (1, 1)}], ids=str)
async def test_a_node_that_has_nothing_to_show_or_is_too_old_is_not_asked(
    autojump_clock, book, changes
):
    members, wire = Members(), Wire()
    members.advertise(**({"proven_at_ms": WALL_MS} | changes))
    async with open_proof_asking(wire, members, book):
        await trio.sleep(100)
    assert wire.asked == 0


async def test_a_node_without_a_link_is_not_asked(autojump_clock, book):
    members, wire = Members(), Wire()
    members.links.clear()
    async with open_proof_asking(wire, members, book):
        await trio.sleep(100)
        assert wire.asked == 0
        members.links[BOB.peer_id] = Link(since_s=0.0)
        await trio.sleep(2)
        assert wire.asked == 1


async def test_a_node_that_does_not_answer_is_asked_again_seldom(autojump_clock, book):
    members, wire = Members(), Wire()
    wire.failing = True
    async with open_proof_asking(wire, members, book):
        await trio.sleep(RETRY_AFTER_S * 3 - 5)
        assert wire.asked == 3
        assert not members.proven(book)
        wire.failing = False
        await trio.sleep(RETRY_AFTER_S)
    assert members.proven(book)
