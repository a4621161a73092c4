"""What a ``/dnsaddr`` name stands for, whoever answers for it."""

from shoal.crypto.identity import generate
from shoal.node.addresses import DnsAddress, parse_bootstrap
from shoal.node.dnsaddr import (
    ADDRESSES_LIMIT,
    DEPTH_LIMIT,
    QUESTIONS_LIMIT,
    RECORDS_LIMIT,
    Unfolding,
)

ALICE, BOB = generate().peer_id, generate().peer_id
AT_ALICE = f"/ip4/192.0.2.1/tcp/4711/p2p/{ALICE}"
AT_BOB = f"/dns4/bob.example/tcp/4711/p2p/{BOB}"


def unfold(zone, name="shoal.example", peer=None):
    """What is found, and the questions that were asked."""
    unfolding, questions = Unfolding(DnsAddress(name, peer)), []
    while question := unfolding.question():
        questions.append(question)
        unfolding.answered(zone.get(question.removeprefix("_dnsaddr."), ()))
    return [str(address) for address in unfolding.found], questions, unfolding


def test_addresses_are_taken_in_the_order_of_the_records():
    zone = {"shoal.example": [f"dnsaddr={AT_BOB}", "v=spf1 -all", f"dnsaddr={AT_ALICE}"]}
    assert unfold(zone)[:2] == ([AT_BOB, AT_ALICE], ["_dnsaddr.shoal.example"])


def test_of_a_name_with_a_peer_id_that_peers_addresses_are_taken_alone():
    zone = {"shoal.example": [f"dnsaddr={AT_BOB}", f"dnsaddr={AT_ALICE}"]}
    assert unfold(zone, peer=ALICE)[0] == [AT_ALICE]


def test_names_lead_on_to_names_and_keep_the_peer_that_was_asked_for():
    zone = {
        "shoal.example": ["dnsaddr=/dnsaddr/eu.shoal.example"],
        "eu.shoal.example": [f"dnsaddr={AT_ALICE}", f"dnsaddr={AT_BOB}"],
    }
    assert unfold(zone)[0] == [AT_ALICE, AT_BOB]
    assert unfold(zone, peer=BOB)[0] == [AT_BOB]


def test_names_in_a_circle_come_to_an_end():
    zone = {
        "a.example": ["dnsaddr=/dnsaddr/b.example"],
        "b.example": ["dnsaddr=/dnsaddr/a.example", f"dnsaddr={AT_ALICE}"],
    }
    found, questions, _ = unfold(zone, "a.example")
    assert found == [AT_ALICE]
    assert len(questions) == 2


def test_names_are_followed_only_so_deep():
    zone = {
        f"n{depth}.example": [f"dnsaddr=/dnsaddr/n{depth + 1}.example"] for depth in range(20)
    }
    assert len(unfold(zone, "n0.example")[1]) == DEPTH_LIMIT


def test_neither_questions_nor_records_nor_addresses_are_without_end():
    wide = {"shoal.example": [f"dnsaddr=/dnsaddr/n{n}.example" for n in range(500)]}
    assert len(unfold(wide)[1]) == QUESTIONS_LIMIT
    many = [f"dnsaddr=/ip4/192.0.2.1/tcp/{port}/p2p/{ALICE}" for port in range(1, 500)]
    assert len(unfold({"shoal.example": many})[0]) == ADDRESSES_LIMIT
    late = {"shoal.example": [*(["x"] * RECORDS_LIMIT), f"dnsaddr={AT_ALICE}"]}
    assert unfold(late)[0] == []


def test_what_is_of_no_use_here_is_left_out_and_counted():
    zone = {
        "shoal.example": [
            f"dnsaddr=/ip4/192.0.2.1/udp/4001/quic-v1/p2p/{ALICE}",
            "dnsaddr=/ip4/192.0.2.1/tcp/4711",
            "dnsaddr=/ip4/192.0.2.1/tcp/4711/p2p/QmNotOfThisKind",
            "dnsaddr=" + "x" * 60_000,
        ]
    }
    found, _, unfolding = unfold(zone)
    assert (found, unfolding.unusable) == ([], 4)


def test_a_name_to_join_through_is_read_and_written_alike():
    for text in ("/dnsaddr/shoal.example", f"/dnsaddr/shoal.example/p2p/{ALICE}"):
        assert str(parse_bootstrap(text)) == text
