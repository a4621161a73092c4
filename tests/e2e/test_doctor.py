"""``shoal doctor`` names the cause: ten faults that were staged, and a node without any.

Each fault is one that users meet, and each test is about the words that they read.
Bootstrap peers are the daemons of the shared swarm, or peers that a test stages itself.
"""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import as_nobody
import commands
import libfaketime
import psutil
import pytest
import trio
from daemons import SHOAL, clean_environment, eventually, shoal

from shoal.compute.sandbox import features
from shoal.crypto import identity
from shoal.node.cli.checkup.listening import ports
from shoal.node.control import CONTROL_PROTOCOL
from shoal.node.frames import receive_frame, send_frame
from shoal.node.network import open_network
from shoal.node.private_network import PrivateNetwork
from shoal.node.settings_file import toml
from shoal.node.swarm_key import make_key
from shoal.protocol.limits import PROTOCOL_MAJOR
from shoal.protocol.messages import Adverts, Hello, Problem, Request, Response

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
LIMIT_S = 15
NET_TESTS = Path(__file__).resolve().parents[1] / "net"

AN_HOUR_AHEAD = {
    "LD_PRELOAD": str(
        Path(libfaketime.__file__).parent / "vendor/libfaketime/src/libfaketime.so.1"
    ),
    "FAKETIME": "+3600",
    "DONT_FAKE_MONOTONIC": "1",
    "NO_FAKE_STAT": "1",
}


@dataclass
class Diagnosis:
    """What doctor printed, by check."""

    code: int
    checks: list
    summary: str
    stderr: str = ""

    def of(self, check):
        """The one finding of a check, as ``verdict: message; next: hint``."""
        (found,) = [each for each in self.checks if each["check"] == check]
        return f"{found['verdict']}: {found['message']}; next: {found['hint']}"

    def bad(self):
        return [each for each in self.checks if each["verdict"] != "ok"]


