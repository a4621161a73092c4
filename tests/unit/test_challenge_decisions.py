"""What this node takes, whom it asks, when it measures: values in, values out."""

from dataclasses import replace

import msgspec
import pytest
from challenge_samples import ALICE, BOB, CAROL, MALLORY, WALL_MS, a_challenge

from shoal.compute.capability import VERSION, Measurement, amounts_for, claim_of, key_of
from shoal.compute.devices import Device
from shoal.node.bidding import Terms
from shoal.node.capability_views import Claim
from shoal.node.challenger import challengeable, choose_candidate, unproven
from shoal.node.measuring_plan import (
    ALONE_S,
    BELIED_AFTER_S,
    FAILED_AFTER_S,
    LIFETIME_S,
    RETRY_LIMIT_S,
    is_stale,
    may_begin,
    retry_after_s,
    why_no_rate,
)
from shoal.node.owner import Cause, Stance
from shoal.node.prover import (
    CHALLENGES_PER_MINUTE,
    PROVE_LIMIT_S,
    STRANGERS_PER_MINUTE,
    Allowance,
    refusal,
)
from shoal.protocol.device_offers import ClassRate, DeviceOffer
from shoal.protocol.negotiation_messages import Reason
from shoal.protocol.statements import Advert

RATE = ClassRate("exact", "x20", 1e6)
TERMS = Terms(
    device="cpu",
    executors={"exact": "exact"},
    memory_bytes=1,
    providing=True,
    draining=False,
    own=BOB.peer_id,
    allowed=frozenset(),
    leases=0,
    units_waiting=0,
)


@pytest.mark.parametrize(
    ("reason", "challenge", "terms", "rates", "busy"),
    [
        (None, {}, {}, (RATE,), False),
        (Reason.DENIED, {}, {"denied": {ALICE.peer_id}}, (RATE,), False),
        (Reason.NOT_PROVIDING, {}, {"providing": False}, (RATE,), False),
        (Reason.PAUSED, {}, {"stance": Stance(Cause.STEPPING_BACK)}, (RATE,), False),
        (Reason.DRAINING, {}, {"draining": True}, (RATE,), False),
        (Reason.NO_DEVICE, {"device": "gpu0"}, {}, (RATE,), False),
        (Reason.CLASS_NOT_OFFERED, {}, {}, (), False),
        (Reason.CLASS_NOT_OFFERED, {"precision": "x8"}, {}, (RATE,), False),
        (Reason.EXPIRED, {"rate": 2e6}, {}, (RATE,), False),
        (Reason.TOO_LARGE, {"size": 4096}, {}, (RATE,), False),
        (Reason.BUSY, {}, {"units_waiting": 1}, (RATE,), False),
        (Reason.BUSY, {}, {}, (RATE,), True),
    ],
)
def test_a_node_shows_what_it_claims_unless_there_is_a_reason(
    reason, challenge, terms, rates, busy
):
    answer = refusal(
        a_challenge(**challenge), ALICE.peer_id, replace(TERMS, **terms), rates, busy=busy
    )
    assert (answer.reason if answer else None) is reason


def test_the_bound_on_work_is_the_nodes_own_rate_and_not_the_one_asked_about():
    """Whoever names a rate far below the claim gets no more work done for it."""
    quick = ClassRate("exact", "x20", 1e12)
    rows = int(PROVE_LIMIT_S * 1e12 / 4096**2 / 64)
    large = a_challenge(rows=rows, size=4096, steps=64)
    assert refusal(large, ALICE.peer_id, TERMS, (quick,), busy=False) is None
    slow = refusal(large, ALICE.peer_id, TERMS, (ClassRate("exact", "x20", 1e11),), busy=False)
    assert slow.reason is Reason.TOO_LARGE


def test_so_many_challenges_are_taken_a_minute_and_some_are_kept_from_strangers():
    allowance = Allowance()
    taken = [allowance.take(0.0, stranger=True) for _ in range(10)]
    assert sum(taken) == STRANGERS_PER_MINUTE
    friends = [allowance.take(1.0, stranger=False) for _ in range(10)]
    assert sum(friends) == CHALLENGES_PER_MINUTE - STRANGERS_PER_MINUTE
    assert not allowance.take(59.0, stranger=False)
    assert allowance.take(61.5, stranger=True)


