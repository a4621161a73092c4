"""What a service manager is told, by a socket in its place."""

import os
import socket
import time

import pytest

from shoal.node.service_manager import ServiceManager


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A manager's socket, and what it puts into NOTIFY_SOCKET."""
    name = f"{tmp_path}/notify" if request.param == "path" else f"@shoal-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind("\0" + name[1:] if name.startswith("@") else name)
        ear.setblocking(False)
        yield ear, name


def heard(ear):
    """The assignments of one datagram."""
    return dict(line.split("=", 1) for line in ear.recv(4096).decode().splitlines())


def test_each_thing_is_said_in_one_datagram(manager):
    ear, name = manager
    told = ServiceManager({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "2500000"})
    told.ready()
    assert heard(ear) == {"READY": "1"}
    told.reloading()
    reloading = heard(ear)
    assert reloading.pop("RELOADING") == "1"
    assert 0 <= time.monotonic_ns() // 1000 - int(reloading.pop("MONOTONIC_USEC")) < 10**8
    assert reloading == {}
    told.stopping()
    assert heard(ear) == {"STOPPING": "1"}
    told.still_stopping(1.5)
    assert heard(ear) == {"EXTEND_TIMEOUT_USEC": "1500000"}
    told.alive()
    assert heard(ear) == {"WATCHDOG": "1"}
    told.status("9 peers linked")
    assert heard(ear) == {"STATUS": "9 peers linked"}
    assert told.watchdog_s == 2.5


def test_what_is_for_this_process_alone_is_not_left_to_its_children():
    environment = {
        "NOTIFY_SOCKET": "/nowhere",
        "WATCHDOG_USEC": "1000000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/",
    }
    assert ServiceManager(environment).watchdog_s == 1.0
    assert environment == {"HOME": "/"}


@pytest.mark.parametrize(
    "watchdog",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
    ],
    ids=str,
)
def test_where_nobody_watches_this_process_nothing_is_said_of_its_being_alive(
    manager, watchdog
):
    ear, name = manager
    told = ServiceManager({"NOTIFY_SOCKET": name, **watchdog})
    told.alive()
    with pytest.raises(BlockingIOError):
        ear.recv(1)
    assert told.watchdog_s is None


def test_a_manager_that_does_not_listen_or_never_was_is_no_matter(tmp_path):
    ServiceManager({}).ready()
    ServiceManager({"NOTIFY_SOCKET": f"{tmp_path}/gone"}).ready()
    full = tmp_path / "full"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(full))
        told = ServiceManager({"NOTIFY_SOCKET": str(full)})
        for _ in range(2000):  # more than any queue of datagrams holds
            told.ready()
