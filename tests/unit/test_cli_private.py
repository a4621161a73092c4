"""``shoal invite``, ``join`` and ``leave`` on homes whose daemons do not run."""

import io
import json
import logging
import stat

import pytest

from shoal.node.cli import main, private
from shoal.node.cli.checkup import machine
from shoal.node.cli.checkup.patient import Patient
from shoal.node.cli.options import Daemon
from shoal.node.config import load, locate
from shoal.node.invitation import read_token
from shoal.node.status_views import Status
from shoal.node.swarm_key import SwarmKey, load_key, make_key, save_new_key

ADDRESS = "/ip4/192.0.2.7/tcp/4711"


@pytest.fixture(autouse=True)
def homes(tmp_path, monkeypatch):
    for name in ("SHOAL_SOCKET", "SHOAL_HOME", "XDG_RUNTIME_DIR", "LIBP2P_FORCE_PNET"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "first", tmp_path / "second"


@pytest.fixture
def first(homes):
    return homes[0]


@pytest.fixture
def second(homes):
    return homes[1]


@pytest.fixture
def shoal(capfd):
    """Run a command for a home; gives its exit code, stdout and stderr."""

    def run(home, *arguments):
        code = main([*map(str, arguments), f"--home={home}"])
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def token(shoal, first):
    code, out, _ = shoal(first, "invite", "--name", "lab", "--address", ADDRESS)
    assert code == 0
    return out.strip()


def key_of(home):
    return load_key(home / "swarm.key", {})


def test_an_invitation_makes_the_network_and_is_one_line_on_stdout(shoal, first):
    code, out, err = shoal(first, "invite", "--name", "lab", "--address", ADDRESS)
    assert (code, out.count("\n")) == (0, 1)
    assert "made the private network lab" in err
    assert "whoever has this line can join lab" in err
    assert "next: start the daemon with `shoal up" in err
    invited = read_token(out)
    assert (invited.name, invited.secret) == ("lab", key_of(first).secret)
    peer = json.loads(shoal(first, "identity", "show", "--json")[1])["peer"]
    assert invited.bootstrap == (f"{ADDRESS}/p2p/{peer}",)
    assert stat.S_IMODE((first / "swarm.key").stat().st_mode) == 0o600


def test_a_second_invitation_is_to_the_same_network(shoal, first, token):
    code, out, err = shoal(first, "invite", "--address", ADDRESS)
    assert (code, out.strip()) == (0, token)
    assert "made" not in err


def test_an_invitation_under_another_name_is_refused(shoal, first, token):
    code, out, err = shoal(first, "invite", "--name", "den", "--json")
    assert (code, json.loads(out)["error"]["code"]) == (1, "network_exists")
    assert "private network lab already" in err
    assert key_of(first).name == "lab"


def test_a_name_that_would_mislead_makes_no_network(shoal, first):
    code, _, err = shoal(first, "invite", "--name", "public", "--address", ADDRESS)
    assert code == 2
    assert "next: " in err
    assert key_of(first) is None


def test_without_a_daemon_the_addresses_come_from_the_settings(shoal, first):
    first.mkdir()
    (first / "config.toml").write_text('listen = ["/ip4/192.0.2.9/tcp/77"]')
    told = json.loads(shoal(first, "invite", "--json")[1])
    assert told["made"]
    assert not told["restart_needed"]
    (address,) = told["addresses"]
    assert address.startswith("/ip4/192.0.2.9/tcp/77/p2p/12D3KooW")
    assert told["token"].startswith("shoal1_")


def test_loopback_is_given_only_where_there_is_nothing_else(shoal, first):
    first.mkdir()
    for listen, wanted in (
        ('["/ip4/127.0.0.1/tcp/77", "/ip4/192.0.2.9/tcp/78"]', ["78"]),
        ('["/ip4/127.0.0.1/tcp/77"]', ["77"]),
    ):
        (first / "config.toml").write_text(f"listen = {listen}")
        told = json.loads(shoal(first, "invite", "--json")[1])
        assert [address.split("/")[4] for address in told["addresses"]] == wanted


def test_an_invitation_that_leads_nowhere_is_not_made(shoal, first):
    first.mkdir()
    (first / "config.toml").write_text('listen = ["/ip4/0.0.0.0/tcp/0"]')
    code, out, err = shoal(first, "invite")
    assert (code, out) == (1, "")
    assert "say where with --address" in err
    assert key_of(first) is None


def test_an_address_of_another_node_is_refused(shoal, first, second):
    other = json.loads(shoal(second, "init", "--json")[1])["peer"]
    code, _, err = shoal(first, "invite", "--address", f"{ADDRESS}/p2p/{other}")
    assert code == 2
    assert "names another node" in err


@pytest.mark.parametrize("how", ["argument", "standard input"])
def test_who_joins_has_name_secret_and_addresses(shoal, first, second, token, how, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{token}\n"))
    code, out, err = shoal(second, "join", token if how == "argument" else "-")
    assert code == 0
    assert "lab (private, fingerprint " in out
    assert "next: start the daemon with `shoal up" in err
    assert key_of(second) == read_token(token)
    assert stat.S_IMODE((second / "swarm.key").stat().st_mode) == 0o600
    assert token not in out + err
    assert key_of(second).secret.hex() not in out + err


def test_a_token_typed_at_a_terminal_is_not_echoed(shoal, second, token, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", terminal)
    monkeypatch.setattr(private, "getpass", lambda _prompt: token)
    assert shoal(second, "join", "-")[0] == 0
    assert key_of(second).name == "lab"


def test_joining_again_adds_addresses_and_keeps_the_rest(shoal, first, second, token):
    shoal(second, "join", token)
    more = shoal(first, "invite", "--address", "/dns4/shoal.example/tcp/1")[1].strip()
    told = json.loads(shoal(second, "join", more, "--json")[1])
    assert (told["was_member"], told["put_aside"]) == (True, None)
    assert [one.partition("/p2p/")[0] for one in key_of(second).bootstrap] == [
        "/dns4/shoal.example/tcp/1",
        ADDRESS,
    ]


def test_a_node_never_bootstraps_to_itself(shoal, first, token):
    assert shoal(first, "join", token)[0] == 0
    assert key_of(first).bootstrap == ()


def test_another_network_is_joined_only_when_told_so_and_the_old_secret_is_kept(
    shoal, second, token
):
    second.mkdir(mode=0o700)
    old = make_key("old")
    save_new_key(old, second / "swarm.key")
    code, out, err = shoal(second, "join", token, "--json")
    assert (code, json.loads(out)["error"]["code"]) == (1, "network_exists")
    assert "private network old" in err
    assert "--replace" in err
    assert key_of(second) == old
    told = json.loads(shoal(second, "join", token, "--replace", "--json")[1])
    assert key_of(second).name == "lab"
    assert load_key(second.parent / told["put_aside"], {}) == old


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda token: token[:100], "token_cut"),
        (
            lambda token: token[:50] + ("a" if token[50] != "a" else "b") + token[51:],
            "token_dam",
        ),
        (lambda token: token.replace("1_", "2_"), "token_version"),
        (lambda token: token.replace("_", "_0"), "token_alphabet"),
        (lambda token: token[9:], "token_malformed"),
        (lambda _token: "-", "token_malformed"),
    ],
    ids=["cut", "changed", "version", "base", "beginning", "nothing on stdin"],
)
def test_a_spoilt_token_is_refused_by_name_and_changes_nothing(
    shoal, second, token, spoil, code, monkeypatch
):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    exit_code, out, err = shoal(second, "join", spoil(token), "--json")
    error = json.loads(out)["error"]
    assert (exit_code, error["code"][: len(code)]) == (1, code)
    assert error["hint"]
    assert token[20:40] not in out + err
    assert not second.exists()


