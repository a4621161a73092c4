"""``shoal job why`` names the cause and what would change it: twelve cases that were staged.

Four real daemons: one that asks and whose own device is paused, one that gives and is set
anew for each case, one more that comes and goes, and one of another version. Each test is
about the words that a user reads, and most then do what the words say and see the job run.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace

import another_major
import few_links
import models
import numpy as np
import pytest
import trio
from attacker import ask, make_award, make_call, open_greeted
from daemons import SHOAL, clean_environment, eventually, peers_of, shoal

from shoal.crypto import identity
from shoal.crypto.content import blob_id_of
from shoal.node.bidding import LEASES_LIMIT
from shoal.node.demo.swarm import Node
from shoal.node.errors import DaemonUnreachableError
from shoal.node.network import open_network
from shoal.node.records import JobState
from shoal.node.settings_file import toml
from shoal.protocol.negotiation_messages import Release

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
WORDS_LIMIT_S = 60
RUN_LIMIT_S = 60
"""A peer that refused is asked again within seconds: see `few_links`."""

NO_PROGRAM = blob_id_of(b"no program")


class Machine(Node):
    """A daemon whose settings are in the file of its home, as an owner sets them."""

    def set(self, **settings):
        settings = {"listen": [LOOPBACK], "lan": False} | settings
        lines = [f"{name} = {toml(value)}\n" for name, value in settings.items()]
        (self.home / "config.toml").write_text("".join(lines))

    def reload(self, **settings):
        self.set(**settings)
        ended = shoal("reload", node=self)
        assert ended.code == 0, ended

    def up(self, *entry, **environment):
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*(entry or SHOAL), "up", f"--home={self.home}"],
                env=clean_environment() | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_up(self):
        def answers():
            assert self.running, self.last_words()
            try:
                with self.client() as client:
                    self.address = client.status().addresses[0]
            except DaemonUnreachableError:
                return False
            return True

        eventually(answers, 60, f"{self} is up")

    def wait_offering(self):
        with self.client() as client:
            eventually(lambda: any(d.executors for d in client.devices()), 60, "probed")

    def down(self):
        if self.running:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()


def machine(root, number, name):
    home = root / name
    home.mkdir(mode=0o700)
    key = identity.generate()
    identity.save(key, home / "identity.key")
    return Machine(number, home, key.peer_id)


def script(module):
    return (sys.executable, "-P", module.__file__)


@pytest.fixture(scope="module")
def crowd_key():
    return identity.generate()


@pytest.fixture(scope="module")
def _nodes(tmp_path_factory, crowd_key):
    """The four, of which none knows another."""
    root = tmp_path_factory.mktemp("why")
    names = ("asker", "giver", "guest", "newer")
    nodes = SimpleNamespace(**{n: machine(root, i, n) for i, n in enumerate(names, start=1)})
    nodes.crowd = crowd_key.peer_id
    try:
        nodes.asker.set(provide=False)
        nodes.asker.up(*script(few_links))
        set_giver(nodes)
        nodes.giver.up()
        nodes.newer.set()
        nodes.newer.up(*script(another_major))
        for node in (nodes.asker, nodes.giver, nodes.newer):
            node.wait_up()
        nodes.asker.wait_offering()
        with nodes.asker.client() as client:
            client.pause("cpu")  # else it would do all the work itself
        yield nodes
    finally:
        for name in names:
            getattr(nodes, name).down()


def set_giver(nodes, **settings):
    """What the giver's file holds, but for what a case is about."""
    nodes.giver.set(
        **{"memory": "2GiB", "serve": "friends", "allow": [nodes.asker.peer, nodes.crowd]}
        | settings
    )


def reload_giver(nodes, **settings):
    set_giver(nodes, **settings)
    ended = shoal("reload", node=nodes.giver)
    assert ended.code == 0, ended


@pytest.fixture
def alone(_nodes):
    """None of them knows the other, at first."""
    if peers_of(_nodes.asker):
        pytest.skip("they have met already: this test is the first of its file")
    return _nodes


@pytest.fixture
def nodes(_nodes):
    """They know each other, and the giver takes the asker's work."""
    if _nodes.giver.peer not in peers_of(_nodes.asker):
        with _nodes.asker.client() as client:
            client.connect(_nodes.giver.address)
    _nodes.giver.wait_offering()
    eventually(lambda: offers(_nodes.asker, _nodes.giver), 60, "the giver is known")
    yield _nodes
    set_giver(_nodes)
    with _nodes.giver.client() as client:
        client.reload()
        client.resume()


def offers(node, other):
    with node.client() as client:
        return any(v.peer == other.peer and v.numeric_classes for v in client.peers())


