from dataclasses import replace

import msgspec
import pytest

from shoal.crypto.identity import generate
from shoal.node.bidding import (
    LEASES_LIMIT,
    STRANGERS_LEASES_LIMIT,
    Terms,
    bid,
    choose,
    ends_lease,
    price,
    rank,
    refusal,
    worth,
)
from shoal.node.owner import Cause, Stance, sentence
from shoal.protocol.negotiation_messages import Bid, Call, Reason, Refusal

REQUESTER = generate().peer_id
PROVIDER = generate().peer_id
CALL = Call(
    call="0" * 32,
    program="a" * 64,
    numeric_class="fp32",
    precision=None,
    units=10,
    input_bytes=1_000,
    program_bytes=50_000_000,
    time_limit_s=60.0,
    memory_bytes=1 << 30,
)
TERMS = Terms(
    device="cpu",
    executors={"fp32": "onnxruntime"},
    memory_bytes=4 << 30,
    providing=True,
    draining=False,
    own=PROVIDER,
    allowed={REQUESTER},
    leases=0,
    units_waiting=0,
)


def but(**changes):
    return replace(TERMS, **changes)


def test_a_call_that_fits_is_not_refused():
    assert refusal(CALL, REQUESTER, TERMS) is None


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        (but(allowed=frozenset()), Reason.UNTRUSTED_REQUESTER),
        (but(providing=False), Reason.NOT_PROVIDING),
        (but(draining=True), Reason.DRAINING),
        (but(executors={}), Reason.NO_DEVICE),
        (but(executors={"exact": "exact"}), Reason.CLASS_NOT_OFFERED),
        (but(memory_bytes=1 << 20), Reason.TOO_LARGE),
        (but(leases=LEASES_LIMIT), Reason.BUSY),
    ],
)
def test_each_obstacle_is_refused_by_its_own_reason(terms, reason):
    answer = refusal(CALL, REQUESTER, terms)
    assert answer is not None
    assert answer.reason is reason
    assert answer.detail
    assert answer.call == CALL.call


STRANGER = generate().peer_id
PAUSED = Stance(Cause.PAUSED)
DEVICE_PAUSED = Stance(Cause.PAUSED, own=False)


@pytest.mark.parametrize("cause", list(Cause))
def test_a_peer_gets_nothing_of_a_device_that_its_owner_has_closed(cause):
    answer = refusal(CALL, REQUESTER, but(stance=Stance(cause)))
    assert answer.reason is Reason.PAUSED
    assert answer.detail == sentence(Stance(cause))


def test_a_stranger_is_not_told_that_the_owner_sits_at_the_machine():
    details = {
        refusal(CALL, STRANGER, but(stance=Stance(cause), sandboxed=True)).detail
        for cause in Cause
    }
    assert details == {"its owner lets it take no work of strangers now"}


def test_the_owners_own_work_is_refused_only_by_a_pause_of_the_device():
    assert refusal(CALL, PROVIDER, but(stance=PAUSED)) is None
    assert refusal(CALL, PROVIDER, but(stance=DEVICE_PAUSED)).reason is Reason.PAUSED


def test_a_denied_peer_is_refused_whatever_else_is_set():
    terms = but(denied={REQUESTER}, sandboxed=True, stance=PAUSED)
    assert refusal(CALL, REQUESTER, terms).reason is Reason.DENIED


@pytest.mark.parametrize(
    ("strangers", "sandboxed", "said"),
    [
        (True, True, None),
        (True, False, "sandbox"),
        (False, True, "allow list"),
        (False, False, "allow list"),
    ],
)
def test_strangers_are_served_where_the_owner_wants_it_and_the_worker_is_locked_in(
    strangers, sandboxed, said
):
    terms = but(strangers=strangers, sandboxed=sandboxed)
    answer = refusal(CALL, STRANGER, terms)
    if said is None:
        assert answer is None
    else:
        assert answer.reason is Reason.UNTRUSTED_REQUESTER
        assert said in answer.detail
    assert refusal(CALL, REQUESTER, terms) is None  # a friend


def test_a_unit_worth_less_than_the_price_floor_is_refused_to_peers_alone():
    floor = but(min_price=worth(CALL) + 0.01)
    answer = refusal(CALL, REQUESTER, floor)
    assert answer.reason is Reason.PRICE
    assert f"{worth(CALL):.4g}" in answer.detail
    assert refusal(CALL, PROVIDER, floor) is None
    assert refusal(CALL, REQUESTER, but(min_price=worth(CALL))) is None


def test_what_a_unit_is_worth_does_not_depend_on_how_busy_the_node_is():
    assert worth(CALL) == price(CALL, TERMS, 0)
    floor = but(min_price=worth(CALL) + 0.01, waiting_s=5.0)
    assert price(CALL, floor, 0) > floor.min_price
    assert refusal(CALL, REQUESTER, floor).reason is Reason.PRICE


