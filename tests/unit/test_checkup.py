"""What is said of what was found; the checks themselves are tested end to end."""

from types import SimpleNamespace

import pytest

import shoal
from shoal.node.cli.checkup.bootstrap import Clock, Stage, Visit
from shoal.node.cli.checkup.findings import failure, ok, summary, warning, without_circle
from shoal.node.cli.checkup.listening import bulk
from shoal.node.cli.checkup.patient import Patient
from shoal.node.cli.checkup.peers import bootstrap, judge_clock, links, views
from shoal.node.cli.checkup.work import daemon, served
from shoal.node.cli.owner import serves_text
from shoal.node.config import locate
from shoal.node.status_views import OwnerView, Status
from shoal.protocol.limits import PROTOCOL_MAJOR, PROTOCOL_MINOR

ADDRESS = "/ip4/192.0.2.7/tcp/4711/p2p/12D3KooWHn3bA8p3tDoZbEjJujVbkLo1t8uSprj4caNCTZZXm7ii"


def status(**fields):
    required = Status.__struct_fields__[: -len(Status.__struct_defaults__)]
    zeros = dict.fromkeys(required, 0)
    return Status(**zeros | {"home": "/", "addresses": (), "version": "0"} | fields)


def patient(running=None):
    return Patient(locate({"home": "/nonexistent"}, {}), status=running)


def clocks(*ahead_s):
    return [Clock(f"12D3KooWpeer{n:08}", each_s) for n, each_s in enumerate(ahead_s)]


def test_the_summary_counts_and_begins_with_the_first_failure():
    found = [ok("a", "."), warning("b", ".", "mend b"), failure("c", ".", "mend c")]
    assert summary(found) == "1 failure, 1 warning: begin with c: mend c"
    assert summary(found[:2] * 2) == "2 warnings: begin with b: mend b"
    assert summary(found[:1]) == "all is well"


@pytest.mark.parametrize(
    ("hint", "kept"),
    [
        ("see its log; `shoal doctor` looks for causes", "see its log"),
        ("`shoal doctor` checks what it needs", ""),
        ("run `shoal init`", "run `shoal init`"),
    ],
)
def test_a_hint_never_sends_the_reader_in_a_circle(hint, kept):
    assert without_circle(hint) == kept


def test_a_clock_that_the_peers_agree_with_is_well_whoever_else_is_off():
    found = judge_clock(clocks(0.1, -2, 3600, 1), None)
    assert found.verdict == "ok"
    assert "as with 3 of 4 peers" in found.message
    assert "…00000002's is 1 h 0 min behind" in found.message


@pytest.mark.parametrize(
    ("ahead_s", "verdict", "how"),
    [
        (45, "warning", "45.0 s ahead"),
        (-45, "warning", "45.0 s behind"),
        (3600, "failure", "1 h 0 min ahead"),
        (-90000, "failure", "1 d 1 h behind"),
    ],
)
def test_a_clock_that_most_peers_contradict_is_wrong(ahead_s, verdict, how):
    found = judge_clock(clocks(ahead_s, ahead_s, 0), None)
    assert found.verdict == verdict
    how += " of" if ahead_s > 0 else ""
    assert found.message == f"this machine's clock is {how} those of 2 of 3 peers"
    assert "NTP" in found.hint


def test_with_one_peer_only_the_system_can_tell_whose_clock_is_wrong():
    unknown = judge_clock(clocks(-3600), None)
    assert unknown.verdict == "failure"
    assert "clock is 1 h 0 min behind that of …00000000, the one peer" in unknown.message
    assert unknown.message.endswith("one of the two is wrong")
    kept = judge_clock(clocks(-3600), True)
    assert kept.verdict == "warning"
    assert "likely the peer's that is wrong" in kept.message


def test_without_peers_it_is_said_whether_the_clock_is_kept_in_step():
    assert "nothing keeps it in step" in judge_clock([], False).message
    assert "the system keeps it in step" in judge_clock([], True).message
    assert "no peer was there" in judge_clock([], None).message


def test_a_peer_that_is_off_is_a_warning_while_another_answers_and_a_wrong_id_never_is():
    off, wrong, well = (
        Visit(ADDRESS, Stage.CONNECT, "connection refused", "hint"),
        Visit(ADDRESS, Stage.HANDSHAKE, "another peer answers there", "hint"),
        Visit(ADDRESS, agent="shoal/1", protocol=(1, 1), nodes=3),
    )

    def verdicts(visits, running=None):
        return [each.verdict for each in bootstrap(patient(running), visits)]

    assert verdicts([off]) == ["failure"]
    assert verdicts([off, well]) == ["warning", "ok"]
    assert verdicts([off], status(peers_linked=2)) == ["warning"]
    assert verdicts([wrong, well]) == ["failure", "ok"]