def submit(nodes, model=None, rows=1, **options):
    with nodes.asker.client() as client:
        units = [{"x": row[None]} for row in models.rows(rows)]
        return client.submit(model or models.dense(), units, **options).id


def line_of(node, job_id, *words, unit=None):
    """The line of ``shoal job why`` that holds all these words, once an answer has come."""

    def found():
        with node.client() as client:
            lines = client.explanation(job_id, unit).summary.splitlines()
        lines = [line for line in lines if "has not answered yet" not in line]
        return next((line for line in lines if all(word in line for word in words)), None)

    try:
        return eventually(found, WORDS_LIMIT_S)
    except AssertionError:
        with node.client() as client:
            pytest.fail(f"no line with {words} in:\n{client.explanation(job_id, unit).summary}")


def first_line(node, job_id):
    with node.client() as client:
        return client.explanation(job_id).summary.splitlines()[1]


def assert_runs(nodes, *job_ids):
    with nodes.asker.client() as client:
        for job_id in job_ids:
            job = client.wait(job_id, RUN_LIMIT_S)
            assert job.state is JobState.DONE, client.explanation(job_id).summary


def cancel(nodes, *job_ids):
    with nodes.asker.client() as client:
        for job_id in job_ids:
            client.cancel(job_id)


# --- nobody, or nobody who can ---------------------------------------------------------


def test_no_peer(alone):
    job_id = submit(alone)
    own = line_of(alone.asker, job_id, "this node takes no work for now")
    assert "the device is paused" in own or "paused" in own
    assert "`shoal resume`" in own
    line = line_of(alone.asker, job_id, "No other node is known to this one")
    (command,) = re.findall(r"`(shoal peers --connect) ADDRESS`", line)
    told = shoal(*command.split()[1:], alone.giver.address, node=alone.asker)
    assert told.code == 0, told
    assert_runs(alone, job_id)


def test_class_not_offered(nodes):
    job_id = submit(nodes, numeric_class="low")
    line = line_of(nodes.asker, job_id, "No known node offers the numeric class low")
    assert "offered: " in line
    assert "fp32" in line
    numeric_class = re.search(r"`--class (\w+)`", line)[1]
    cancel(nodes, job_id)
    assert_runs(nodes, submit(nodes, numeric_class=numeric_class))


def test_memory_short(nodes, tmp_path):
    job_id = submit(nodes, memory_limit_bytes=8 << 30)
    line = line_of(nodes.asker, job_id, nodes.giver.peer)
    assert "gives a unit 2 GiB of memory, and this job asks for 8 GiB" in line
    assert 'its operator can set `memory = "8GiB"` there' in line
    flag, size = re.search(r"`shoal map … (--memory-limit) (\w+)`", line).groups()
    cancel(nodes, job_id)
    (tmp_path / "m.onnx").write_bytes(models.dense())
    np.save(tmp_path / "x.npy", models.rows(2))
    inputs = f"--input=x={tmp_path / 'x.npy'}"
    done = shoal("map", tmp_path / "m.onnx", inputs, flag, size, "--json", node=nodes.asker)
    assert (done.code, done.json["job"]["state"]) == (0, "done"), done


# --- who will not ------------------------------------------------------------------------


def test_price(nodes):
    reload_giver(nodes, min_price=50)
    job_id = submit(nodes)
    line = line_of(nodes.asker, job_id, nodes.giver.peer)
    assert "takes only units worth 50 credits or more, and one of this job is worth 1" in line
    assert "--batch" in line
    assert "“shoal reload”" in line
    name, value = re.search(
        r"its operator can set `(min_price) = ([\d.]+)` there", line
    ).groups()
    reload_giver(nodes, **{name: float(value)})
    assert_runs(nodes, job_id)


def test_untrusted(nodes):
    reload_giver(nodes, allow=[])
    job_id = submit(nodes)
    line = line_of(nodes.asker, job_id, nodes.giver.peer)
    assert "serves only nodes that its owner knows" in line
    assert "this node is not on its allow list" in line
    command = re.search(r"its operator can add this node there: “(shoal allow \w+)”", line)[1]
    done = shoal(*command.split()[1:], node=nodes.giver)
    assert done.code == 0, done
    assert "the daemon has taken it up" in done.stderr
    assert_runs(nodes, job_id)


def test_paused(nodes):
    with nodes.giver.client() as client:
        client.pause()
    job_id = submit(nodes)
    line = line_of(nodes.asker, job_id, nodes.giver.peer, "takes no work")
    assert "its owner" in line
    command = re.search(r"“(shoal resume)”", line)[1]
    ended = shoal(*command.split()[1:], node=nodes.giver)
    assert ended.code == 0, ended
    assert_runs(nodes, job_id)