def advert(node, rates=(RATE,), **changes):
    offer = DeviceOffer(id="cpu", kind="cpu", name="", memory_bytes=1, rates=rates)
    made = Advert(
        peer=node.peer_id,
        sequence=1,
        issued_at_ms=WALL_MS,
        lifetime_s=60.0,
        protocol=(1, 1),
        agent="",
        addresses=(),
        devices=(offer,),
        numeric_classes=("exact",),
        providing=True,
    )
    return msgspec.structs.replace(made, **changes)


def chosen(adverts, leased_from=(), linked=(), proven=(), ready=lambda _peer: True, jitter=0.0):
    return choose_candidate(
        adverts,
        own=ALICE.peer_id,
        leased_from=leased_from,
        linked=linked,
        proven=lambda each: each.peer in proven,
        ready=ready,
        jitter=jitter,
    )


def test_whom_this_node_leased_from_is_asked_first_then_links_then_others():
    adverts = [advert(BOB), advert(CAROL), advert(MALLORY)]
    bob, carol, mallory = BOB.peer_id, CAROL.peer_id, MALLORY.peer_id
    assert chosen(adverts, leased_from=[carol], linked={bob}) == carol
    assert chosen(adverts, linked={mallory}) == mallory
    assert {chosen(adverts, jitter=at) for at in (0.0, 0.4, 0.99)} == {bob, carol, mallory}


@pytest.mark.parametrize(
    "only",
    [
        advert(ALICE),
        advert(BOB, providing=False),
        advert(BOB, protocol=(1, 0)),
        advert(BOB, rates=()),
        advert(BOB, rates=(ClassRate("fp32", None, 1e9),)),
        advert(BOB, rates=(ClassRate("fp32", "x20", 1e9), ClassRate("exact", "x8", 1e9))),
    ],
    ids=["itself", "takes no work", "too old", "claims nothing", "fp32 alone", "other ones"],
)
def test_who_cannot_be_asked_is_not(only):
    assert chosen([only]) is None


def test_who_is_proven_or_was_asked_lately_is_left_alone():
    assert chosen([advert(BOB)], proven={BOB.peer_id}) is None
    assert chosen([advert(BOB)], ready=lambda _peer: False) is None
    assert chosen([advert(BOB)]) == BOB.peer_id


def test_a_device_can_be_named():
    assert challengeable(advert(BOB), "cpu") == ("cpu", RATE)
    assert challengeable(advert(BOB), "gpu0") is None


def test_a_card_of_a_line_can_be_named_and_the_first_that_nobody_has_seen_is_asked():
    cards = DeviceOffer(id="gpu0", kind="amd", name="", memory_bytes=1, rates=(RATE,), count=2)
    both = advert(BOB, devices=(*advert(BOB).devices, cards))
    assert challengeable(both, "gpu1") == ("gpu1", RATE)
    assert challengeable(both, "gpu0") == ("gpu0", RATE)
    seen = Claim("cpu", "exact", "x20", 1e6, proven=True)
    fp32 = Claim("cpu", "fp32", None, 1e6)
    assert unproven([seen, fp32, Claim("gpu0", "exact", "x20", 1e6)]) == "gpu0"
    assert unproven([seen, fp32]) is None


KEPT = Measurement(device="cpu", key="k", measured_at=1000.0, rates=(RATE,), version=VERSION)
OLD = msgspec.json.decode(  # as it was kept before figures said how they were taken
    b'{"device":"cpu","key":"k","measured_at":1000.0,"rates":[["exact","x20",1e6]]}',
    type=Measurement,
)
PARTLY = msgspec.structs.replace(KEPT, failed=(("low", "no memory"),))


@pytest.mark.parametrize(
    ("stale", "kept", "key", "now_s", "belied"),
    [
        (True, None, "k", 1000.0, False),
        (False, KEPT, "k", 1000.0 + LIFETIME_S, False),
        (True, KEPT, "k", 1001.0 + LIFETIME_S, False),
        (True, KEPT, "other", 1000.0, False),
        (True, KEPT, "k", 1001.0 + BELIED_AFTER_S, True),
        (False, KEPT, "k", 1000.0 + BELIED_AFTER_S, True),
        (True, KEPT, "k", 0.0, False),
        (True, OLD, "k", 1000.0, False),
        (False, PARTLY, "k", 1000.0 + FAILED_AFTER_S, False),
        (True, PARTLY, "k", 1001.0 + FAILED_AFTER_S, False),
    ],
    ids=[
        *("none", "fresh", "old", "changed", "belied", "belied just now", "clock set back"),
        *("of another version", "partly failed", "partly failed long ago"),
    ],
)
def test_figures_are_taken_anew_when_old_changed_or_belied(stale, kept, key, now_s, belied):
    assert is_stale(kept, key, now_s, belied=belied) is stale