def test_a_stranger_learns_nothing_but_that_it_is_one():
    nothing_fits = but(allowed=frozenset(), providing=False, executors={}, memory_bytes=0)
    assert refusal(CALL, REQUESTER, nothing_fits).reason is Reason.UNTRUSTED_REQUESTER


def test_a_busier_node_asks_more():
    assert price(CALL, but(waiting_s=3.0), 0) > price(CALL, TERMS, 0)


def test_a_node_that_holds_the_program_asks_less():
    assert price(CALL, TERMS, CALL.program_bytes) < price(CALL, TERMS, 0)


def test_fetching_is_spread_over_the_units_of_a_call():
    many = msgspec.structs.replace(CALL, units=1000)
    assert price(many, TERMS, 0) < price(CALL, TERMS, 0)


def test_holding_more_than_the_program_is_not_worth_more_than_holding_it():
    assert price(CALL, TERMS, 10**12) == price(CALL, TERMS, CALL.program_bytes)


def test_a_node_always_takes_the_work_of_its_own_user():
    closed = but(allowed=frozenset(), providing=False)
    assert refusal(CALL, PROVIDER, closed) is None


def bids(**prices: float) -> dict[str, Bid]:
    template = bid(CALL, TERMS, 0, "1" * 32)
    return {p: msgspec.structs.replace(template, price=cost) for p, cost in prices.items()}


def test_the_owner_s_units_go_first_and_a_stranger_s_last():
    peers = [generate().peer_id, REQUESTER, PROVIDER]
    assert sorted(peers, key=lambda peer: rank(peer, TERMS)) == [PROVIDER, REQUESTER, peers[0]]


def test_strangers_cannot_take_every_lease():
    full = but(sandboxed=True, leases=STRANGERS_LEASES_LIMIT)
    assert refusal(CALL, STRANGER, full).reason is Reason.BUSY
    assert refusal(CALL, REQUESTER, full) is None
    assert refusal(CALL, STRANGER, but(sandboxed=True, leases=0)) is None


def test_a_peer_s_unit_may_ask_for_no_more_time_than_the_owner_gives():
    hour = but(time_limit_s=3600.0)
    longer = msgspec.structs.replace(CALL, time_limit_s=3601.0)
    assert refusal(longer, REQUESTER, hour).reason is Reason.TOO_LARGE
    assert refusal(longer, PROVIDER, hour) is None
    assert refusal(msgspec.structs.replace(CALL, time_limit_s=3600.0), REQUESTER, hour) is None


# --- which device bids ----------------------------------------------------------------

CPU = but(executors={"fp32": "onnxruntime", "exact": "exact"})
GPU = replace(CPU, device="gpu0", executors={"exact": "exact", "low": "torch"})
COMPILING = replace(GPU, executors={}, compiled={"exact": "exact"})
EXACT, LOW, KERNEL = (
    msgspec.structs.replace(CALL, numeric_class=each) for each in ("exact", "low", "kernel")
)


def chosen(call, *offers, requester=REQUESTER):
    """The device, or the refusal."""
    found = choose(call, requester, offers)
    return found if isinstance(found, Refusal) else found.device


def test_a_device_bids_that_offers_the_class():
    assert chosen(CALL, CPU, GPU) == "cpu"
    assert chosen(LOW, CPU, GPU) == "gpu0"


def test_of_several_the_one_with_the_shortest_wait_bids_and_a_card_where_none_has_any():
    assert chosen(EXACT, CPU, GPU) == "gpu0"
    assert chosen(EXACT, CPU, replace(GPU, waiting_s=2.0)) == "cpu"
    assert chosen(EXACT, replace(CPU, waiting_s=3.0), replace(GPU, waiting_s=2.0)) == "gpu0"
    second = replace(GPU, device="gpu1")
    assert chosen(EXACT, CPU, replace(GPU, leases=1), second) == "gpu1"


FAST, SLOW = {"exact": 1e12}, {"exact": 5e10}


def test_of_several_the_one_bids_that_will_be_done_first_by_the_rates_of_the_class():
    cpu, gpu = replace(CPU, rates=SLOW), replace(GPU, rates=FAST)
    assert chosen(EXACT, cpu, gpu) == "gpu0"
    assert chosen(EXACT, cpu, replace(gpu, waiting_s=18.9)) == "gpu0"  # it is 20 times as fast
    assert chosen(EXACT, cpu, replace(gpu, waiting_s=19.1)) == "cpu"
    fast_cpu, slow_card = replace(CPU, rates=FAST), replace(GPU, rates=SLOW)
    assert chosen(EXACT, fast_cpu, slow_card) == "cpu"
    both = replace(CPU, executors={"fp32": "a", "low": "b"}, rates=FAST)
    assert chosen(LOW, both, slow_card) == "gpu0"  # rates of another class do not matter