def test_a_bootstrap_peer_that_does_not_list_this_node_is_told_once_it_should():
    visit = Visit(ADDRESS, nodes=1, clocks=tuple(clocks(0.0)))
    for uptime_s, verdict in ((3600.0, "warning"), (1.0, "ok")):
        (found,) = bootstrap(patient(status(uptime_s=uptime_s, peer="other")), [visit])
        assert found.verdict == verdict
    assert (
        "this one is not among them"
        in next(bootstrap(patient(status(uptime_s=3600.0, peer="other")), [visit])).message
    )
    (found,) = bootstrap(patient(status(uptime_s=3600.0, peer=clocks(0.0)[0].peer)), [visit])
    assert found.message.endswith("it lists 1 node, this one among them")


def test_a_daemon_of_another_version_is_to_be_restarted():
    of_command = {
        "version": shoal.__version__,
        "protocol_version": PROTOCOL_MAJOR,
        "protocol_minor": PROTOCOL_MINOR,
    }
    (_, version) = daemon(patient(status(**of_command)))
    assert version.verdict == "ok"
    (_, version) = daemon(patient(status(**of_command | {"protocol_minor": 99})))
    assert version.verdict == "warning"
    (_, version) = daemon(patient(status(version="0.0.1", protocol_version=1)))
    assert version.verdict == "warning"
    assert (
        "the daemon runs shoal 0.0.1 (protocol 1.0), and this command is of" in version.message
    )
    assert "restart the daemon" in version.hint


def test_the_port_of_large_blobs_is_told_and_that_there_is_none():
    (found,) = bulk(patient(status(bulk=5711, bulk_announced="shoal.example:5712")))
    assert (found.verdict, found.message) == (
        "ok",
        "port 5711, which peers are told to dial at shoal.example:5712",
    )
    (found,) = bulk(patient(status(bulk=0)))
    assert found.verdict == "warning"
    assert 'bulk = "off"' in found.hint


def test_a_daemon_without_links_is_told_by_whether_a_bootstrap_peer_answers():
    alone = patient(status())
    assert "no bootstrap peer is set" in next(links(alone, [])).message
    well = Visit(ADDRESS)
    assert "though a bootstrap peer answers" in next(links(alone, [well])).message
    bad = Visit(ADDRESS, Stage.CONNECT, ".", ".")
    assert "no bootstrap peer can be joined" in next(links(alone, [bad])).message


def test_what_the_daemon_says_of_joining_and_of_being_reached_is_shown():
    seed = SimpleNamespace(text="/dnsaddr/x", source="setting", linked=False, error="no record")
    told = SimpleNamespace(
        joining=SimpleNamespace(sentence="alone: …", seeds=[seed], lan="2 heard"),
        reachability=SimpleNamespace(
            verdict="blocked", sentence="blocked: …", evidence=["a"] * 9
        ),
    )
    assert [(each.check, each.verdict, each.message) for each in views(patient(told))] == [
        ("joining", "warning", "alone: …"),
        ("joining", "warning", "/dnsaddr/x (setting): no record"),
        ("lan", "ok", "2 heard"),
        ("reached", "warning", "blocked: …; a; a; a"),
    ]


def test_while_there_is_a_link_no_place_that_fails_is_told():
    seed = SimpleNamespace(text="/ip4/…", source="remembered", linked=False, error="refused")
    linked = SimpleNamespace(
        joining=SimpleNamespace(sentence="", seeds=[seed], lan=""), reachability=None
    )
    assert list(views(patient(linked))) == []


def test_views_that_a_daemon_does_not_give_are_left_out():
    assert list(views(patient(status()))) == []
    assert list(views(patient())) == []


def owner(**fields):
    usual = {"provide": True, "serve": "anyone", "sandboxed": True, "allowed": 0, "denied": 0}
    rest = {"min_price": 0.0, "cores": 2, "memory_bytes": 1, "stances": ()}
    return OwnerView(**usual | rest | fields)


def test_friends_alone_and_none_of_them_is_a_warning_with_the_command_that_lets_one_in():
    (found,) = served(patient(status(owner=owner(serve="friends"))))
    assert (found.verdict, found.check) == ("warning", "serves")
    assert "nobody but this node's own user" in found.message
    assert "`shoal allow PEER_ID`" in found.hint
    assert "nobody but its own user" in serves_text(owner(serve="friends"))
    assert "`shoal allow PEER_ID`" in serves_text(owner(serve="friends"))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "anyone, strangers in a sandbox"),
        ({"serve": "friends", "allowed": 1}, "1 allowed peer"),
        (
            {"serve": "those-who-serve", "allowed": 2},
            "those who serve, and 2 allowed peers, strangers in a sandbox",
        ),
        (
            {"sandboxed": False, "denied": 1},
            "0 allowed peers; strangers once its worker is locked in a sandbox; 1 denied",
        ),
        ({"provide": False, "serve": "friends"}, "its own user only (`provide = false`)"),
    ],
)
def test_whom_a_node_serves_is_told_as_it_is_set(fields, text):
    assert serves_text(owner(**fields)) == text
    verdicts = [found.verdict for found in served(patient(status(owner=owner(**fields))))]
    assert verdicts == ["ok", *(["warning"] * (fields.get("sandboxed") is False))]
