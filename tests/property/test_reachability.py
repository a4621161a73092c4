"""Whatever one liar says, with any number of keys, two honest votes stand."""

from hypothesis import given
from hypothesis import strategies as st

from shoal.crypto.peer_id import PeerId
from shoal.protocol.advertising import advertise
from shoal.protocol.reachability import (
    Report,
    Scope,
    Verdict,
    group_of,
    judge,
    scope_of,
)
from shoal.protocol.reachability_messages import Outcome

PORTS = (4711, 4712)
OWN = "203.0.113.7"
LISTENING = ((OWN, PORTS[0]), ("192.168.1.5", PORTS[0]), ("127.0.0.1", PORTS[0]))
HONEST_NETWORKS = ("198.51.100", "192.0.2", "198.18.1", "198.18.2")
LIARS_NETWORK = "198.18.3"
IPS = st.sampled_from([OWN, "203.0.113.8", "192.168.1.5", "127.0.0.1", "2001:db8::1"])


@st.composite
def lies(draw):
    """Reports of one network's peers: any words, and any ports that they came in by."""
    keys = draw(st.integers(0, 12))
    return [
        Report(
            peer=PeerId(f"liar {number}"),
            ip=f"{LIARS_NETWORK}.{draw(st.integers(1, 254))}",
            seen_as=draw(IPS),
            outcomes=tuple((port, draw(st.sampled_from(Outcome))) for port in PORTS),
            shown=draw(st.frozensets(st.sampled_from(PORTS))),
            at_s=0.0,
        )
        for number in range(keys)
    ]


@st.composite
def truths(draw):
    """What at least two honest networks found, each with one or more peers: all the same."""
    outcome = draw(
        st.sampled_from([each for each in Outcome if each is not Outcome.NOT_DIALLED])
    )
    networks = draw(st.lists(st.sampled_from(HONEST_NETWORKS), min_size=2, unique=True))
    shown = frozenset(PORTS[:1]) if outcome is Outcome.WORKED else frozenset()
    return [
        Report(
            PeerId(f"{network} {number}"),
            f"{network}.{number + 1}",
            OWN,
            ((PORTS[0], outcome),),
            shown,
            0.0,
        )
        for network in networks
        for number in range(draw(st.integers(1, 2)))
    ]


def linked_to(reports):
    return {report.peer: report.ip for report in reports}


@given(truths(), lies(), st.randoms())
def test_one_liar_moves_no_verdict_and_nothing_that_is_advertised(truth, lie, random):
    said = [*truth, *lie]
    random.shuffle(said)
    alone = judge(truth, LISTENING, linked_to(truth))
    beside = judge(said, LISTENING, linked_to(said))
    assert alone.verdict in {Verdict.PUBLIC, Verdict.BLOCKED}
    assert (beside.verdict, beside.working, beside.failing) == (
        alone.verdict,
        alone.working,
        alone.failing,
    )
    helpers = (PeerId("helper"),)
    before = advertise(alone, truth, LISTENING, linked_to(truth), helpers)
    after = advertise(beside, said, LISTENING, linked_to(said), helpers)
    assert before.via == after.via
    # A peer may come in by an address of this machine and have that advertised: it works.
    assert set(before.places) <= set(after.places) <= {*before.places, *LISTENING}


@given(lies())
def test_a_liar_alone_decides_nothing(lie):
    found = judge(lie, LISTENING, linked_to(lie))
    assert found.verdict is Verdict.UNKNOWN
    after = advertise(found, lie, LISTENING, linked_to(lie), ())
    assert after.places == LISTENING


@given(truths(), lies())
def test_no_place_is_said_to_work_where_nothing_came_in(truth, lie):
    said = [*truth, *lie]
    came_in = {(each.seen_as, port) for each in said for port in each.shown}
    assert set(judge(said, LISTENING, linked_to(said)).working) <= came_in


@given(st.ip_addresses())
def test_every_address_has_a_scope_and_a_group(ip):
    assert scope_of(str(ip)) in Scope
    assert group_of(str(ip))