def test_a_card_that_was_not_measured_is_taken_to_be_as_fast_as_what_was():
    assert chosen(EXACT, replace(CPU, rates=FAST), GPU) == "gpu0"
    assert chosen(EXACT, replace(CPU, rates=SLOW), replace(GPU, waiting_s=0.1)) == "cpu"


def test_a_device_without_the_memory_for_a_unit_leaves_it_to_another():
    assert chosen(EXACT, CPU, replace(GPU, memory_bytes=1 << 20)) == "cpu"
    assert chosen(LOW, CPU, replace(GPU, memory_bytes=1 << 20)).reason is Reason.TOO_LARGE


def test_a_pause_of_the_card_holds_for_the_card_alone():
    paused = replace(GPU, stance=Stance(Cause.PAUSED, own=False))
    assert chosen(EXACT, CPU, paused) == "cpu"
    assert chosen(LOW, CPU, paused).reason is Reason.PAUSED
    assert chosen(LOW, CPU, paused, requester=TERMS.own).reason is Reason.PAUSED
    assert chosen(EXACT, replace(CPU, stance=paused.stance), GPU) == "gpu0"


def test_a_card_that_only_compiles_takes_no_units_and_the_refusal_says_so():
    assert chosen(EXACT, CPU, COMPILING) == "cpu"
    only_fp32 = replace(CPU, executors={"fp32": "onnxruntime"})
    second = replace(COMPILING, device="gpu1")
    for call in (KERNEL, EXACT):
        refusal = chosen(call, only_fp32, COMPILING, second)
        assert refusal.reason is Reason.NO_DEVICE
        assert refusal.detail.startswith("compile-only on gpu0, gpu1: ")


def test_a_node_without_cards_says_that_a_class_takes_one():
    refusal = chosen(KERNEL, CPU)
    assert (refusal.reason, refusal.detail) == (
        Reason.NO_DEVICE,
        "class kernel takes a GPU, and this node has none that is used",
    )
    refusal = chosen(msgspec.structs.replace(CALL, numeric_class="fp64"), CPU, GPU)
    assert refusal.reason is Reason.CLASS_NOT_OFFERED
    assert refusal.detail == "offered here: exact, fp32, low"


def test_a_card_that_is_gone_is_named_and_others_go_on():
    gone = replace(GPU, executors={}, lost="the card gpu0 is gone: ECC")
    assert chosen(EXACT, CPU, gone) == "cpu"
    refusal = chosen(LOW, CPU, gone)
    assert (refusal.reason, refusal.detail) == (Reason.NO_DEVICE, gone.lost)


def test_kernels_are_taken_of_known_peers_only():
    takes = replace(GPU, executors={"kernel": "triton"}, sandboxed=True)
    assert chosen(KERNEL, CPU, takes) == "gpu0"
    assert chosen(KERNEL, CPU, takes, requester=TERMS.own) == "gpu0"
    stranger = generate().peer_id
    open_cpu = replace(CPU, sandboxed=True)
    refusal = chosen(KERNEL, open_cpu, takes, requester=stranger)
    assert refusal.reason is Reason.UNTRUSTED_REQUESTER
    assert "kernels" in refusal.detail


def test_a_lease_of_kernels_ends_when_its_requester_comes_off_the_allow_list():
    takes = replace(GPU, executors={"kernel": "triton"}, sandboxed=True)
    assert ends_lease(KERNEL, REQUESTER, takes) is None
    off = replace(takes, allowed=frozenset())
    reason, detail = ends_lease(KERNEL, REQUESTER, off)
    assert reason is Reason.UNTRUSTED_REQUESTER
    assert "kernels" in detail
    assert ends_lease(EXACT, REQUESTER, off) is None
    assert ends_lease(KERNEL, TERMS.own, off) is None


def test_a_lease_ends_with_its_device_and_another_may_be_had():
    gone = replace(GPU, lost="the card gpu0 is gone: ECC")
    assert ends_lease(EXACT, REQUESTER, gone) == (Reason.BUSY, gone.lost)
    assert ends_lease(EXACT, REQUESTER, GPU) is None


def test_who_may_have_nothing_is_told_so_whatever_devices_there_are():
    closed = [replace(each, draining=True) for each in (CPU, GPU)]
    for call in (EXACT, LOW, KERNEL):
        assert chosen(call, *closed).reason is Reason.DRAINING


def test_while_devices_are_looked_at_a_class_may_still_come():
    starting = [replace(each, starting=True) for each in (CPU, replace(GPU, executors={}))]
    assert chosen(KERNEL, *starting).reason is Reason.BUSY