def test_a_secret_that_others_may_read_is_refused_everywhere(shoal, first, token):
    (first / "swarm.key").chmod(0o644)
    for command in (("up",), ("up", "--detach"), ("invite",), ("join", token)):
        code, _, err = shoal(first, *command)
        assert code == 4, command
        assert f"chmod 600 {first}/swarm.key" in err


def test_who_leaves_is_in_no_private_network_and_has_lost_no_secret(shoal, first, token):
    told = json.loads(shoal(first, "leave", "--json")[1])
    assert key_of(first) is None
    kept = load_key(first.parent / told["put_aside"], {})
    assert kept == SwarmKey("lab", read_token(token).secret)
    code, out, _ = shoal(first, "leave", "--json")
    assert (code, json.loads(out)["error"]["code"]) == (1, "no_network")


def test_nothing_of_a_network_reaches_a_log(shoal, first, second, token, caplog):
    caplog.set_level(logging.DEBUG)
    shoal(second, "join", token)
    shoal(second, "leave")
    assert token not in caplog.text
    assert read_token(token).secret.hex() not in caplog.text


# --- what doctor and a running daemon say -----------------------------------------


def status(home, **fields):
    found = dict.fromkeys(Status.__struct_fields__, 0) | {
        "home": str(home),
        "network": "public",
        "network_fingerprint": "",
        "addresses": (f"{ADDRESS}/p2p/12D3KooWHn3bA8p3tDoZbEjJujVbkLo1t8uSprj4caNCTZZXm7ii",),
    }
    return Status(**found | fields)


