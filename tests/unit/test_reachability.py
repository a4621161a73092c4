import pytest

from shoal.crypto import identity
from shoal.crypto.envelope import Statement
from shoal.crypto.peer_id import PeerId
from shoal.node.introductions import may_dial
from shoal.protocol import reachability
from shoal.protocol.advertising import advertise, choose_introducers
from shoal.protocol.codec import encode
from shoal.protocol.device_offers import DeviceOffer
from shoal.protocol.limits import PROTOCOL_MAJOR, PROTOCOL_MINOR, VIA_LIMIT
from shoal.protocol.rates import Rates
from shoal.protocol.reachability import (
    Asking,
    Evidence,
    Report,
    Scope,
    Verdict,
    describe,
    group_of,
    judge,
    scope_of,
)
from shoal.protocol.reachability_messages import Outcome
from shoal.protocol.statements import Advert

OUTSIDE = "203.0.113.7"
INSIDE = "192.168.1.5"
PORT = 4711
WITNESSES = ("198.51.100.1", "192.0.2.1", "198.18.0.1")
LISTENING = ((INSIDE, PORT), ("127.0.0.1", PORT))


def report(ip, outcome=Outcome.WORKED, *, seen_as=OUTSIDE, shown=True, at_s=0.0, peer=None):
    came = frozenset({PORT}) if shown and outcome is Outcome.WORKED else frozenset()
    return Report(PeerId(peer or f"peer at {ip}"), ip, seen_as, ((PORT, outcome),), came, at_s)


def linked_to(reports):
    return {each.peer: each.ip for each in reports}


def judged(*reports, listening=LISTENING, linked=None):
    return judge(reports, listening, linked_to(reports) if linked is None else linked)


# --- addresses --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ip", "scope"),
    [
        ("127.0.0.9", Scope.LOOPBACK),
        ("::1", Scope.LOOPBACK),
        ("::ffff:127.0.0.1", Scope.LOOPBACK),
        ("10.1.2.3", Scope.LAN),
        ("172.31.0.1", Scope.LAN),
        ("100.64.0.1", Scope.LAN),
        ("fd00::1", Scope.LAN),
        ("fe80::1%2", Scope.LAN),
        ("172.32.0.1", Scope.INTERNET),
        (OUTSIDE, Scope.INTERNET),
        ("2001:db8::1", Scope.INTERNET),
    ],
)
def test_an_address_is_reached_from_as_far_as_its_range_says(ip, scope):
    assert scope_of(ip) is scope


def test_neighbours_on_the_internet_share_a_vote_and_neighbours_in_a_lan_do_not():
    assert group_of("198.51.100.1") == group_of("198.51.100.254")
    assert group_of("198.51.100.1") != group_of("198.51.101.1")
    assert group_of("2001:db8:1:2::3") == group_of("2001:db8:1:9::3")
    assert group_of("192.168.1.2") != group_of("192.168.1.3")


# --- verdicts ---------------------------------------------------------------------------


def test_two_votes_that_a_place_works_make_a_node_public():
    found = judged(*map(report, WITNESSES[:2]))
    assert found.verdict is Verdict.PUBLIC
    assert found.working == ((OUTSIDE, PORT),)
    assert found.sentence == f"public: 2 peers reached us at {OUTSIDE} port {PORT}"


@pytest.mark.parametrize(
    ("outcome", "says"),
    [
        (Outcome.REFUSED, "and port 4711 is refused there: open or forward it"),
        (Outcome.NO_ANSWER, "and port 4711 gives no answer there: open or forward it"),
        (Outcome.OTHER_PEER, "and something else answers at port 4711 there: "),
    ],
)
def test_a_blocked_node_is_told_how_many_peers_found_what_and_what_to_do(outcome, says):
    found = judged(*(report(ip, outcome) for ip in WITNESSES))
    assert found.verdict is Verdict.BLOCKED
    assert found.sentence.startswith(f"blocked: 3 peers see us come from {OUTSIDE}, {says}")


@pytest.mark.parametrize(
    "ips", [WITNESSES[:1], ("198.51.100.1", "198.51.100.2", "198.51.100.3")]
)
@pytest.mark.parametrize("outcome", [Outcome.WORKED, Outcome.REFUSED])
def test_peers_of_one_network_decide_nothing(ips, outcome):
    found = judged(*(report(ip, outcome) for ip in ips))
    assert found.verdict is Verdict.UNKNOWN
    assert "those of two must agree" in found.sentence


def test_peers_that_see_a_node_come_from_different_places_decide_nothing():
    found = judged(report(WITNESSES[0]), report(WITNESSES[1], seen_as="203.0.113.8"))
    assert found.verdict is Verdict.UNKNOWN
    assert "do not agree" in found.sentence