def test_the_lowest_sample_is_claimed_at_three_digits_and_never_rounded_up():
    assert claim_of([3e9, 2_349_999_999.0, 9e9]) == 2_340_000_000.0
    assert claim_of([123.9]) == 123.0


def test_figures_depend_on_the_device_the_threads_and_what_runs_there():
    device = Device(
        id="cpu", kind="cpu", name="A", memory_bytes=1, memory_free_bytes=1, threads=4
    )
    key = key_of(device, 4, {"exact", "fp32"})
    assert key == key_of(device, 4, ["fp32", "exact"])
    renamed = msgspec.structs.replace(device, name="B")
    others = [key_of(renamed, 4, {"exact", "fp32"}), key_of(device, 2, {"exact", "fp32"})]
    assert key not in [*others, key_of(device, 4, {"fp32"})]
    busier = msgspec.structs.replace(device, memory_free_bytes=0)
    assert key == key_of(busier, 4, {"exact", "fp32"})


CARD = Device(
    id="gpu0",
    kind="nvidia",
    name="NVIDIA H200",
    memory_bytes=150 << 30,
    memory_free_bytes=1,
    uuid="GPU-1",
    driver="570.1",
    target="sm_90",
)


@pytest.mark.parametrize(
    "change", [{"uuid": "GPU-2"}, {"driver": "580.1"}, {"name": "other"}, {"target": "sm_80"}]
)
def test_a_card_s_figures_depend_on_which_card_it_is_and_on_its_driver(change):
    key = key_of(CARD, 4, {"exact"})
    assert key == key_of(msgspec.structs.replace(CARD, memory_free_bytes=0), 4, {"exact"})
    assert key != key_of(msgspec.structs.replace(CARD, **change), 4, {"exact"})


def test_a_card_is_given_larger_pieces_than_a_cpu_and_no_more_than_it_has_room_for():
    cpu = amounts_for(msgspec.structs.replace(CARD, kind="cpu"))
    large = amounts_for(CARD)
    assert large.size > cpu.size
    assert large.copy_bytes == 1 << 30
    for memory_bytes, most in ((4 << 30, 1 << 28), (0, 1 << 28)):
        small = amounts_for(msgspec.structs.replace(CARD, memory_bytes=memory_bytes))
        assert small.copy_bytes == most


def test_a_device_that_cannot_be_measured_is_tried_ever_more_seldom():
    times = [retry_after_s(failures) for failures in (1, 2, 3, 20, 5000)]
    assert times == [60.0, 120.0, 240.0, RETRY_LIMIT_S, RETRY_LIMIT_S]


def test_devices_are_measured_one_after_another_unless_one_takes_very_long():
    assert may_begin({}, "gpu0", 0.0)
    assert not may_begin({"cpu": 0.0}, "gpu0", ALONE_S)
    assert may_begin({"cpu": 0.0}, "gpu0", ALONE_S + 1)
    assert not may_begin({"cpu": 0.0}, "gpu0", ALONE_S + 1, measuring=["cpu"])
    assert not may_begin({"gpu0": 0.0}, "gpu0", ALONE_S + 1)


@pytest.mark.parametrize(
    ("begins", "numeric_class", "kept", "problem", "compiled"),
    [
        ("compile-only", "exact", None, "", True),
        ("units of this class are kernels of their own", "kernel", KEPT, "", False),
        ("not measured yet", "low", None, "", False),
        ("it could not be measured: the card is gone", "low", None, "the card is gone.", False),
        ("it could not be measured: no memory", "low", PARTLY, "", False),
        ("slower than the 1e+08 a second", "exact", KEPT, "", False),
    ],
)
def test_why_a_class_has_no_rate_is_said(begins, numeric_class, kept, problem, compiled):
    why = why_no_rate(numeric_class, kept, problem, compiled=compiled)
    assert why.startswith(begins)
