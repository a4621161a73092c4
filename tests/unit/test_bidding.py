import msgspec
import pytest

from shoal.crypto.identity import generate
from shoal.node.bidding import LEASES_LIMIT, Terms, bid, choose, price, rank, refusal
from shoal.protocol.messages import Bid, Call, Reason

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
    from dataclasses import replace

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


def test_a_stranger_learns_nothing_but_that_it_is_one():
    nothing_fits = but(allowed=frozenset(), providing=False, executors={}, memory_bytes=0)
    assert refusal(CALL, REQUESTER, nothing_fits).reason is Reason.UNTRUSTED_REQUESTER


def test_a_busier_node_asks_more():
    assert price(CALL, but(units_waiting=3), 0) > price(CALL, TERMS, 0)


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


def test_one_unit_goes_to_the_cheapest_bid():
    assert choose(bids(a=3.0, b=1.0, c=2.0), 1) == ["b"]


def test_many_units_go_to_every_bid_cheapest_first():
    assert choose(bids(a=3.0, b=1.0, c=2.0), 50) == ["b", "c", "a"]


def test_equal_prices_are_chosen_the_same_way_every_time():
    assert choose(bids(c=1.0, a=1.0, b=1.0), 2) == ["a", "b"]


def test_no_bid_and_no_unit_choose_nobody():
    assert choose({}, 5) == []
    assert choose(bids(a=1.0), 0) == []


def test_the_owner_s_units_go_first_and_a_stranger_s_last():
    peers = [generate().peer_id, REQUESTER, PROVIDER]
    assert sorted(peers, key=lambda peer: rank(peer, TERMS)) == [PROVIDER, REQUESTER, peers[0]]


def test_at_equal_prices_a_proven_claim_goes_first_and_a_lower_price_before_it():
    unproven, proven = sorted(generate().peer_id for _ in range(2))
    bids = dict.fromkeys((unproven, proven), bid(CALL, TERMS, 0, "0" * 32))
    assert choose(bids, 1) == [unproven]
    assert choose(bids, 1, {proven}) == [proven]
    cheaper = bids | {unproven: msgspec.structs.replace(bids[proven], price=0.0)}
    assert choose(cheaper, 1, {proven}) == [unproven]