def test_a_success_whose_nonce_never_came_in_is_no_vote():
    found = judged(*(report(ip, shown=False) for ip in WITNESSES))
    assert found.verdict is Verdict.UNKNOWN
    assert not found.suspect


def test_a_peer_that_did_not_dial_has_no_vote():
    assert judged(*(report(ip, Outcome.NOT_DIALLED) for ip in WITNESSES)).verdict is (
        Verdict.UNKNOWN
    )


def test_a_network_whose_peers_disagree_has_no_vote():
    found = judged(
        report("198.51.100.1"), report("198.51.100.2", Outcome.REFUSED), report(WITNESSES[1])
    )
    assert found.verdict is Verdict.UNKNOWN


def test_as_many_votes_against_as_for_decide_nothing():
    ips = (*WITNESSES, "198.18.9.1")
    outcomes = (Outcome.WORKED, Outcome.WORKED, Outcome.REFUSED, Outcome.REFUSED)
    found = judged(*map(report, ips, outcomes))
    assert (found.verdict, found.working, found.failing) == (Verdict.UNKNOWN, (), ())


def test_a_node_that_only_its_own_network_reaches_is_private():
    near = [report(f"192.168.1.{host}", seen_as=INSIDE) for host in (2, 3)]
    found = judged(*near)
    assert found.verdict is Verdict.PRIVATE
    assert found.sentence == (
        f"private: only addresses of this machine's own network answer, {INSIDE} port {PORT}"
    )
    found = judged(*near, *(report(ip, Outcome.REFUSED) for ip in WITNESSES))
    assert found.verdict is Verdict.PRIVATE
    assert f"3 peers see us come from {OUTSIDE}, and port 4711 is refused" in found.sentence


def test_a_node_with_an_address_on_the_internet_is_not_private_before_that_was_dialled():
    near = [report(f"192.168.1.{host}", seen_as=INSIDE) for host in (2, 3)]
    found = judged(*near, listening=((INSIDE, PORT), (OUTSIDE, PORT)))
    assert found.verdict is Verdict.UNKNOWN
    assert "nobody outside" in found.sentence


def test_a_port_closed_within_the_own_network_is_to_be_opened_and_not_forwarded():
    found = judged(
        *(report(f"10.0.0.{n}", Outcome.NO_ANSWER, seen_as="10.0.0.9") for n in (1, 2))
    )
    assert found.verdict is Verdict.BLOCKED
    assert found.sentence.endswith("gives no answer there: open it")


def test_a_node_that_listens_on_loopback_alone_says_so():
    loopback = (("127.0.0.1", PORT),)
    here = judged(listening=loopback, linked={PeerId("near"): "127.0.0.1"})
    assert here.verdict is Verdict.PRIVATE
    assert "listens on loopback only" in here.sentence
    assert not here.suspect
    assert judged(listening=loopback, linked={PeerId("far"): WITNESSES[0]}).suspect


def test_a_node_that_listens_nowhere_says_so():
    found = judged(listening=(), linked={PeerId("far"): WITNESSES[0]})
    assert (found.verdict, found.suspect) == (Verdict.PRIVATE, True)
    assert "listens nowhere" in found.sentence


@pytest.mark.parametrize(
    ("linked", "says"),
    [
        ({}, "no peer is linked"),
        ({PeerId("near"): "127.0.0.1"}, "every linked peer is on this machine"),
        ({PeerId("far"): WITNESSES[0]}, "no peer has dialled this node back yet"),
    ],
)
def test_a_node_without_evidence_says_what_is_wanting(linked, says):
    found = judged(linked=linked)
    assert found.verdict is Verdict.UNKNOWN
    assert says in found.sentence


# --- evidence ---------------------------------------------------------------------------


def test_reports_age_out_and_a_peers_newer_one_takes_the_place_of_its_last():
    evidence = Evidence()
    evidence.note(report(WITNESSES[0], Outcome.REFUSED, at_s=0.0))
    evidence.note(report(WITNESSES[0], at_s=1.0))
    evidence.note(report(WITNESSES[1], at_s=2.0))
    assert [each.at_s for each in evidence.at(3.0)] == [2.0, 1.0]
    assert [each.at_s for each in evidence.at(1.0 + reachability.REPORT_LIFETIME_S)] == [2.0]
    evidence.forget()
    assert evidence.at(3.0) == ()