async def test_busy(nodes, crowd_key):
    """Others hold all leases that the giver gives: they let go, and the job runs."""
    async with crowd(crowd_key, nodes.giver):
        job_id = await trio.to_thread.run_sync(submit, nodes)
        words = (nodes.giver.peer, "is busy")
        line = await trio.to_thread.run_sync(line_of, nodes.asker, job_id, *words)
    assert "(32 leases are running)" in line
    assert "nothing need be done, it is asked again in " in line
    await trio.to_thread.run_sync(assert_runs, nodes, job_id)


@asynccontextmanager
async def crowd(key, giver):
    """A friend of the giver's that holds all its leases, as other users' jobs would."""
    place = giver.address.rpartition("/p2p/")[0]
    async with open_network(key, [LOOPBACK]) as network:
        await network.connect(giver.peer, [place], 5.0)
        stream = await open_greeted(network, giver.peer)
        calls = [make_call(NO_PROGRAM, f"{number:032x}") for number in range(LEASES_LIMIT)]
        for call in calls:
            bid = await ask(stream, call)
            await ask(stream, make_award(key, giver.peer, call, bid, idle_s=30.0))
        yield
        for call in calls:
            await ask(stream, Release(call=call.call))


def test_program_refused(nodes):
    wide = {"x": np.ones((100_000, models.WIDTH), np.float32)}
    with nodes.asker.client() as client:
        job_id = client.submit(models.dense(), [wide], memory_limit_bytes=1 << 16).id
        assert client.wait(job_id, RUN_LIMIT_S).state is JobState.FAILED
    line = line_of(nodes.asker, job_id, f"unit 0 failed at {nodes.giver.peer}")
    assert "has 1600064 bytes, and 65536 may be fetched (program_refused)" in line
    assert "inputs that are too large need more `--memory-limit`" in line
    with nodes.asker.client() as client:
        assert_runs(nodes, client.submit(models.dense(), [wide], memory_limit_bytes=1 << 26).id)


def test_data_missing(nodes):
    with nodes.giver.client() as client:
        client.pause()
    wide = {"x": np.full((300_000, models.WIDTH), 0.5, np.float32)}
    with nodes.asker.client() as client:
        job_id = client.submit(models.dense(), [wide]).id
        (blob_id,) = client.units(job_id)[0].inputs.values()
    lost = list((nodes.asker.home / "blobs").rglob(f"{blob_id}*"))
    assert lost
    for path in lost:
        path.unlink()
    with nodes.giver.client() as client:
        client.resume()
    line = line_of(nodes.asker, job_id, nodes.giver.peer, "could not fetch")
    assert "from this node" in line
    assert "where the data is lost on this machine, submit the job again" in line
    cancel(nodes, job_id)
    with nodes.asker.client() as client:
        assert_runs(nodes, client.submit(models.dense(), [wide]).id)


# --- who cannot be reached, or understood ----------------------------------------------------


@contextmanager
def broken_runtimes(root):
    """An installation in which neither executor can be imported."""
    for name in ("onnxruntime", "numba"):
        (root / name).mkdir()
        (root / name / "__init__.py").write_text("raise ImportError('half installed')\n")
    yield os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])


def test_no_device_and_unreachable(nodes, tmp_path):
    """The guest's runtimes are broken; mended, it is killed; once back it does the work."""
    guest = nodes.guest
    guest.set(bootstrap=[nodes.giver.address], allow=[nodes.asker.peer])
    with broken_runtimes(tmp_path) as path:
        guest.up(*script(few_links), PYTHONPATH=path)
    guest.wait_up()
    with nodes.giver.client() as client:
        client.pause()  # the guest is to do it
    eventually(lambda: guest.peer in peers_of(nodes.asker), 60, "the guest is known")
    job_id = submit(nodes)
    line = line_of(nodes.asker, job_id, guest.peer)
    assert "has shown no device that works" in line
    assert "“shoal devices” there tells its operator why" in line
    eventually(
        lambda: "half installed" in shoal("devices", node=guest).stdout,
        60,
        "its canaries have run",
    )
    cancel(nodes, job_id)
    guest.kill()
    guest.up(*script(few_links))
    guest.wait_up()
    eventually(lambda: offers(nodes.asker, guest), 60, "what the guest offers now is known")
    guest.kill()  # the asker has no link to it, and knows it by its advert only
    job_id = submit(nodes)
    line = line_of(nodes.asker, job_id, guest.peer, "cannot be reached")
    assert "connection refused" in line.lower()
    assert "look there whether its daemon runs (“shoal status”, else “shoal up”)" in line
    guest.up()
    assert_runs(nodes, job_id)
    guest.down()


