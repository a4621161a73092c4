"""What a provider is told when its requester needs a lease no more, and in which order."""

from types import SimpleNamespace

import pytest
from strategies import ALICE, BOB, CALL_ID, a_bid, a_call, a_result, an_offer, some_units

from shoal.node import ending_leases
from shoal.protocol.messages import Done
from shoal.protocol.negotiation import RequesterSide, State
from shoal.protocol.negotiation_messages import Cancel, Lease, Release
from shoal.protocol.statements import statement_id

OFFER = an_offer()


@pytest.fixture
def side():
    """A lease under which nothing is out."""
    side = RequesterSide(ALICE.peer_id, BOB.peer_id)
    side.send(a_call(), 0.0)
    side.receive(a_bid(), 0.0)
    side.send(OFFER, 0.0)
    lease = Lease(call=CALL_ID, award=statement_id(OFFER.award), idle_s=30.0)
    side.receive(lease, 0.0)
    return side


@pytest.fixture
def told():
    return []


@pytest.fixture
def house(told):
    async def request(_peer, message, _timeout_s):
        told.append(message)
        return Done()

    nothing = SimpleNamespace(withdraw=lambda _: None, remove=lambda _: None)
    control = SimpleNamespace(request=request)
    return SimpleNamespace(control=control, rights=nothing, awarded=nothing)


async def test_units_that_are_out_are_cancelled_before_their_lease_is_released(
    side, house, told
):
    side.send(some_units("job/0", "job/1"), 0.0)
    await ending_leases.release(house, side)
    assert told == [Cancel(CALL_ID, "job/0", ("job/1",)), Release(CALL_ID)]
    assert side.state is State.ENDED


async def test_what_was_answered_is_not_cancelled_since_it_will_be_acknowledged(
    side, house, told
):
    side.send(some_units("job/0"), 0.0)
    side.receive(a_result(), 0.0, "job/0")
    await ending_leases.release(house, side)
    assert told == [Release(CALL_ID)]


async def test_nobody_is_told_twice(side, house, told):
    side.send(some_units("job/0"), 0.0)
    await ending_leases.cancel(house, side, ["job/0"])
    await ending_leases.release(house, side)
    await ending_leases.release(house, side)
    assert told == [Cancel(CALL_ID, "job/0"), Release(CALL_ID)]