def test_a_peer_that_spares_itself_a_dial_takes_back_nothing_that_it_found():
    evidence = Evidence()
    evidence.note(report(WITNESSES[0], at_s=0.0))
    evidence.note(report(WITNESSES[0], Outcome.NOT_DIALLED, at_s=1.0))
    assert [each.at_s for each in evidence.at(2.0)] == [0.0]
    moved = report(WITNESSES[0], Outcome.NOT_DIALLED, seen_as="203.0.113.8", at_s=2.0)
    evidence.note(moved)
    assert evidence.at(3.0) == (moved,)


def test_evidence_is_bounded_and_the_oldest_goes_first():
    evidence = Evidence()
    for number in range(reachability.REPORTS_LIMIT + 3):
        evidence.note(report(WITNESSES[0], at_s=float(number), peer=f"peer {number}"))
    kept = evidence.at(100.0)
    assert len(kept) == reachability.REPORTS_LIMIT
    assert kept[-1].at_s == 3.0


def test_a_line_of_evidence_tells_who_where_when_and_what():
    line = describe(report(WITNESSES[0], Outcome.REFUSED, at_s=10.0), now_s=52.0)
    for part in ("peer at 198.51.100.1", "42 s ago", OUTSIDE, "port 4711 is refused"):
        assert part in line
    assert "nothing came in" in describe(report(WITNESSES[0], shown=False), now_s=1.0)


# --- what is advertised -------------------------------------------------------------------

HELPERS = (PeerId("one"), PeerId("two"))


def advertised(*reports, listening=LISTENING, linked=None):
    linked = linked_to(reports) if linked is None else linked
    return advertise(judge(reports, listening, linked), reports, listening, linked, HELPERS)


def test_while_nothing_is_known_all_that_is_listened_on_is_advertised():
    assert advertised(linked={PeerId("far"): WITNESSES[0]}).places == LISTENING
    assert advertised(linked={}).via == ()


@pytest.mark.parametrize("listening", [LISTENING, (("127.0.0.1", PORT),)])
@pytest.mark.parametrize("linked", [{}, {PeerId("near"): "127.0.0.1"}])
def test_a_swarm_on_loopback_advertises_what_it_always_has(listening, linked):
    found = advertised(listening=listening, linked=linked)
    assert (found.places, found.via) == (listening, ())


def test_a_public_node_advertises_what_worked_and_names_no_introducer():
    found = advertised(*map(report, WITNESSES), report("192.168.1.2", seen_as=INSIDE))
    assert (found.places, found.via) == (((OUTSIDE, PORT), (INSIDE, PORT)), ())


def test_a_blocked_node_advertises_its_own_networks_addresses_and_who_introduces():
    found = advertised(*(report(ip, Outcome.REFUSED) for ip in WITNESSES))
    assert (found.places, found.via) == (((INSIDE, PORT),), HELPERS)


def test_an_address_that_failed_is_not_advertised():
    reports = [report(ip, Outcome.NO_ANSWER) for ip in WITNESSES]
    found = advertised(*reports, listening=((OUTSIDE, PORT), ("2001:db8::1", PORT)))
    assert found.places == (("2001:db8::1", PORT),)


def test_loopback_stays_advertised_while_a_linked_peer_is_on_this_machine():
    reports = [report(ip, Outcome.REFUSED) for ip in WITNESSES]
    found = advertised(*reports, linked=linked_to(reports) | {PeerId("n"): "127.0.0.1"})
    assert found.places == LISTENING


def test_a_single_report_against_a_node_names_introducers_and_takes_no_address_away():
    found = advertised(report(WITNESSES[0], Outcome.REFUSED))
    assert (found.places, found.via) == (LISTENING, HELPERS)


def test_introducers_are_dialled_peers_from_afar_first_and_stay_while_they_are_linked():
    near, far, other, local = map(PeerId, ("near", "far", "other", "local"))
    linked = {near: "10.0.0.2", far: WITNESSES[0], other: WITNESSES[1], local: "127.0.0.1"}
    assert choose_introducers(linked, linked, ()) == (far, other, near)
    assert choose_introducers(linked, iter((near, other, PeerId("unlinked"))), ()) == (
        other,
        near,
    )
    assert choose_introducers(linked, linked, (near,)) == (near, far, other)
    assert choose_introducers(linked, linked, (PeerId("gone"),)) == (far, other, near)
    many = {PeerId(f"p{n}"): WITNESSES[0] for n in range(9)}
    assert len(choose_introducers(many, many, ())) == VIA_LIMIT