def test_version(nodes):
    with nodes.asker.client() as client:
        client.connect(nodes.newer.address)
    with nodes.giver.client() as client:
        client.pause()
    job_id = submit(nodes)
    line = line_of(nodes.asker, job_id, nodes.newer.peer)
    assert "speaks protocol 2" in line
    assert "upgrade this node: `pip install -c constraints.txt .` in a newer checkout" in line
    cancel(nodes, job_id)


# --- how it is told --------------------------------------------------------------------------


def test_a_result_waits_for_a_check_that_nobody_can_make(nodes):
    """The giver has run it; the asker is the only one left, and its device is paused."""
    job_id = submit(nodes, verify="sample:1")
    line = line_of(nodes.asker, job_id, "the result of unit 0 waits to be checked")
    assert "nobody who may gives an answer" in line
    assert f"`shoal job cancel {job_id}` ends it" in line
    assert "`provide = true` here" in line
    account = shoal("job", "why", job_id, "--unit=0", node=nodes.asker)
    assert account.code == 0, account
    assert "waits to be checked" in account.stdout
    with nodes.asker.client() as client:
        assert client.job(job_id).state is JobState.RUNNING
        client.resume("cpu")
        try:
            assert_runs(nodes, job_id)
            (unit,), (assured,) = client.units(job_id), client.assurance(job_id)[1]
            assert (unit.provider, assured.run_again_here) == (nodes.giver.peer, True)
        finally:
            client.pause("cpu")


def test_the_command_tells_it_ranked_and_as_values(nodes):
    reload_giver(nodes, min_price=50)
    job_id = submit(nodes)
    # Its answer, not that it was asked: between the two no line is about it.
    line_of(nodes.asker, job_id, nodes.giver.peer, "worth 50 credits or more")
    told = shoal("job", "why", job_id, node=nodes.asker)
    headline, first, *rest = told.stdout.splitlines()
    assert headline.startswith("0 of 1 unit have ended")
    # What is to be done here comes before what another operator would have to do.
    assert first.startswith("this node takes no work for now")
    assert f"`shoal resume --home {nodes.asker.home}`" in first
    assert any(line.startswith(nodes.giver.peer) for line in rest)
    found = shoal("job", "why", job_id, "--json", node=nodes.asker).json
    causes = {cause["code"]: cause for cause in found["causes"]}
    assert causes["price"]["peers"] == [nodes.giver.peer]
    assert causes["price"]["remedy"] == "there"
    assert "min_price = 1" in causes["price"]["step"]
    assert causes["paused"]["remedy"] == "here"
    one = shoal("job", "why", job_id, "--unit=0", node=nodes.asker)
    assert one.stdout.startswith("Unit 0 waits for a peer that takes it")
    none = shoal("job", "why", job_id, "--unit=1", node=nodes.asker)
    assert (none.code, none.stderr.splitlines()[0]) == (
        1,
        f"error: job {job_id} has no unit 1",
    )
    cancel(nodes, job_id)


def test_watching_tells_each_change_until_the_job_has_ended(nodes):
    with nodes.giver.client() as client:
        client.pause()
    job_id = submit(nodes, rows=3)
    line_of(nodes.asker, job_id, nodes.giver.peer)
    with (
        watching(nodes.asker, job_id) as watched,
        watching(nodes.asker, job_id, "--json") as left,
    ):
        eventually(lambda: b"0 of 3 units" in watched.said(), 60, "it tells how it stands")
        eventually(lambda: left.said().endswith(b"}\n"), 60)
        left.process.send_signal(signal.SIGINT)
        assert left.process.wait(60) == 0
        assert b"Traceback" not in left.said()
        for line in left.said().splitlines():
            assert json.loads(line)["job"]["id"] == job_id
        with nodes.giver.client() as client:
            client.resume()
        assert_runs(nodes, job_id)
        assert watched.process.wait(60) == 0
    *_, last, share = watched.said().decode().splitlines()
    assert "The job is done: 3 units in " in last
    assert share.startswith(f"{nodes.giver.peer} did 3 units, ")


@contextmanager
def watching(node, job_id, *flags):
    path = node.home / f"watched{time.monotonic_ns()}"
    command = [*SHOAL, "job", "why", job_id, "--watch", *flags, f"--home={node.home}"]
    with path.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=clean_environment()
        )
    try:
        yield SimpleNamespace(process=process, said=Path(path).read_bytes)
    finally:
        process.kill()
        process.wait()
