import time
from types import SimpleNamespace

import msgspec
import pytest
from challenge_samples import ALICE, BOB, CAROL, MALLORY, WALL_MS, signed_proof

from shoal.node.known_peers import claimed_rate, is_proven
from shoal.node.proofs import (
    BOOK_LIMIT,
    CLAIM_GROWTH,
    PROOF_LIFETIME_MS,
    SHOWN_LIMIT,
    ProofBook,
    checked,
    claims_of,
    to_give,
)
from shoal.protocol.device_offers import ClassRate, DeviceOffer
from shoal.protocol.limits import CLOCK_TOLERANCE_MS, PROOFS_LIMIT
from shoal.protocol.statements import Advert

RATES = (ClassRate("exact", "x20", 2e9), ClassRate("fp32", None, 9e9))
CPU = DeviceOffer(id="cpu", kind="cpu", name="a CPU", memory_bytes=1, rates=RATES)


def proof(signer=ALICE, **changes):
    return checked(signed_proof(signer, **changes))


def exact_claim(proofs, counted, wall_ms=WALL_MS, devices=(CPU,)):
    return claims_of(BOB.peer_id, devices, proofs, counted, wall_ms)[0]


CLAIMED = [("cpu", RATES[0])]


def advert(**changes):
    advert = Advert(
        peer=BOB.peer_id,
        sequence=1,
        issued_at_ms=WALL_MS,
        lifetime_s=60.0,
        protocol=(1, 1),
        agent="shoal/test",
        addresses=(),
        devices=(CPU,),
        numeric_classes=("exact", "fp32"),
        providing=True,
        proven_at_ms=WALL_MS,
    )
    return msgspec.structs.replace(advert, **changes)


def test_a_claim_that_a_counted_verifier_has_seen_is_proven():
    claim = exact_claim([proof()], {ALICE.peer_id})
    assert claim.proven
    assert claim.verifiers == (ALICE.peer_id,)


def test_a_strangers_word_is_shown_and_not_counted():
    claim = exact_claim([proof(MALLORY)], {ALICE.peer_id})
    assert not claim.proven
    assert claim.verifiers == (MALLORY.peer_id,)


def test_only_the_class_that_was_shown_is_proven():
    claims = claims_of(BOB.peer_id, (CPU,), [proof()], {ALICE.peer_id}, WALL_MS)
    assert [claim.proven for claim in claims] == [True, False]


@pytest.mark.parametrize(
    "change",
    [
        {"prover": CAROL.peer_id},
        {"device": "gpu0"},
        {"precision": "x16"},
        {"numeric_class": "low"},
        {"rate": 2e9 / CLAIM_GROWTH / 1.01},
        {"issued_at_ms": WALL_MS - PROOF_LIFETIME_MS - 1},
        {"issued_at_ms": WALL_MS + CLOCK_TOLERANCE_MS + 1},
    ],
    ids=str,
)
def test_a_proof_of_anything_else_or_of_another_time_supports_nothing(change):
    claim = exact_claim([proof(**change)], {ALICE.peer_id})
    assert not claim.proven
    assert claim.verifiers == ()


def test_a_claim_measured_anew_may_be_a_little_more_than_was_shown():
    assert exact_claim([proof(rate=2e9 / CLAIM_GROWTH)], {ALICE.peer_id}).proven


CARDS = DeviceOffer(id="gpu0", kind="amd", name="MI300X", memory_bytes=1, rates=RATES, count=4)


@pytest.mark.parametrize(
    ("device", "proven"), [("gpu0", True), ("gpu3", True), ("gpu4", True), ("cpu", False)]
)
def test_a_claim_of_equal_cards_is_proven_by_whoever_saw_one_of_them_show_it(device, proven):
    others = msgspec.structs.replace(CARDS, id="gpu4", name="MI210", rates=())
    lines = (CPU, CARDS, others) if device != "gpu4" else (CPU, CARDS)
    claims = claims_of(BOB.peer_id, lines, [proof(device=device)], {ALICE.peer_id}, WALL_MS)
    exact = {claim.device: claim for claim in claims if claim.numeric_class == "exact"}
    assert exact["gpu0"].proven is proven
    assert exact["cpu"].proven is not proven


