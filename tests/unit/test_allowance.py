"""What requests cost, and when a peer asks too much."""

import math

import pytest

from shoal.node.allowance import (
    BURST_MS,
    MS_PER_S,
    NOTHING_MS,
    PATIENCE_S,
    REFUSALS_BURST,
    Allowance,
    Bucket,
    cost_ms,
    is_refusable,
)
from shoal.node.control import LEFT_ALONE_S
from shoal.protocol.limits import REQUESTS_IN_FLIGHT_LIMIT
from shoal.protocol.messages import Adverts, Digest, Done, Problem
from shoal.protocol.negotiation_messages import (
    Call,
    Cancel,
    Reason,
    Refusal,
    Release,
    UnitRefusal,
    UnitRequest,
    UnitResult,
    UnitsRequest,
    UnitsResult,
)

CALL = "ab" * 16
UNIT = UnitRequest(call=CALL, unit="j/0", inputs=())
RESULT = UnitResult(call=CALL, unit="j/0", receipt=b"r")
NO_LEASE = Refusal(call=CALL, reason=Reason.EXPIRED)
CALL_FOR_BIDS = Call(
    call=CALL,
    program="ab" * 32,
    numeric_class="fp32",
    precision=None,
    units=1,
    input_bytes=0,
    program_bytes=0,
    time_limit_s=1.0,
    memory_bytes=1,
)


def test_a_bucket_gives_its_burst_then_its_rate_and_may_be_overdrawn():
    bucket = Bucket(per_s=10.0, burst=100.0)
    assert bucket.holds(5.0) == 100.0
    bucket.pay(120.0, 5.0)
    assert bucket.wait_s(5.0) == 2.0
    assert bucket.wait_s(7.0) == 0.0
    assert bucket.holds(1e9) == 100.0


def test_a_clock_that_stands_still_gives_nothing():
    bucket = Bucket(per_s=10.0, burst=100.0)
    for _ in range(20):
        bucket.pay(10.0, 1.0)
    assert bucket.holds(1.0) == -100.0


def test_a_unit_that_runs_costs_next_to_nothing_however_large_it_is():
    small = cost_ms(UNIT, 100, RESULT, 100)
    assert cost_ms(UNIT, 1 << 20, RESULT, 1 << 20) == small < 1.0


def test_what_finds_nothing_pays_for_the_search():
    assert cost_ms(UNIT, 100, NO_LEASE, 100) > NOTHING_MS
    served = cost_ms(CALL_FOR_BIDS, 250, Done(), 250)
    refused = cost_ms(CALL_FOR_BIDS, 250, Problem(code="odd", message=""), 250)
    assert refused - served == NOTHING_MS


def test_a_batch_that_runs_costs_little_and_one_that_is_refused_pays_for_each_unit():
    batch = UnitsRequest(call=CALL, units=(UNIT,) * 64)
    ran = cost_ms(batch, 1 << 19, UnitsResult(call=CALL, answers=(RESULT,) * 64), 1 << 19)
    assert ran < 64 * cost_ms(UNIT, 100, RESULT, 100) / 4
    refusal = UnitRefusal(unit="j/0", reason=Reason.EXPIRED)
    refused = cost_ms(batch, 100, UnitsResult(call=CALL, answers=(refusal,) * 64), 100)
    assert refused > 4 * NOTHING_MS
    assert cost_ms(batch, 100, NO_LEASE, 100) > NOTHING_MS


def test_adverts_pay_for_their_signatures_and_digests_for_their_bytes():
    one = Adverts(adverts=((b"e", 0.0),))
    many = Adverts(adverts=((b"e", 0.0),) * 200)
    assert cost_ms(many, 100, Done(), 10) > 20 * cost_ms(one, 100, Done(), 10)
    empty = Digest(held=b"")
    large, small = cost_ms(empty, 1 << 18, one, 100), cost_ms(empty, 100, one, 100)
    assert large > 5 * small


@pytest.mark.parametrize("units_per_s", [50, 400, 900])
def test_a_requester_that_streams_units_is_never_held_back(units_per_s):
    allowance = Allowance()
    for number in range(60 * units_per_s):
        now_s = number / units_per_s
        allowance.pay(cost_ms(UNIT, 2000, RESULT, 2000), now_s)
        assert allowance.bucket.wait_s(now_s) == 0.0


def test_the_calls_of_hundreds_of_jobs_that_are_refused_are_never_held_back():
    """Each asks again 2 s after the refusal at the soonest (`node.scheduling.setbacks`)."""
    allowance = Allowance()
    busy = Refusal(call=CALL, reason=Reason.BUSY)
    for second in range(0, 60, 2):
        for _ in range(80):
            allowance.pay(cost_ms(CALL_FOR_BIDS, 250, busy, 100), float(second))
            assert allowance.bucket.wait_s(float(second)) == 0.0


def flood(allowance, for_s):
    """Ask as fast as it is let: as soon as it is out of debt; gives what came of each."""
    now_s, seen = 0.0, []
    while now_s < for_s:
        now_s += allowance.bucket.wait_s(now_s) + 1e-6
        if allowance.is_too_much(now_s):
            seen.append((now_s, "too many" if allowance.refuse(now_s) else "refused"))
        else:
            allowance.pay(2.0, now_s)
            seen.append((now_s, "served"))
    return seen


def test_a_flood_is_held_back_then_refused_and_then_an_offence():
    seen = flood(Allowance(), 60.0)
    first = {what: next(at for at, each in seen if each == what) for _, what in seen}
    assert first["served"] < 1.0
    assert PATIENCE_S <= first["refused"] < PATIENCE_S + 2.0
    assert first["refused"] < first["too many"] < 30.0
    served = sum(what == "served" for _, what in seen)
    assert served * 2.0 <= BURST_MS + (PATIENCE_S + 1) * MS_PER_S


def test_a_peer_that_leaves_off_is_served_again():
    allowance = Allowance()
    end_s = flood(allowance, 12.0)[-1][0]
    assert allowance.is_too_much(end_s)
    assert not allowance.is_too_much(end_s + BURST_MS / MS_PER_S)


def test_one_that_is_told_so_and_asks_again_in_half_a_minute_never_offends():
    allowance = Allowance()
    flood(allowance, 11.0)
    now_s = 12.0
    for _ in range(100):
        for _ in range(int(REFUSALS_BURST / 5)):
            if allowance.is_too_much(now_s):
                assert not allowance.refuse(now_s)
            else:
                allowance.pay(5.5, now_s)
        now_s += 30.0


def test_what_belongs_to_a_lease_is_not_refused_for_the_sake_of_other_requests():
    for body in (UNIT, Cancel(call=CALL, unit="j/0"), Release(call=CALL)):
        assert not is_refusable(body)
    for body in (CALL_FOR_BIDS, Digest(held=b""), Adverts(adverts=())):
        assert is_refusable(body)


def test_a_new_allowance_has_nothing_to_remember_and_a_used_one_has_for_a_while():
    allowance = Allowance()
    assert allowance.is_full(0.0)
    allowance.pay(100.0, 0.0)
    assert not allowance.is_full(0.0)
    assert allowance.is_full(100.0 / MS_PER_S)
    assert allowance.pressed_since_s == math.inf


def test_a_node_that_leaves_alone_who_says_so_commits_no_offence_however_many_jobs_it_has():
    allowance, now_s = Allowance(), 0.0
    for _ in range(100):
        for _ in range(REQUESTS_IN_FLIGHT_LIMIT):  # all that it had under way when it was told
            assert not allowance.refuse(now_s)
        now_s += LEFT_ALONE_S
