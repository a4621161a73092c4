"""Who is let in, who makes room, and when to give up: by values alone."""

import pytest

from shoal.node import admission
from shoal.node.admission import (
    HALF_OPEN_LIMIT,
    NEIGHBOURS_PLACE_LIMIT,
    OUTBOUND_RESERVE,
    PLACE_HALF_OPEN_LIMIT,
    PLACE_LIMIT,
    Bucket,
    HalfOpen,
    Held,
    Refusal,
    admit,
    connections_limit,
    give_way,
    place_limit,
    place_of,
    restart_delay_s,
)


def public(number):
    return f"8.8.{number // 250}.{number % 250}"


def held(number, *, peer=None, place=None, inbound=True, busy=False, used_s=None):
    return Held(
        number=number,
        peer=peer or f"peer{number}",
        place=place or public(number),
        inbound=inbound,
        busy=busy,
        used_s=float(number) if used_s is None else used_s,
    )


def admitted(connections, *, peer="new", place="9.9.9.9", inbound=True, limit=100):
    return admit(peer, place, inbound=inbound, held=connections, limit=limit)


# --- places -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "place"),
    [
        ("8.8.8.8", "8.8.8.8"),
        ("::ffff:8.8.8.8", "8.8.8.8"),
        ("2a00:1450:1:2:3:4:5:6", "2a00:1450:1:2::/64"),
        ("2a00:1450:1:2:ffff::", "2a00:1450:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_a_place_is_an_ip4_address_or_an_ip6_subscriber(host, place):
    assert place_of(host) == place


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "10.1.2.3", "192.168.0.9", "fd00::1"])
def test_the_neighbourhood_may_hold_more(host):
    assert place_limit(place_of(host)) == NEIGHBOURS_PLACE_LIMIT


@pytest.mark.parametrize("host", ["8.8.8.8", "2a00:1450::1"])
def test_the_rest_of_the_world_may_not(host):
    assert place_limit(place_of(host)) == PLACE_LIMIT


def test_connections_and_handshakes_leave_descriptors_for_the_rest():
    assert admission.CONNECTIONS_LIMIT + HALF_OPEN_LIMIT < 1024
    assert connections_limit(1024) == 512
    assert connections_limit(256) == 128
    assert connections_limit(1 << 20) == admission.CONNECTIONS_LIMIT


# --- handshakes -------------------------------------------------------------------


def waiting(count, place="8.8.8.8", *, since_s=0.0, received_bytes=0, first=0):
    return [
        HalfOpen(first + n, place, since_s + n, received_bytes=received_bytes)
        for n in range(count)
    ]


def test_a_handshake_gives_way_to_none_while_there_is_room():
    assert give_way("8.8.8.8", waiting(PLACE_HALF_OPEN_LIMIT - 1)) is None


def test_the_oldest_silent_handshake_of_a_full_place_gives_way():
    talking = waiting(5, received_bytes=40)
    silent = waiting(PLACE_HALF_OPEN_LIMIT - 5, since_s=100.0, first=5)
    assert give_way("8.8.8.8", talking + silent) == silent[0]


def test_where_all_talk_the_oldest_gives_way():
    talking = waiting(PLACE_HALF_OPEN_LIMIT, received_bytes=40)
    assert give_way("8.8.8.8", talking) == talking[0]


def test_a_full_place_takes_nothing_from_others():
    full = waiting(PLACE_HALF_OPEN_LIMIT)
    assert give_way("9.9.9.9", full) is None


def test_when_all_is_full_the_most_crowded_place_gives_way():
    crowd = waiting(PLACE_HALF_OPEN_LIMIT, since_s=500.0)
    others = [
        HalfOpen(1000 + n, public(n), 0.0, received_bytes=0)
        for n in range(HALF_OPEN_LIMIT - PLACE_HALF_OPEN_LIMIT)
    ]
    assert give_way("9.9.9.9", others + crowd) == crowd[0]


# --- connections ------------------------------------------------------------------


def test_a_newcomer_is_taken_where_there_is_room():
    assert admitted([held(1), held(2)]) == admission.Admission()


def test_a_newer_connection_of_a_peer_replaces_its_older_one_of_that_direction():
    older = held(1, peer="new", busy=True)
    other_way = held(2, peer="new", inbound=False)
    assert admitted([older, other_way]).ended == (older,)
    assert admitted([older, other_way], inbound=False).ended == (other_way,)


def test_a_full_place_ends_the_connection_that_was_of_no_use_for_longest():
    crowd = [held(n, place="9.9.9.9") for n in range(PLACE_LIMIT)]
    crowd[0] = held(0, place="9.9.9.9", busy=True)
    assert admitted(crowd, limit=1000).ended == (crowd[1],)


def test_a_place_full_of_connections_in_use_is_full():
    crowd = [held(n, place="9.9.9.9", busy=True) for n in range(PLACE_LIMIT)]
    assert admitted(crowd, limit=1000).refusal is Refusal.PLACE_FULL
    assert admitted(crowd, place="8.8.8.8", limit=1000) == admission.Admission()


def test_a_full_node_ends_the_idle_of_the_most_crowded_place():
    spread = [held(n) for n in range(60)]
    crowd = [held(100 + n, place="9.9.9.1") for n in range(15)]
    assert admitted(spread + crowd, limit=100).ended == (crowd[0],)


def test_a_node_full_of_links_refuses_and_ends_none():
    links = [held(n, busy=True) for n in range(75)]
    decision = admitted(links, limit=100)
    assert decision == admission.Admission(refusal=Refusal.NODE_FULL)


def test_inbound_connections_leave_room_for_our_own():
    limit = 512
    inbound = [held(n, busy=True) for n in range(limit - OUTBOUND_RESERVE)]
    assert admitted(inbound, limit=limit).refusal is Refusal.NODE_FULL
    assert admitted(inbound, limit=limit, inbound=False) == admission.Admission()


def test_a_dial_of_ours_may_end_an_idle_connection():
    full = [held(n, busy=n != 7) for n in range(100)]
    assert admitted(full, limit=100, inbound=False).ended == (full[7],)


# --- rates and restarts -----------------------------------------------------------


def test_a_bucket_gives_its_burst_and_then_its_rate():
    bucket = Bucket(10.0, 5.0, now_s=0.0)
    assert [bucket.takes(0.0) for _ in range(6)] == [True] * 5 + [False]
    assert bucket.wait_s(0.0) == pytest.approx(0.1)
    assert [bucket.takes(0.25) for _ in range(3)] == [True, True, False]


def test_a_bucket_holds_no_more_than_its_burst():
    bucket = Bucket(10.0, 5.0, now_s=0.0)
    assert sum(bucket.takes(1000.0) for _ in range(100)) == 5


def test_a_host_that_fails_waits_longer_each_time_and_is_given_up():
    delays = [restart_delay_s([0.0] * n, 1.0) for n in range(1, admission.FAILURES_LIMIT + 1)]
    assert delays[0] == admission.RESTART_FIRST_S
    assert delays[:-1] == sorted(delays[:-1])
    assert max(delays[:-1]) == admission.RESTART_LIMIT_S
    assert delays[-1] is None


def test_failures_of_long_ago_are_forgotten():
    long_ago = [0.0] * 9
    now_s = admission.FAILURES_WINDOW_S + 1
    assert restart_delay_s([*long_ago, now_s], now_s) == admission.RESTART_FIRST_S
