"""``shoal allow`` and ``shoal deny`` on a home whose daemon does not run."""

import json
import os
import stat
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from cli_in_process import home, shoal  # noqa: F401  # a fixture

from shoal.node.cli.friends import _alone, _change, _write, edited
from shoal.node.cli.options import Daemon
from shoal.node.config import file_text, load
from shoal.node.home import open_home

PEER = "12D3KooWS4g1ygNaqQbqCrTRs5ENekL3NVAedaxoJDEHNRhQQT9M"
OTHER = "12D3KooWHn3bA8p3tDoZbEjJujVbkLo1t8uSprj4caNCTZZXm7ii"


def lists():
    found = load(environment=None)
    return found.allow, found.deny


def test_a_peer_is_allowed_denied_and_taken_off_again(capsys, home):  # noqa: F811
    code, out, err = shoal(capsys, "allow", PEER)
    assert (code, lists()) == (0, ((PEER,), ()))
    assert str(home / "config.toml") in out
    assert "counts from the daemon's next start: `shoal up`" in err
    assert shoal(capsys, "deny", PEER)[0] == 0
    assert lists() == ((), (PEER,))
    shoal(capsys, "allow", OTHER)
    shoal(capsys, "deny", "--remove", PEER)
    assert lists() == ((OTHER,), ())


def test_what_the_owner_wrote_and_who_may_read_it_stays(capsys, home):  # noqa: F811
    home.mkdir()
    file = home / "config.toml"
    file.write_text(f'serve = "friends"  # as agreed\nallow = ["{OTHER}"]\n')
    file.chmod(0o640)
    assert json.loads(shoal(capsys, "allow", PEER, "--json")[1])["changed"] is True
    assert "# as agreed" in file.read_text()
    assert set(lists()[0]) == {PEER, OTHER}
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert "(as it was)" in shoal(capsys, "allow", PEER)[1]
    assert list(home.glob(".config-*")) == []


def test_a_peer_is_taken_off_the_list_that_is_named_alone(capsys, home):  # noqa: F811
    shoal(capsys, "allow", PEER)
    shoal(capsys, "deny", "--remove", PEER)
    assert lists() == ((PEER,), ())
    shoal(capsys, "deny", PEER)
    shoal(capsys, "allow", "--remove", PEER)
    assert lists() == ((), (PEER,))


def test_commands_at_once_lose_nothing(home):  # noqa: F811
    open_home(load(environment=None))
    path = home / "config.toml"
    text = file_text()
    waiting = threading.Event()

    def deny():
        waiting.set()
        _change("deny", OTHER, remove=False, daemon=Daemon(home=home))

    with _alone(home):
        other = threading.Thread(target=deny)
        other.start()
        assert waiting.wait(60)
        other.join(0.3)  # it reads nothing before this one has written
        _write(path, edited(text, "deny", PEER, remove=False))
    other.join(60)
    assert set(lists()[1]) == {PEER, OTHER}


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone may give files away")
def test_root_leaves_the_file_to_the_one_whose_service_reads_it(capsys, home):  # noqa: F811
    home.mkdir(mode=0o700)
    os.chown(home, 65534, 65534)
    for peer in (PEER, OTHER):
        assert shoal(capsys, "allow", peer)[0] == 0
        found = (home / "config.toml").stat()
        assert (found.st_uid, found.st_gid) == (65534, 65534)


@pytest.mark.parametrize("command", ["allow", "deny"])
def test_what_is_no_peer_id_is_refused_by_its_name(capsys, home, command):  # noqa: F811
    code, _, err = shoal(capsys, command, "HNRhQQT9M")
    assert code == 2
    assert "'HNRhQQT9M' is no peer id" in err
    assert "`shoal peers` lists" in err
    assert not home.exists()


def test_a_file_in_error_is_not_changed(capsys, home):  # noqa: F811
    home.mkdir()
    (home / "config.toml").write_text("memory = 8GB\n")
    code, _, err = shoal(capsys, "deny", PEER)
    assert code == 2
    assert 'quote it: memory = "8GB"' in err
    assert (home / "config.toml").read_text() == "memory = 8GB\n"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("file", "the daemon has taken it up"),
        ("default", "the daemon has taken it up"),
        ("flag", "started with its own allow by a flag or variable"),
        ("environment", "started with its own allow by a flag or variable"),
    ],
)
def test_a_daemon_that_runs_reads_the_file_of_its_home_again(
    capsys, tmp_path, monkeypatch, source, said
):
    """Wherever the command would look for a home by itself."""
    reloaded = []
    client = SimpleNamespace(
        status=lambda: SimpleNamespace(home=str(tmp_path)),
        reload=lambda: reloaded.append(load({"home": tmp_path}).allow),
        settings=lambda: [SimpleNamespace(name="allow", source=source)],
    )
    monkeypatch.setattr(Daemon, "quiet_client", lambda self: nullcontext(client))
    code, _, err = shoal(capsys, "allow", PEER)
    assert (code, reloaded) == (0, [(PEER,)])
    assert said in err
