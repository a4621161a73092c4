"""Whose accusations are looked into: every sender in turn, and no more than it may cost."""

from collections import Counter

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import BOB

from shoal.crypto.content import blob_id_of
from shoal.crypto.peer_id import peer_id_of
from shoal.node.docket import (
    AGAIN_AFTER_S,
    BLOBS_LIMIT_BYTES,
    SILENCE_S,
    TRIES,
    WAITING_EACH_LIMIT,
    WAITING_LIMIT,
    Docket,
    End,
    Hearing,
)
from shoal.protocol.checking_messages import Accusation

PEERS = [peer_id_of(bytes([number]) * 32) for number in range(30)]


def accusation(number, **changes):
    fields = {"proof_bytes": 1000, "blobs_bytes": 1000} | changes
    proof = blob_id_of(b"proof %d" % number)
    return Accusation(proof=proof, accused=BOB.peer_id, **fields)


def heard(docket, sender, numbers, now_s=0.0):
    return [docket.hear(sender, accusation(number), now_s) for number in numbers]


events = st.lists(
    st.tuples(
        st.sampled_from(PEERS[:4]),
        st.integers(0, 9),
        st.sampled_from([None, *End]),
        st.floats(0.0, 5000.0),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(events)
def test_whatever_comes_it_is_bounded_and_nothing_false_is_looked_into_twice(events):
    docket, now_s, false, silenced = Docket(), 0.0, set(), {}
    for sender, number, end, wait_s in events:
        now_s += wait_s
        hearing = docket.hear(sender, accusation(number), now_s)
        if silenced.get(sender, -1.0) > now_s:
            assert hearing is Hearing.UNHEARD
        elif accusation(number).proof in false:
            assert hearing is Hearing.FALSE
            silenced[sender] = now_s + SILENCE_S
        assert len(docket) <= WAITING_LIMIT
        if end is None:
            continue
        taken = docket.take(now_s)
        if taken is None:
            continue
        assert taken.accusation.proof not in false
        assert silenced.get(taken.sender, -1.0) <= now_s
        liars = docket.close(end, now_s)
        assert bool(liars) == (end is End.FALSE)
        if liars:
            assert liars[0] == taken.sender
            false.add(taken.accusation.proof)
            silenced |= dict.fromkeys(liars, now_s + SILENCE_S)


def test_who_sends_a_thousand_delays_nobody_elses():
    docket = Docket()
    flood = heard(docket, PEERS[0], range(1000))
    assert flood.count(Hearing.WAITS) == WAITING_EACH_LIMIT
    assert heard(docket, PEERS[1], [1001, 1002]) == [Hearing.WAITS] * 2
    senders = []
    for _ in range(4):
        senders.append(docket.take(0.0).sender)
        docket.close(End.OPEN, 0.0)
    assert senders == [PEERS[0], PEERS[1]] * 2


def test_the_docket_is_never_longer_than_its_limit_however_many_send():
    docket = Docket()
    kinds = Counter(
        hearing
        for place, peer in enumerate(PEERS)
        for hearing in heard(docket, peer, range(place * 100, place * 100 + 60))
    )
    assert kinds[Hearing.WAITS] == len(docket) == WAITING_LIMIT
    assert kinds[Hearing.NO_ROOM] > 0


def test_what_comes_to_nothing_uses_up_a_senders_tries_and_they_come_back():
    docket, tried = Docket(), 0
    heard(docket, PEERS[0], range(60))
    while docket.take(0.0) is not None:
        docket.close(End.OPEN, 0.0)
        tried += 1
    assert tried == TRIES
    assert heard(docket, PEERS[0], [100]) == [Hearing.UNHEARD]
    assert heard(docket, PEERS[1], [100]) == [Hearing.WAITS]
    assert heard(docket, PEERS[0], [100], now_s=61.0) == [Hearing.WAITS]


def test_an_honest_peer_is_never_short_of_tries():
    docket = Docket()
    for number in range(10 * int(TRIES)):
        assert heard(docket, PEERS[0], [number]) == [Hearing.WAITS]
        docket.take(0.0)
        docket.close(End.PROVED, 0.0)


def test_what_was_left_open_is_looked_into_again_for_another_sender_or_later():
    docket = Docket()
    heard(docket, PEERS[0], [1])
    docket.take(0.0)
    assert docket.close(End.OPEN, 0.0) == ()
    assert heard(docket, PEERS[0], [1], now_s=1.0) == [Hearing.KNOWN]
    assert heard(docket, PEERS[1], [1], now_s=1.0) == [Hearing.WAITS]
    assert heard(docket, PEERS[0], [1], now_s=AGAIN_AFTER_S) == [Hearing.WAITS]


def test_all_who_sent_a_false_proof_are_silenced_and_may_speak_again_later():
    docket = Docket()
    for peer in PEERS[:3]:
        heard(docket, peer, [1])
    heard(docket, PEERS[0], [2])
    docket.take(0.0)
    assert set(docket.close(End.FALSE, 0.0)) == set(PEERS[:3])
    assert len(docket) == 0
    assert heard(docket, PEERS[0], [3], now_s=1.0) == [Hearing.UNHEARD]
    assert heard(docket, PEERS[3], [1], now_s=1.0) == [Hearing.FALSE]
    assert heard(docket, PEERS[0], [3], now_s=SILENCE_S) == [Hearing.WAITS]


def test_who_sends_a_proof_as_one_against_another_spoils_it_for_nobody():
    docket, spoilt = Docket(), msgspec.structs.replace(accusation(1), accused=PEERS[9])
    assert docket.hear(PEERS[0], spoilt, 0.0) is Hearing.WAITS
    assert heard(docket, PEERS[1], [1]) == [Hearing.WAITS]
    docket.take(0.0)
    assert docket.close(End.FALSE, 0.0) == (PEERS[0],)
    assert heard(docket, PEERS[2], [1]) == [Hearing.WAITS]
    assert docket.take(0.0).sender == PEERS[1]


def test_a_verdict_answers_everybody_who_sent_the_same():
    docket = Docket()
    for peer in PEERS[:3]:
        heard(docket, peer, [1])
    docket.take(0.0)
    assert docket.close(End.PROVED, 0.0) == ()
    assert docket.take(0.0) is None


def test_what_is_too_large_is_not_even_fetched():
    docket = Docket()
    for large in ({"proof_bytes": 1 << 30}, {"blobs_bytes": BLOBS_LIMIT_BYTES + 1}):
        assert docket.hear(PEERS[0], accusation(1, **large), 0.0) is Hearing.TOO_LARGE
    assert docket.take(0.0) is None
