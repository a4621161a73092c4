"""Where clients look for a daemon, and what a home's lock tells of the one that runs."""

import socket
import subprocess
import sys

import pytest

from shoal.node import daemon_place
from shoal.node.client.exchange import unreachable
from shoal.node.config import load
from shoal.node.daemon_place import DaemonPlace, find_daemon
from shoal.node.errors import ConfigError
from shoal.node.home_lock import Holder, hold_home, holder_of


@pytest.fixture
def home(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    return home


def held(home, **flags):
    """The home's lock as a daemon started with these flags holds it."""
    return hold_home(load({"home": home, **flags}, {}))


def pid_of_a_process_that_ended():
    return int(subprocess.check_output([sys.executable, "-c", "import os; print(os.getpid())"]))


# --- the socket ----------------------------------------------------------------------


def test_a_client_that_was_told_nothing_tries_the_system_service(tmp_path, monkeypatch):
    path = tmp_path / "system.sock"
    monkeypatch.setattr(daemon_place, "SYSTEM_SOCKET", path)
    own = load({}, {}).socket
    assert find_daemon({}, {}).socket == own
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
    assert find_daemon({}, {}).socket == path
    assert find_daemon({"home": tmp_path}, {}).socket == tmp_path / "shoal.sock"
    assert str(find_daemon({}, {"SHOAL_SOCKET": "/a.sock"}).socket) == "/a.sock"


def test_the_socket_of_the_daemon_that_holds_the_home_is_used(home, tmp_path):
    elsewhere = tmp_path / "elsewhere.sock"
    with held(home, socket=elsewhere):
        assert find_daemon({"home": home}, {}).socket == elsewhere
        (home / "config.toml").write_text('socket = "/from/the/file.sock"')
        assert find_daemon({"home": home}, {}).socket == elsewhere
    assert str(find_daemon({"home": home}, {}).socket) == "/from/the/file.sock"


def test_a_socket_that_the_user_told_is_used_whoever_holds_the_home(home):
    with held(home):
        assert str(find_daemon({"home": home, "socket": "/b.sock"}, {}).socket) == "/b.sock"


@pytest.mark.parametrize("text", ["bootsrap = []", "memory = 8GB", "socket = 3"])
def test_a_settings_file_with_an_error_locks_no_client_out(home, text):
    (home / "config.toml").write_text(text)
    place = find_daemon({"home": home}, {})
    assert place.socket == home / "shoal.sock"
    assert str(home / "config.toml") in place.complaint.message
    assert find_daemon({"home": home, "socket": "/b.sock"}, {}).complaint is None


def test_the_socket_is_read_from_a_file_with_another_key_unknown(home):
    (home / "config.toml").write_text('bootsrap = []\nsocket = "/c.sock"')
    assert str(find_daemon({"home": home}, {}).socket) == "/c.sock"


# --- the lock ------------------------------------------------------------------------


def test_the_lock_of_a_home_names_the_process_and_its_socket(home):
    assert holder_of(home) is None
    with held(home) as _:
        holder = holder_of(home)
        assert holder.socket == home / "shoal.sock"
        with pytest.raises(ConfigError, match=f"process {holder.pid}") as caught, held(home):
            pass
    assert caught.value.code == "home_in_use"
    assert holder_of(home) is None
    with held(home):
        pass


def test_what_a_killed_daemon_left_in_the_lock_is_not_believed(home):
    import os

    for pid in (pid_of_a_process_that_ended(), os.getpid()):
        (home / "lock").write_text(f"{pid}\n/a.sock\n")
        assert holder_of(home) is None


@pytest.mark.parametrize("text", ["", "12\n", "x\n/a.sock\n", "\n\n"])
def test_a_lock_that_says_nothing_names_nobody(home, text):
    (home / "lock").write_text(text)
    assert holder_of(home) is None


# --- what is said where nobody answers ------------------------------------------------


def test_nobody_at_all_is_answered_with_how_to_start_one(home):
    error = unreachable(DaemonPlace(home, home / "shoal.sock"))
    assert (error.code, error.hint) == ("daemon_unreachable", "start it with `shoal up`")


def test_a_daemon_on_another_socket_is_told_with_that_socket(home):
    with held(home):
        holder = holder_of(home)
        error = unreachable(DaemonPlace(home, home / "other.sock"))
    assert isinstance(holder, Holder)
    assert error.code == "daemon_elsewhere"
    assert f"process {holder.pid}" in error.message
    assert str(home / "shoal.sock") in error.hint


def test_a_daemon_that_holds_its_home_and_does_not_answer_is_not_to_be_started_again(home):
    with held(home):
        error = unreachable(DaemonPlace(home, home / "shoal.sock"))
    assert error.code == "daemon_silent"
    assert "shoal up" not in error.hint