@dataclass
class Home:
    """A node that does not run: a key, settings, and doctor on them."""

    path: Path
    environment: dict = field(default_factory=dict)

    def set(self, **settings):
        lines = [f"{name} = {toml(value)}" for name, value in settings.items()]
        (self.path / "config.toml").write_text("\n".join(lines) + "\n")

    @property
    def command(self):
        return [*SHOAL, "doctor", "--json", f"--home={self.path}"]

    def diagnose(self, command=None, run=subprocess.run, **environment):
        environment = clean_environment() | environment
        if command is None and run is subprocess.run:
            arguments = self.command[len(SHOAL) :]
            return diagnosis(commands.run(arguments, environment=environment))
        done = run(
            command or self.command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return diagnosis(done)


def diagnosis(done):
    assert done.stdout, done.stderr
    told = json.loads(done.stdout)
    code = getattr(done, "returncode", None)
    code = done.code if code is None else code
    return Diagnosis(code, told["checks"], told["summary"], done.stderr)


@pytest.fixture
def home(tmp_path):
    path = tmp_path / "home"
    path.mkdir(mode=0o700)
    identity.save(identity.generate(), path / "identity.key")
    home = Home(path)
    home.set(listen=[LOOPBACK])
    return home


def place_of(address):
    return address.rpartition("/p2p/")[0]


@contextmanager
def listening():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


# --- no fault ---------------------------------------------------------------------


def test_of_a_healthy_node_doctor_says_nothing_but_what_is_true_of_the_machine(swarm):
    node = swarm.nodes[1]
    with node.client() as client:
        eventually(lambda: client.status().peers_linked, 60, "linked")
        eventually(lambda: client.status().sandbox, 60, "probed")
    told = diagnosis(shoal("doctor", "--json", node=node))
    true_here = {"device"}
    if os.geteuid() == 0:
        true_here.add("user")
    if shutil.disk_usage(node.home).free < 20e9:
        true_here.add("disk")
    if not all(feature.offered for feature in features()):
        true_here.add("sandbox")
    assert {each["check"] for each in told.bad()} <= true_here, told.bad()
    assert told.code == 0
    said = told.of("bootstrap")  # it was set by a flag of the daemon's, and in no file
    assert said.startswith(f"ok: {swarm.nodes[0].address}: resolved, connected, handshake")
    assert f"protocol {PROTOCOL_MAJOR}." in said
    assert "its advert is" in said
    assert "it lists 3 nodes, this one among them" in said
    assert "as with 2 of 2 peers" in told.of("clock")


def test_who_is_asked_by_doctor_neither_lists_nor_links_it_and_says_little_of_it(swarm, home):
    asked = swarm.nodes[0]
    with asked.client() as client:
        before = (client.status().peers_known, client.status().peers_linked)
        log_from = asked.log_path.stat().st_size
        home.set(bootstrap=[asked.address], listen=[LOOPBACK])
        assert home.diagnose().of("bootstrap").startswith("ok: ")
        after = (client.status().peers_known, client.status().peers_linked)
    assert after == before
    lines = [json.loads(line) for line in asked.log_path.read_bytes()[log_from:].splitlines()]
    told = [line for line in lines if "shoal doctor" in str(line)]
    assert [line["level"] for line in told] in ([], ["info"])  # it is gone within a moment
    assert not [line for line in lines if line["level"] in ("warning", "error")], lines


# --- ten faults -------------------------------------------------------------------


def test_a_bootstrap_address_with_another_peers_id_is_named(swarm, home):
    wrong = f"{place_of(swarm.nodes[0].address)}/p2p/{identity.generate().peer_id}"
    home.set(bootstrap=[wrong, swarm.nodes[1].address], listen=[LOOPBACK])
    told = home.diagnose()
    bad, good = [each for each in told.checks if each["check"] == "bootstrap"]
    assert good["verdict"] == "ok"
    assert bad["verdict"] == "failure"
    assert bad["message"].startswith(f"{wrong}: handshake failed: another peer answers there")
    assert "is not that node's" in bad["hint"]
    assert told.code == 1


def test_a_closed_port_of_a_bootstrap_peer_is_named(home):
    with listening() as port:
        pass
    closed = f"/ip4/127.0.0.1/tcp/{port}/p2p/{identity.generate().peer_id}"
    home.set(bootstrap=[closed], listen=[LOOPBACK])
    said = home.diagnose().of("bootstrap")
    assert f"connect failed: connection refused: nobody listens on port {port} there" in said
    assert "next: is the daemon up on that machine" in said


def test_a_port_that_another_process_has_is_named_with_that_process(home):
    with listening() as port:
        home.set(listen=[f"/ip4/127.0.0.1/tcp/{port}"])
        said = home.diagnose().of("port")
    me = f"{psutil.Process().name()} (process {os.getpid()})"
    assert said.startswith(f"failure: /ip4/127.0.0.1/tcp/{port} is taken by {me}; next: end")


def test_a_port_of_the_daemon_that_another_process_listens_on_is_named():
    with listening() as port:
        status = SimpleNamespace(addresses=[f"/ip4/127.0.0.1/tcp/{port}"], pid=1)
        (found,) = ports(SimpleNamespace(status=status))
        status.pid = os.getpid()
        (own,) = ports(SimpleNamespace(status=status))
    assert (
        f"and that port is {psutil.Process().name()} (process {os.getpid()})'s" in found.message
    )
    assert (found.verdict, own.verdict) == ("failure", "ok")


def test_a_clock_that_is_off_by_an_hour_is_named(swarm, home):
    """One that is behind is in `tests/unit/test_checkup.py`."""
    home.set(bootstrap=[swarm.nodes[0].address], listen=[LOOPBACK])
    told = home.diagnose(**AN_HOUR_AHEAD)
    said = told.of("clock")
    hour = "1 h 0 min" if "1 h" in said else "59 min 5"  # some seconds go by in between
    assert said.startswith(f"failure: this machine's clock is {hour}")
    assert "ahead of those of 3 of 3 peers" in said
    assert "NTP" in said


def test_a_full_disk_is_named(home):
    mounted = (
        'mount -t tmpfs -o size=1m,mode=700 tmpfs "$0.new" && cp -a "$0/." "$0.new" && '
        'mount --bind "$0.new" "$0" && '
        '{ dd if=/dev/zero of="$0/blob" bs=4k 2>/dev/null; shift; exec "$@"; }'
    )
    Path(f"{home.path}.new").mkdir()
    alone = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-Urm"]
    told = home.diagnose([*alone, "sh", "-c", mounted, home.path, "-", *home.command])
    said = told.of("disk")
    assert said.startswith(
        f"failure: the disk of {home.path} takes nothing more: No space left"
    )
    assert "next: make room there" in said
    assert "disk" in told.summary


def test_a_disk_that_is_mounted_read_only_is_named(home):
    mounted = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && { shift; exec "$@"; }'
    alone = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-Urm"]
    told = home.diagnose([*alone, "sh", "-c", mounted, home.path, "-", *home.command])
    assert "is mounted read-only; next: mount it writable" in told.of("disk")
    assert told.of("home").startswith("ok: ")


def test_a_kernel_without_landlock_is_named(home):
    without_landlock = (
        "import errno, sys\n"
        f"sys.path.insert(0, {str(NET_TESTS)!r})\n"
        "from outer_sandbox import refuse\n"
        "refuse('landlock_create_ruleset', errno.ENOSYS)\n"
        "from shoal.node.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    told = home.diagnose([sys.executable, "-c", without_landlock, *home.command[len(SHOAL) :]])
    said = [
        f"{each['verdict']}: {each['message']}; next: {each['hint']}"
        for each in told.checks
        if each["check"] == "sandbox"
    ]
    assert said[0].startswith("warning: landlock: not to be had: Function not implemented")
    assert "next: use Linux 5.13 or newer" in said[0]
    assert said[-1].startswith("warning: strangers' work is not possible")


def test_a_key_that_others_can_read_is_named(home):
    (home.path / "identity.key").chmod(0o644)
    assert "is open to other users (mode 0644); next: chmod 600" in home.diagnose().of("key")


def test_a_damaged_key_is_named(home):
    (home.path / "identity.key").write_bytes(b"\0" * 36)
    told = home.diagnose()
    assert told.of("key").startswith("failure: ")
    assert "does not hold an Ed25519 key" in told.of("key")
    assert "key" in told.summary


def test_a_key_that_this_user_cannot_read_is_named(home):
    (home.path / "identity.key").chmod(0)
    for directory in (home.path, *home.path.parents):
        if directory.owner() == "root" and directory.is_relative_to("/tmp/pytest-of-root"):
            directory.chmod(0o755)
    run = as_nobody.run if os.geteuid() == 0 else subprocess.run
    said = home.diagnose(run=run, HOME="/tmp").of("key")
    assert f"failure: the key at {home.path}/identity.key cannot be read: Permission" in said
    assert "next: make it readable: chmod 600" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone has a home that others cannot enter")
def test_a_home_that_this_user_may_not_enter_is_named(home):
    for directory in home.path.parents:
        if directory.is_relative_to("/tmp/pytest-of-root"):
            directory.chmod(0o755)
    told = home.diagnose(run=as_nobody.run, HOME="/tmp")
    assert f"failure: {home.path} is not to be reached" in told.of("home")
    assert told.summary.partition(": ")[2].startswith("begin with home")


OLDER, NEWER = PROTOCOL_MAJOR - 1, PROTOCOL_MAJOR + 1


@pytest.mark.parametrize(
    ("answer", "words", "hint"),
    [
        (
            Hello(protocol=(OLDER, 3), agent="shoal/0.0.9"),
            f"it speaks protocol {OLDER} (shoal/0.0.9), this node {PROTOCOL_MAJOR}",
            "upgrade shoal there",
        ),
        (
            Hello(protocol=(NEWER, 0), agent="shoal/9"),
            f"it speaks protocol {NEWER} (shoal/9), this node {PROTOCOL_MAJOR}",
            "upgrade shoal on this machine",
        ),
        (
            Problem(code="version_unsupported", message="upgrade your node"),
            f"it refuses protocol {PROTOCOL_MAJOR}, which this node speaks, and says: 'upgrade",
            "upgrade the one of the two whose version of shoal is older",
        ),
    ],
    ids=["an older peer", "a newer peer", "a peer that refuses"],
)
async def test_a_version_that_does_not_fit_is_named(home, answer, words, hint):
    async def serve(stream):
        request = await receive_frame(stream, Request)
        await send_frame(stream, Response(id=request.id, body=answer))
        await trio.sleep(1)

    async with open_network(identity.generate(), [LOOPBACK]) as peer:
        peer.handle(CONTROL_PROTOCOL, serve)
        home.set(bootstrap=list(peer.addresses()), listen=[LOOPBACK])
        told = await trio.to_thread.run_sync(home.diagnose)
    said = told.of("bootstrap")
    assert f"protocol failed: {words}" in said
    assert f"next: {hint}" in said


async def test_a_secret_that_is_missing_is_named(home):
    private = PrivateNetwork(make_key("lab"))
    async with open_network(identity.generate(), [LOOPBACK], private) as member:
        home.set(bootstrap=list(member.addresses()), listen=[LOOPBACK])
        told = await trio.to_thread.run_sync(home.diagnose)
    said = told.of("bootstrap")
    assert "it seems to be in a private network, and this node has no secret of one" in said
    assert "`shoal join TOKEN" in said


def test_a_file_limit_that_is_too_low_is_named_where_no_daemon_runs(home):
    command = ["sh", "-c", 'ulimit -Sn 100; exec "$@"', "-", *home.command]
    said = home.diagnose(command).of("files")
    assert "the file limit is too low: a daemon started here may open 100 files" in said
    assert "next: `ulimit -n 4096`" in said


def test_a_file_limit_that_is_too_low_is_named_for_the_daemon_that_runs(swarm):
    process = psutil.Process(swarm.nodes[1].process.pid)
    limits = process.rlimit(resource.RLIMIT_NOFILE)
    process.rlimit(resource.RLIMIT_NOFILE, (300, limits[1]))
    try:
        said = diagnosis(shoal("doctor", "--json", node=swarm.nodes[1])).of("files")
    finally:
        process.rlimit(resource.RLIMIT_NOFILE, limits)
    assert said.startswith("warning: the file limit is too low: the daemon may open 300 files")


# --- what else a newcomer meets ------------------------------------------------------


def test_a_name_that_leads_nowhere_is_named(home):
    nowhere = f"/dns4/nowhere.invalid/tcp/4711/p2p/{identity.generate().peer_id}"
    home.set(bootstrap=[nowhere], listen=[LOOPBACK])
    said = home.diagnose().of("bootstrap")
    assert f"failure: {nowhere}: resolve failed:" in said
    assert "name server" in said


async def _serve(nursery, handler):
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, handler, [listener])
    return listener.socket.getsockname()[1]


async def test_a_program_that_is_no_node_is_named(home):
    async def greet(stream):
        await stream.send_all(b"SSH-2.0-OpenSSH_9.2\r\n")
        await trio.sleep(5)

    async with trio.open_nursery() as nursery:
        port = await _serve(nursery, greet)
        other = f"/ip4/127.0.0.1/tcp/{port}/p2p/{identity.generate().peer_id}"
        home.set(bootstrap=[other], listen=[LOOPBACK])
        told = await trio.to_thread.run_sync(home.diagnose)
        nursery.cancel_scope.cancel()
    assert "another program answers: 'SSH-2.0-OpenSSH_9.2'" in told.of("bootstrap")


async def test_peers_that_say_nothing_delay_doctor_no_longer_than_its_limit(home):
    async def say_nothing(_stream):
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        port = await _serve(nursery, say_nothing)
        place = f"/ip4/127.0.0.1/tcp/{port}/p2p/"
        home.set(
            bootstrap=[place + identity.generate().peer_id for _ in range(5)], listen=[LOOPBACK]
        )
        started = trio.current_time()
        told = await trio.to_thread.run_sync(home.diagnose)
        assert trio.current_time() - started < 4 * LIMIT_S  # the machine may be busy
        nursery.cancel_scope.cancel()
    said = [each for each in told.checks if each["check"] == "bootstrap"]
    assert len(said) == 5
    assert all("ends or says nothing" in each["message"] for each in said), said


async def test_a_peer_that_sends_no_advert_of_its_own_is_named(home):
    async def serve(stream):
        for answer in (Hello(protocol=(PROTOCOL_MAJOR, 0), agent="x/1"), Adverts(adverts=())):
            request = await receive_frame(stream, Request)
            await send_frame(stream, Response(id=request.id, body=answer))
        await trio.sleep(1)

    async with open_network(identity.generate(), [LOOPBACK]) as peer:
        peer.handle(CONTROL_PROTOCOL, serve)
        home.set(bootstrap=list(peer.addresses()), listen=[LOOPBACK])
        told = await trio.to_thread.run_sync(home.diagnose)
    assert "advert failed: its answer does not hold its own advert" in told.of("bootstrap")


def test_a_daemon_that_is_stopped_is_named(swarm):
    node = swarm.nodes[1]
    node.signal(signal.SIGSTOP)
    try:
        told = diagnosis(shoal("doctor", "--json", node=node))
    finally:
        node.signal(signal.SIGCONT)
    pid = node.process.pid
    assert told.of("daemon").startswith(f"failure: the daemon (process {pid}) is stopped")
    assert f"`kill -CONT {pid}`" in told.of("daemon")
    # of what it holds nothing is said as if no daemon were there
    assert not {"port", "peers"} & {each["check"] for each in told.checks}


def test_settings_beyond_the_machine_are_named(home):
    home.set(cores=4000, memory="800TB", listen=[LOOPBACK])
    said = [e["message"] for e in home.diagnose().bad() if e["check"] == "settings"]
    assert said[0].startswith("cores is 4000, and this process may use ")
    assert said[1].startswith("memory = 800.0 TB, and this machine lets the daemon use ")


def test_a_setting_edited_under_a_running_daemon_is_named(swarm):
    node = swarm.nodes[1]
    file = node.home / "config.toml"
    file.write_text("time_limit = '2h'\n")
    try:
        told = diagnosis(shoal("doctor", "--json", node=node))
    finally:
        file.unlink()
    (said,) = [e for e in told.bad() if e["check"] == "settings"]
    assert "the daemon still runs with what time_limit was before" in said["message"]
    assert "shoal down" in said["hint"]
