"""Who is remembered, and who is forgotten for whom."""

from shoal.crypto.peer_id import PeerId
from shoal.node.remembered_peers import (
    AGE_LIMIT_S,
    KEPT_ANYHOW,
    PEERS_LIMIT,
    RememberedPeer,
    best,
    to_forget,
)


def row(name, seen_at_s, met=1):
    return RememberedPeer(PeerId(name), ("/ip4/192.0.2.1/tcp/1",), seen_at_s, met=met)


def test_a_flood_of_new_peers_does_not_drive_out_old_friends():
    friends = [row(f"friend {number}", 1000.0, met=9) for number in range(20)]
    flood = [row(f"new {number}", 2000.0 + number) for number in range(3 * PEERS_LIMIT)]
    gone = set(to_forget([*friends, *flood], 6000.0))
    assert not gone & {one.peer for one in friends}
    assert len(friends) + len(flood) - len(gone) == PEERS_LIMIT
    chosen = best([*friends, *flood], 64)
    assert {one.peer for one in friends} <= {one.peer for one in chosen}
    assert chosen[0] == flood[-1], "the newest have their places too, and come first"


def test_a_peer_not_seen_for_half_a_year_is_forgotten_unless_few_are_left():
    old = [row(f"old {number}", float(number)) for number in range(KEPT_ANYHOW)]
    now_s = AGE_LIMIT_S + 1000.0
    assert to_forget(old, now_s) == []
    new = [row(f"new {number}", now_s) for number in range(KEPT_ANYHOW)]
    assert set(to_forget([*old, *new], now_s)) == {one.peer for one in old}


def test_what_worked_last_is_the_first_place_to_look():
    one = RememberedPeer(PeerId("p"), ("/a", "/b"), 1.0, worked="/b")
    assert one.places == ("/b", "/a")
