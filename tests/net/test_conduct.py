"""Who is cut loses its connections and gets no new ones, until its time is over."""

from contextlib import asynccontextmanager

import pytest
import trio
from structlog.testing import capture_logs

from shoal.crypto.identity import generate
from shoal.node.conduct import SWEEP_INTERVAL_S, Conduct, open_conduct
from shoal.node.errors import NetworkError, PeerError
from shoal.node.network import open_network
from shoal.node.notes import LOGGED_AGAIN_S, Seen
from shoal.node.standing import FIRST_CUT_S, Offence

LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]


@asynccontextmanager
async def a_node_and_a_peer():
    async with open_network(generate(), LOOPBACK) as own, open_network(generate(), []) as peer:
        conduct, dropped = Conduct(own.peer_id), []
        async with open_conduct(conduct, own, dropped.append):
            await peer.connect(own.peer_id, own.addresses(), 5)
            yield own, peer, conduct, dropped


async def gone(network, peer):
    with trio.fail_after(30):
        while peer in network.connected():  # noqa: ASYNC110  # the event is the network's own
            await trio.sleep(0.02)


def offend(conduct, peer):
    for _ in range(20):
        conduct.broke(peer, Offence.BAD_FRAME, "not msgpack")


async def test_a_peer_that_is_cut_loses_its_connection_and_gets_none():
    async with a_node_and_a_peer() as (own, peer, conduct, dropped):
        offend(conduct, peer.peer_id)
        await gone(own, peer.peer_id)
        assert dropped == [peer.peer_id]
        try:
            await peer.connect(own.peer_id, own.addresses(), 5)
        except NetworkError:
            return  # refused at the door
        await trio.sleep(SWEEP_INTERVAL_S)
        await gone(own, peer.peer_id)


async def test_a_peer_that_only_lost_standing_keeps_its_connection():
    async with a_node_and_a_peer() as (own, peer, conduct, dropped):
        conduct.broke(peer.peer_id, Offence.BAD_FRAME, "not msgpack")
        await trio.sleep(1.2 * SWEEP_INTERVAL_S)
        assert peer.peer_id in own.connected()
        assert not dropped
        view = conduct.standing_of(peer.peer_id)
        assert view.offences == {"bad_frame": 1}
        assert 0.5 < view.standing < 1.0
        assert conduct.cuts() == []


async def test_what_is_noted_is_shown_and_has_no_effect(autojump_clock):
    own, peer, place = generate().peer_id, generate().peer_id, "192.0.2.7"
    conduct = Conduct(own)
    with capture_logs() as logged:
        for _ in range(1000):
            conduct.noted(peer, Seen.OTHER_CERTIFICATE, "certificate verify failed")
            conduct.called(place, "it said nothing")
        await trio.sleep(LOGGED_AGAIN_S)
        conduct.noted(peer, Seen.OTHER_CERTIFICATE, "again")
        conduct.noted(own, Seen.NO_TLS)
    assert conduct.standing_of(peer) is None
    assert conduct.refused(peer) is None
    assert conduct.cuts() == []
    (view,) = conduct.all()
    assert (view.peer, view.standing) == (peer, None)
    (note,) = view.notes
    assert (note.what, note.times, note.detail) == ("other_certificate", 1001, "again")
    (caller,) = conduct.callers()
    assert (caller.place, caller.note.times) == (place, 1000)
    assert [one["times"] for one in logged if one.get("peer") == peer] == [1, 1001]
    assert [one["times"] for one in logged if one.get("place") == place] == [1]
    conduct.forgive(peer)
    assert conduct.all() == []


async def test_all_that_is_held_or_noted_is_told_of_peers_without_an_advert():
    conduct, noted, offender = Conduct(generate().peer_id), *(generate().peer_id for _ in "ab")
    conduct.noted(noted, Seen.STALLED)
    conduct.broke(offender, Offence.BAD_BLOB, "wrong bytes")
    views = {view.peer: view for view in conduct.all()}
    assert views.keys() == {noted, offender}
    assert views[offender].standing.offences == {"bad_blob": 1}
    assert views[offender].notes == ()


async def test_nobody_is_reached_that_is_cut_and_the_error_says_how_to_change_it(
    autojump_clock,
):
    conduct, reached = Conduct(generate().peer_id), []

    async def reach(peer):
        reached.append(peer)

    peer = generate().peer_id
    await conduct.reach(reach, peer)
    offend(conduct, peer)
    with pytest.raises(NetworkError, match="no message of the protocol") as cut:
        await conduct.reach(reach, peer)
    assert cut.value.code == "peer_cut"
    assert f"shoal peers --forgive {peer}" in cut.value.hint
    assert conduct.refused(peer) is not None
    await trio.sleep(FIRST_CUT_S)
    await conduct.reach(reach, peer)
    assert reached == [peer, peer]


async def test_a_peer_that_is_forgiven_is_let_in_and_one_that_did_nothing_is_not_known(
    autojump_clock,
):
    conduct = Conduct(generate().peer_id)
    peer = generate().peer_id
    offend(conduct, peer)
    (cut,) = conduct.cuts()
    assert cut.peer == peer
    assert cut.until - cut.since == pytest.approx(FIRST_CUT_S)
    conduct.forgive(peer)
    assert conduct.refused(peer) is None
    assert conduct.cuts() == []
    with pytest.raises(PeerError) as unknown:
        conduct.forgive(peer)
    assert unknown.value.code == "no_such_offender"


async def test_of_what_the_network_saw_only_what_no_honest_node_does_is_an_offence(
    autojump_clock,
):
    conduct = Conduct(generate().peer_id)
    peer = generate().peer_id
    for what in ("took too long to finish a frame", "made this node hold too many bytes"):
        conduct.breach(peer, what)
    assert conduct.standing_of(peer) is None
    conduct.breach(peer, "opened streams without end")
    assert conduct.standing_of(peer).offences == {"too_many_streams": 1}


async def test_who_is_named_later_is_spared_from_then_on_and_who_is_not_any_more_is_not(
    autojump_clock,
):
    before, after = (generate().peer_id for _ in range(2))
    conduct = Conduct(generate().peer_id, seeds=[before])
    conduct.join_by([after])
    for peer in (before, after):
        offend(conduct, peer)
    length_s = {cut.peer: cut.until - cut.since for cut in conduct.cuts()}
    assert length_s[after] < length_s[before] / 5


async def test_a_friend_is_cut_for_a_shorter_time(autojump_clock):
    friend, seed, stranger = (generate().peer_id for _ in range(3))
    conduct = Conduct(generate().peer_id, friends=[friend], seeds=[seed])
    for peer in (friend, seed, stranger):
        offend(conduct, peer)
    length_s = {cut.peer: cut.until - cut.since for cut in conduct.cuts()}
    assert length_s[friend] == pytest.approx(length_s[seed])
    assert length_s[friend] < length_s[stranger] / 5
    assert {cut.peer: cut.friend for cut in conduct.cuts()} == {
        friend: True,
        seed: False,
        stranger: False,
    }