def diagnosis(home, running=None):
    flags = {"home": home}
    (finding,) = machine.network(Patient(locate(flags), load(flags), status=running))
    return finding.verdict.value, finding.message, finding.hint


def test_doctor_names_the_network(first, second, token):
    fingerprint = key_of(first).fingerprint
    assert diagnosis(second)[:2] == ("ok", "public")
    assert diagnosis(first)[:2] == ("ok", f"lab (private, fingerprint {fingerprint})")
    verdict, message, hint = diagnosis(first, status(first))
    assert verdict == "warning"
    assert "the daemon is in public, and its next start will be in lab" in message
    assert "shoal down" in hint
    (first / "swarm.key").chmod(0o644)
    verdict, message, hint = diagnosis(first)
    assert (verdict, "open to other users" in message) == ("failure", True)
    assert hint.startswith("chmod 600")


@pytest.fixture
def daemon_says(monkeypatch):
    """Let the daemon that commands ask answer with this status."""

    class Client:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def status(self):
            return Client.told

    def say(told):
        Client.told = told
        monkeypatch.setattr(Daemon, "quiet_client", lambda _self: Client())

    return say


def test_a_daemon_in_another_network_is_said_to_need_a_restart(
    shoal, first, second, token, daemon_says
):
    fingerprint = key_of(first).fingerprint
    for told, needed in (("", True), ("0" * 16, True), (fingerprint, False)):
        daemon_says(status(first, network_fingerprint=told))
        assert json.loads(shoal(first, "invite", "--json")[1])["restart_needed"] == needed
        assert ("restart the daemon" in shoal(first, "invite")[2]) == needed
        daemon_says(status(second, network_fingerprint=told))
        assert json.loads(shoal(second, "join", token, "--json")[1])["restart_needed"] == needed
    daemon_says(status(second, network_fingerprint=fingerprint))
    assert json.loads(shoal(second, "leave", "--json")[1])["restart_needed"]


def test_a_daemon_of_another_home_is_not_taken_for_this_ones(shoal, first, second, daemon_says):
    daemon_says(status(second))
    for command in (["invite"], ["leave"]):
        code, out, _ = shoal(first, *command, "--json")
        assert (code, json.loads(out)["error"]["code"]) == (1, "other_home")
    assert key_of(first) is None
