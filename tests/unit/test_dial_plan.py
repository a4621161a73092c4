"""In which order addresses are dialled, and when."""

import ipaddress

from shoal.crypto.identity import generate
from shoal.node.addresses import Address
from shoal.node.dial_plan import (
    ADDRESSES_LIMIT,
    ATTEMPTS_AT_ONCE,
    PEERS_LIMIT,
    STAGGER_S,
    DialBook,
    Race,
    Tried,
    order,
)

PEER = generate().peer_id
OWN = [
    ipaddress.ip_interface("127.0.0.1/8"),
    ipaddress.ip_interface("192.168.7.5/24"),
    ipaddress.ip_interface("fd00::5/64"),
]
LOOPBACK = Address("ip4", "127.0.0.1", 1)
NEAR = Address("ip4", "192.168.7.9", 1)
PUBLIC = Address("ip4", "8.8.8.8", 1)
PUBLIC_6 = Address("ip6", "2600::1", 1)
PUBLIC_6B = Address("ip6", "2600::2", 1)
ELSEWHERE = Address("ip4", "10.1.2.3", 1)
NAME = Address("dns4", "shoal.example", 1)


def test_near_addresses_go_first_then_public_ones_then_private_ones_of_other_networks():
    assert order([ELSEWHERE, NAME, PUBLIC, NEAR], OWN) == [NEAR, PUBLIC, NAME, ELSEWHERE]


def test_loopback_of_another_machine_is_left_out():
    assert order([LOOPBACK, PUBLIC], OWN) == [PUBLIC]


def test_loopback_goes_first_to_a_peer_on_this_machine():
    here = Address("ip4", "192.168.7.5", 1)
    assert order([here, LOOPBACK], OWN) == [LOOPBACK, here]


def test_a_peer_on_loopback_alone_is_dialled_there():
    assert order([LOOPBACK], OWN) == [LOOPBACK]


def test_an_address_that_means_nothing_here_is_dialled_only_where_there_is_no_other():
    link_local = Address("ip6", "fe80::1", 1)
    assert order([link_local, PUBLIC], OWN) == [PUBLIC]
    assert order([link_local], OWN) == [link_local]


def test_what_led_to_the_peer_last_time_goes_before_everything():
    tried = {ELSEWHERE: Tried(worked_at_s=9.0, failed_at_s=3.0)}
    assert order([NEAR, PUBLIC, ELSEWHERE], OWN, tried)[0] == ELSEWHERE


def test_what_worked_once_and_has_failed_since_does_not():
    tried = {ELSEWHERE: Tried(worked_at_s=3.0, failed_at_s=9.0)}
    assert order([NEAR, PUBLIC, ELSEWHERE], OWN, tried) == [NEAR, PUBLIC, ELSEWHERE]


def test_of_equals_the_one_that_failed_last_goes_last():
    other = Address("ip4", "9.9.9.9", 1)
    tried = {PUBLIC: Tried(failed_at_s=5.0), other: Tried(failed_at_s=2.0)}
    assert order([PUBLIC, other], OWN, tried) == [other, PUBLIC]


def test_the_families_take_turns():
    assert order([PUBLIC_6, PUBLIC_6B, PUBLIC], OWN) == [PUBLIC_6, PUBLIC, PUBLIC_6B]


def test_a_node_in_an_overlay_network_reaches_others_of_it_first():
    mesh = Address("ip4", "100.101.1.1", 1)
    own = [*OWN, ipaddress.ip_interface("100.90.0.1/32")]
    assert order([PUBLIC, mesh], own) == [mesh, PUBLIC]
    assert order([PUBLIC, mesh], OWN) == [PUBLIC, mesh]


def test_no_more_addresses_are_dialled_than_the_limit():
    many = [Address("ip4", "8.8.8.8", port) for port in range(1, 100)]
    assert len(order(many, OWN)) == ADDRESSES_LIMIT


# --- the race ---


def places(count):
    return [Address("ip4", "8.8.8.8", port) for port in range(1, count + 1)]


def test_the_next_attempt_begins_while_the_first_is_not_answered():
    race = Race(places(2), 0.0, 5.0)
    assert race.due(0.0) == (places(2)[0], 5.0)
    assert race.due(0.0) is None
    assert race.wake_at_s(0.0) == STAGGER_S
    assert race.due(STAGGER_S) == (places(2)[1], 5.0 - STAGGER_S)


def test_a_failure_lets_the_next_begin_at_once():
    race = Race(places(2), 0.0, 5.0)
    race.due(0.0)
    race.failed(0.01)
    assert race.due(0.01)[0] == places(2)[1]


def test_a_race_is_over_when_the_last_attempt_has_failed():
    race = Race(places(1), 0.0, 5.0)
    assert not race.over(0.0)
    race.due(0.0)
    assert not race.over(0.0)
    race.failed(1.0)
    assert race.over(1.0)


def test_nothing_is_begun_when_the_time_is_over():
    race = Race(places(2), 0.0, 5.0)
    race.due(0.0)
    assert race.due(5.0) is None
    assert not race.over(5.0), "one is dialled still"
    race.failed(5.0)
    assert race.over(5.0)


def test_attempts_at_once_are_few_and_all_addresses_get_their_turn():
    race = Race(places(ADDRESSES_LIMIT), 0.0, 5.0)
    now_s, running, begun = 0.0, [], []
    while now_s < 5.0:
        for ends_at_s in [at for at in running if at <= now_s]:
            running.remove(ends_at_s)
            race.failed(now_s)
        while due := race.due(now_s):
            begun.append(due[0])
            running.append(now_s + due[1])  # a black hole: it takes what it is given
        assert len(running) <= ATTEMPTS_AT_ONCE
        now_s += 0.05
    assert begun == places(ADDRESSES_LIMIT)


def test_what_a_name_stands_for_joins_a_race_once():
    race = Race(places(1), 0.0, 5.0)
    race.add(places(2))
    assert [race.due(0.0)[0], race.due(1.0)[0], race.due(2.0)] == [*places(2), None]


# --- the book ---


def test_the_book_tells_what_worked_and_why_the_last_attempt_failed():
    book = DialBook()
    book.worked(PEER, PUBLIC, 1.0)
    assert (book.of(PEER).worked, book.of(PEER).failure) == (PUBLIC, "")
    book.missed(PEER, PUBLIC, 2.0)
    book.failed(PEER, "nobody answers", 2.0)
    record = book.of(PEER)
    assert (record.worked, record.failure, record.at_s) == (PUBLIC, "nobody answers", 2.0)
    assert not record.tried[PUBLIC].worked_last


def test_the_book_is_bounded_in_peers_and_in_addresses():
    book = DialBook()
    for number in range(PEERS_LIMIT + 5):
        book.failed(f"peer {number}", "no", 1.0)
    assert book.of("peer 4").failure == ""
    assert book.of("peer 5").failure == "no"
    for address in places(100):
        book.missed(PEER, address, 1.0)
    assert list(book.of(PEER).tried) == places(100)[-ADDRESSES_LIMIT:]
    for address in places(100):
        book.worked(PEER, address, 2.0)
    assert len(book.of(PEER).tried) <= ADDRESSES_LIMIT