def test_a_card_that_bids_is_proven_as_its_line_is_whichever_of_it_it_is():
    book = ProofBook(ALICE.peer_id, frozenset())
    book.keep(proof(device="gpu1", issued_at_ms=time.time_ns() // 1_000_000))
    entry = SimpleNamespace(advert=advert(devices=(CPU, CARDS)))
    membership = SimpleNamespace(own=ALICE.peer_id, table={BOB.peer_id: entry})
    for device in ("gpu0", "gpu1", "gpu3"):
        assert is_proven(membership, book, BOB.peer_id, device)
        assert claimed_rate(membership, BOB.peer_id, device, "fp32") == 9e9
    assert not is_proven(membership, book, BOB.peer_id, "cpu")
    assert not is_proven(membership, book, CAROL.peer_id, "gpu0")
    assert is_proven(membership, book, ALICE.peer_id, "whatever")
    assert claimed_rate(membership, BOB.peer_id, "gpu0", "low") is None
    assert claimed_rate(membership, CAROL.peer_id, "gpu0", "fp32") is None


def shown(book, *envelopes):
    """What a node's claims are worth once it has shown these."""
    book.take_in(advert(), envelopes)
    return book.claims(advert(), WALL_MS)[0]


def test_a_node_shows_its_own_proofs_and_forged_ones_are_worth_nothing():
    book = ProofBook(ALICE.peer_id, frozenset({CAROL.peer_id}))
    by_carol = signed_proof(CAROL)
    forged = by_carol[:-1] + bytes([by_carol[-1] ^ 1])
    assert shown(book, by_carol).proven
    of_another = signed_proof(CAROL, prover=MALLORY.peer_id)
    for envelope in (forged, b"nonsense", signed_proof(BOB), of_another):
        assert shown(book, envelope).verifiers == ()
    assert shown(book, forged, by_carol).verifiers == (CAROL.peer_id,)


def test_a_node_is_asked_once_for_each_new_proof():
    book = ProofBook(ALICE.peer_id, frozenset())
    assert book.lacks(advert())
    assert not book.lacks(advert(proven_at_ms=0))
    book.take_in(advert(), [])
    assert not book.lacks(advert())
    assert book.lacks(advert(proven_at_ms=WALL_MS + 1))


def test_what_nodes_showed_is_bounded_and_the_one_asked_first_is_forgotten():
    book = ProofBook(ALICE.peer_id, frozenset())
    for number in range(SHOWN_LIMIT + 1):
        book.take_in(advert(peer=f"peer {number}"), [])
    assert book.lacks(advert(peer="peer 0"))
    assert not book.lacks(advert(peer="peer 1"))


def test_a_nodes_own_verdict_counts_without_any_advert():
    book = ProofBook(ALICE.peer_id, frozenset())
    book.keep(proof())
    assert book.claims(advert(), WALL_MS)[0].proven


def test_a_newer_proof_takes_the_place_of_an_older_one_of_the_same():
    book = ProofBook(ALICE.peer_id, frozenset())
    newer = proof(issued_at_ms=WALL_MS + 1)
    for each in (proof(), newer):
        book.keep(each)
    assert book.about(BOB.peer_id) == [newer]


def test_the_book_is_bounded_and_forgets_the_oldest():
    book = ProofBook(ALICE.peer_id, frozenset())
    first = proof()
    for number in range(BOOK_LIMIT + 1):
        said = msgspec.structs.replace(first.said, device=f"gpu{number}")
        book.keep(msgspec.structs.replace(first, said=said))
    kept = {each.said.device for each in book.about(BOB.peer_id)}
    assert len(kept) == BOOK_LIMIT
    assert "gpu0" not in kept


def test_strangers_proofs_displace_none_that_counts():
    book = ProofBook(BOB.peer_id, frozenset({ALICE.peer_id}))
    book.keep(proof(ALICE))
    strangers = proof(MALLORY)
    for number in range(BOOK_LIMIT + 1):
        said = msgspec.structs.replace(strangers.said, device=f"gpu{number}")
        book.keep(msgspec.structs.replace(strangers, said=said))
    assert book.claims(advert(), WALL_MS)[0].proven
    assert len(book.about(BOB.peer_id)) == BOOK_LIMIT


def test_proofs_by_peers_that_are_trusted_go_first_then_the_newest():
    old = proof(CAROL, issued_at_ms=WALL_MS - 1000)
    new, newest = proof(ALICE, issued_at_ms=WALL_MS - 10), proof(MALLORY)
    given = to_give([new, newest, old], CLAIMED, {CAROL.peer_id}, WALL_MS)
    assert given == (old, newest, new)
    assert len(to_give([new] * 20, CLAIMED, set(), WALL_MS)) == PROOFS_LIMIT


def test_a_proof_that_is_expired_or_about_another_claim_stays_at_home():
    assert to_give([proof()], CLAIMED, set(), WALL_MS + PROOF_LIFETIME_MS + 1) == ()
    assert to_give([proof()], [("gpu0", RATES[0])], set(), WALL_MS) == ()
    assert to_give([proof()], [("cpu", RATES[1])], set(), WALL_MS) == ()