def test_the_advert_of_a_node_that_cannot_be_dialled_stays_within_a_kilobyte():
    key = identity.generate()
    peers = tuple(identity.generate().peer_id for _ in range(VIA_LIMIT))
    advert = Advert(
        peer=key.peer_id,
        sequence=1 << 41,
        issued_at_ms=1 << 41,
        lifetime_s=3600.0,
        protocol=(PROTOCOL_MAJOR, PROTOCOL_MINOR),
        agent="shoal/0.1.0",
        addresses=("/ip4/192.168.100.200/tcp/54711",),
        devices=(
            DeviceOffer(
                id="cpu",
                kind="cpu",
                name="x" * 48,
                memory_bytes=1 << 40,
                executors=("exact", "onnxruntime"),
            ),
        ),
        numeric_classes=("exact", "fp32"),
        providing=True,
        via=peers,
    )
    assert len(key.sign(Statement.ADVERT, encode(advert))) <= 1024


# --- whom to ask ----------------------------------------------------------------------------

SOON = reachability.ROUND_INTERVAL_S


def choose(asking, ips, now_s, verdict=Verdict.UNKNOWN, since_s=0.0):
    linked = {PeerId(f"{n} at {ip}"): (ip, since_s) for n, ip in enumerate(ips)}
    return [peer.rpartition(" ")[2] for peer in asking.choose(linked, verdict, now_s)]


def test_peers_of_different_networks_are_asked_first_and_three_at_once():
    ips = ["198.51.100.1", "198.51.100.2", "198.51.100.3", "192.0.2.1", "198.18.0.1"]
    asking = Asking()
    assert set(choose(asking, ips, 0.0)) == {"198.51.100.1", "192.0.2.1", "198.18.0.1"}
    assert choose(asking, ips, SOON - 0.1) == []
    assert set(choose(asking, ips, SOON)) == {"198.51.100.2", "198.51.100.3"}
    assert choose(asking, ips, 2 * SOON) == []
    assert len(choose(asking, ips, reachability.PEER_INTERVAL_S)) == 3


def test_nobody_on_this_machine_is_asked():
    assert choose(Asking(), ["127.0.0.1", "127.0.0.2", "::1"], 0.0) == []


def test_after_a_verdict_peers_are_asked_slowly():
    asking = Asking()
    assert choose(asking, WITNESSES, 0.0)
    settled_s = reachability.SETTLED_INTERVAL_S
    for now_s in (SOON, reachability.PEER_INTERVAL_S, settled_s - 1):
        assert choose(asking, WITNESSES, now_s, Verdict.PUBLIC) == []
    assert len(choose(asking, WITNESSES, settled_s, Verdict.PUBLIC)) == 3


def test_a_peer_that_was_linked_anew_is_asked_again_after_a_verdict_too():
    asking = Asking()
    choose(asking, WITNESSES, 0.0)
    now_s = reachability.PEER_INTERVAL_S
    assert len(choose(asking, WITNESSES, now_s, Verdict.PUBLIC, since_s=now_s - 1)) == 3


def test_a_node_that_has_moved_asks_everybody_again_in_its_next_round():
    asking = Asking()
    choose(asking, WITNESSES, 0.0)
    asking.start_over()
    assert choose(asking, WITNESSES, SOON - 0.1) == []
    assert len(choose(asking, WITNESSES, SOON)) == 3


# --- limits -----------------------------------------------------------------------------------


def test_a_rate_admits_its_burst_and_then_its_average():
    rates = Rates(per_s=0.5, burst=3.0)
    assert [rates.admits("a", 0.0) for _ in range(5)] == [True] * 3 + [False] * 2
    assert rates.admits("b", 0.0)
    assert not rates.admits("a", 1.9)
    assert rates.admits("a", 4.0)


def test_made_up_keys_neither_grow_a_rate_nor_push_out_who_is_being_counted():
    rates = Rates(per_s=0.01, burst=2.0, keys_limit=10)
    assert rates.admits("a", 0.0)
    assert rates.admits("a", 0.0)
    admitted = sum(rates.admits(f"made up {n}", 0.0) for n in range(1000))
    assert admitted == 9
    assert not rates.admits("a", 0.0)
    assert len(rates._buckets) == 10
    assert rates.admits("late", 1000.0)  # by then all buckets are full, and forgotten


# --- introductions -------------------------------------------------------------------------

EVERYWHERE = (
    "/ip4/127.0.0.1/tcp/22",
    "/ip4/192.168.1.1/tcp/80",
    f"/ip4/{OUTSIDE}/tcp/4711",
    "/dns4/router.example/tcp/80",
    "nonsense",
)


@pytest.mark.parametrize(
    ("introducer", "dialled"),
    [
        (WITNESSES[0], EVERYWHERE[2:3]),
        ("192.168.1.9", EVERYWHERE[1:3]),
        ("127.0.0.1", EVERYWHERE[:3]),
    ],
)
def test_nothing_nearer_than_the_introducer_is_dialled_for_it(introducer, dialled):
    assert may_dial(EVERYWHERE, introducer) == list(dialled)
