"""Six daemons, jobs of several submitters at once, and faults: what must hold at the end.

Each daemon has a network namespace of its own on one link, where those are to be had, so
that it can be cut off; one has a small disk and one a clock that can be set. Submitters
use the client as a user would: they try again while their daemon is down, and look whether
what they asked for was done before they ask again.
"""

import random
import sqlite3
import subprocess
import threading
import time
from collections import defaultdict
from contextlib import contextmanager, suppress
from pathlib import Path

import libfaketime
import numpy as np
import onnxruntime
from daemons import shoal
from faults import Faults, plan_faults
from links import link_or_none
from onnx import TensorProto, helper

from shoal.crypto.content import blob_id_of
from shoal.node.demo.swarm import Swarm
from shoal.node.errors import DaemonError, DaemonUnreachableError, WaitTimeoutError
from shoal.node.records import JobState, UnitState
from shoal.protocol.statements import open_receipt

NODES = 6
WIDTH = 16
ROWS_PER_UNIT = 2
SUBMITTERS = 3
PAGE = 100
VERIFIED_BY_COMMAND = 10_000
"""Receipts given to ``shoal receipt verify``; the signature of each is checked here anyway,
and a soak has 200,000 of them."""

VERIFIED_AT_ONCE = 2000
"""Receipts on one command line."""

DOWN_LIMIT_S = 90.0
"""How long the submitters' daemon may keep a user waiting: it is started again much sooner."""

DISK_BYTES = 64 << 20
FAKETIME = Path(libfaketime.__file__).parent / "vendor/libfaketime/src/libfaketime.so.1"


class ChaosSwarm(Swarm):
    """Daemons that can be hurt in more ways than by signals.

    Args:
        link: Namespaces for all of them, or None: then nobody is cut off.
        small_disk: The number of the daemon with a disk of its own.
        odd_clock: The number of the one whose clock can be set.
    """

    BALLAST_STEP_BYTES = 1 << 16

    def __init__(self, link, small_disk, odd_clock):
        super().__init__(NODES, settings=["--cores=1", "--drain=4s"])
        self.link, self.small_disk, self.odd_clock = link, small_disk, odd_clock
        self.disk = None

    def __enter__(self):
        super().__enter__()
        home = self.nodes[self.small_disk - 1].home
        spare = self._root / "key"
        spare.write_bytes((home / "identity.key").read_bytes())
        mount = ("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "tmpfs", home)
        if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
            self.disk = home
            (home / "identity.key").touch(0o600)
            (home / "identity.key").write_bytes(spare.read_bytes())
        spare.unlink()
        for node in self.nodes:
            if self.link:
                node.address = f"/ip4/{self.link.hosts[node.number - 1]}/tcp/4711"
                node.address += f"/p2p/{node.peer}"
        self.set_clock(self.nodes[self.odd_clock - 1], 0)
        return self

    def _remove(self):
        if self.disk:
            subprocess.run(["umount", self.disk], capture_output=True, check=False)
        super()._remove()

    def _before(self, node):
        inside = self.link.inside(node.number - 1) if self.link else ()
        if node.number != self.odd_clock:
            return inside
        return (
            *inside,
            "env",
            f"LD_PRELOAD={FAKETIME}",
            f"FAKETIME_TIMESTAMP_FILE={self._clock}",
            "FAKETIME_CACHE_DURATION=1",
            "DONT_FAKE_MONOTONIC=1",
            "NO_FAKE_STAT=1",
        )

    @property
    def _clock(self):
        return self._root / "clock"

    def set_clock(self, node, ahead_s):
        assert node.number == self.odd_clock
        new = self._clock.with_suffix(".new")
        new.write_text(f"{ahead_s:+d}\n")
        new.rename(self._clock)

    def cut(self, node):
        if self.link:
            self.link.cut(node.number - 1)

    def mend(self, node):
        if self.link:
            self.link.mend(node.number - 1)


def whose(seed):
    """The numbers of the daemons with the small disk and with the clock that can be set."""
    chance = random.Random(f"swarm {seed}")
    small_disk = chance.randint(2, NODES)  # a full disk of the submitters' ends their jobs
    return small_disk, chance.randint(1, NODES)


@contextmanager
def chaos_swarm(seed):
    """A swarm of which the seed says whose disk is small and whose clock can be set."""
    small_disk, odd_clock = whose(seed)
    with link_or_none(NODES) as link, ChaosSwarm(link, small_disk, odd_clock) as swarm:
        if link is None:
            print("network namespaces are not to be had: nobody is cut off")
        if swarm.disk is None:
            print("nothing can be mounted: no disk is full")
        swarm.start_all()
        swarm.wait_acquainted(timeout_s=60)
        yield swarm


def model_bytes():
    """y = tanh(x · W), twice: nearly nothing to do, so that the units are many."""
    weights = np.random.default_rng(1).normal(0, 0.3, (WIDTH, WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"]),
        helper.make_node("Tanh", ["xw"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["hw"]),
        helper.make_node("Tanh", ["hw"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "chaos",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.ravel())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 8
    return model.SerializeToString()


class Submitter(threading.Thread):
    """Submits one job after another and fetches each, until told that it is enough."""

    def __init__(self, swarm, name, seed, units_per_job, more, rest_s):
        super().__init__(name=name, daemon=True)  # it goes with a test that failed
        self.swarm, self.units_per_job, self.more = swarm, units_per_job, more
        self._rest_s = rest_s
        self._random = np.random.default_rng([seed, int(name)])
        self._model = model_bytes()
        self._local = onnxruntime.InferenceSession(
            self._model, providers=["CPUExecutionProvider"]
        )
        self._client = swarm.nodes[0].client()  # one for all: making one takes time
        self.jobs, self.units = [], {}
        self.tried_again = 0
        self.error = None

    def run(self):
        try:
            while self.more():
                label = f"{self.name}-{len(self.jobs)}"
                shape = (self.units_per_job, ROWS_PER_UNIT, WIDTH)
                self._job(label, self._random.normal(size=shape).astype(np.float32))
                time.sleep(self._rest_s)
        except BaseException as error:  # noqa: BLE001  # the test raises it
            self.error = error
        finally:
            self._client.close()

    def patiently(self, ask):
        """Ask the daemon, again while it is down, ending or silent."""
        until_s = time.monotonic() + DOWN_LIMIT_S
        while True:
            try:
                return ask(self._client)
            except (DaemonUnreachableError, WaitTimeoutError) as error:
                problem = error
            except DaemonError as error:
                if error.code not in ("draining", "starting"):
                    raise
                problem = error
            assert time.monotonic() < until_s, f"the daemon stays down: {problem}"
            self.tried_again += 1
            time.sleep(0.3)

    def _submit(self, label, units):
        """Whoever gets no answer looks whether the job is there before asking again."""

        def once(client):
            for job in client.jobs(50):
                if job.label != label or job.state is JobState.CANCELLED:
                    continue
                if job.units_total == len(units) and not job.open:
                    return job
                client.cancel(job.id)  # it ended amid the units
            return client.submit(self._model, ({"x": unit} for unit in units), label=label)

        return self.patiently(once)

    def _job(self, label, units):
        job = self._submit(label, units)
        job_id = job.id
        while not job.state.final:
            job = self.patiently(lambda client: client.wait(job_id, timeout_s=5))
        assert job.state is JobState.DONE, (job, self.patiently(lambda c: c.why(job.id)))
        assert (job.units_done, job.units_failed) == (len(units), 0), job
        self._check_results(job, units)
        self._check_units(job)
        self.jobs.append(job)

    def _check_results(self, job, units):
        """Each unit is delivered once, in the order in which they ended."""

        def fetch(client):
            found = client.results(job.id, ordered=False)
            return [(outputs.unit, outputs["y"]) for outputs in found]

        delivered = self.patiently(fetch)
        assert sorted(index for index, _ in delivered) == list(range(len(units)))
        wanted = self._local.run(None, {"x": units.reshape(-1, WIDTH)})[0].reshape(units.shape)
        for index, got in delivered:
            np.testing.assert_allclose(got, wanted[index], rtol=1e-4, atol=1e-5)

    def _check_units(self, job):
        """Each is listed once, as done, and some receipt is to be had as the others are."""
        units = []
        while len(units) < job.units_total:
            first = len(units)
            page = self.patiently(lambda c, first=first: c.units(job.id, first, PAGE))
            assert page, f"{len(units)} units of {job.units_total} are listed"
            units += page
        assert [unit.index for unit in units] == list(range(job.units_total))
        assert {unit.state for unit in units} == {UnitState.DONE}
        listed = self.patiently(lambda client: client.receipts(job.id))
        assert sorted(listed) == sorted(unit.receipt for unit in units)
        assert len(set(listed)) == len(units)
        envelope = self.patiently(lambda client: client.receipt(listed[0]))
        assert blob_id_of(envelope) == listed[0]
        self.units.update({(job.id, unit.index): unit for unit in units})


def run_chaos(seed, length_s, units_wanted, units_per_job, jobs_limit_s, rest_s=0.0):
    """Run jobs amid the seed's faults, and check everything.

    Args:
        seed: Of the faults and of the inputs.
        length_s: For how long daemons are hurt, and jobs are submitted.
        units_wanted: Jobs are submitted until there are so many units, too.
        units_per_job: How many.
        jobs_limit_s: From the last fault to the last result.
        rest_s: Between two jobs of one submitter, where others need the machine too.
    """
    began_s = time.monotonic()
    with chaos_swarm(seed) as swarm:
        plan = plan_faults(seed, length_s, NODES, swarm.small_disk, swarm.odd_clock)
        told = f"seed {seed}; faults:\n" + "\n".join(map(str, plan))
        print(f"{NODES} daemons after {time.monotonic() - began_s:.1f} s; {told}")
        faults = Faults(swarm, plan)
        submitters = []

        def more():
            return faults.running or sum(len(one.units) for one in submitters) < units_wanted

        submitters += [
            Submitter(swarm, str(number), seed, units_per_job, more, rest_s)
            for number in range(SUBMITTERS)
        ]
        try:
            hurt_s = _run(swarm, faults, submitters, jobs_limit_s)
            ended_s = time.monotonic() - began_s
            jobs = [job for one in submitters for job in one.jobs]
            units = {place: unit for one in submitters for place, unit in one.units.items()}
            assert len(units) == len(jobs) * units_per_job >= units_wanted
            swarm.wait_acquainted(timeout_s=60)
            assert not faults.wrong, "\n".join(faults.wrong)
            assert not [node.number for node in swarm.nodes if not node.running]
            swarm.end()
            check_journal(swarm, jobs, units)
            check_logs(swarm.nodes)
        except BaseException:
            print(f"logs are kept in {swarm.keep_logs()}; SHOAL_SOAK_SEED={seed} repeats it")
            with suppress(OSError, sqlite3.Error):
                print(journal_now(swarm.nodes[0]))
            raise
        print(
            f"{len(jobs)} jobs, {len(units)} units; {hurt_s:.0f} s with "
            f"{sum(faults.done.values())} faults ({dict(faults.done)}), "
            f"{ended_s:.0f} s to the last result, "
            f"{time.monotonic() - began_s:.0f} s in all; "
            f"submitters tried again {sum(one.tried_again for one in submitters)} times"
        )


def _run(swarm, faults, submitters, jobs_limit_s):
    """Give how long the faults took."""
    began_s = time.monotonic()
    with faults:
        for one in submitters:
            one.start()
        while faults.running and not any(one.error for one in submitters):
            time.sleep(0.2)
    hurt_s = time.monotonic() - began_s
    until_s = time.monotonic() + jobs_limit_s
    for one in submitters:
        while one.is_alive() and not any(each.error for each in submitters):
            one.join(0.2)
            assert time.monotonic() < until_s, f"no end {jobs_limit_s} s after the last fault"
    for one in submitters:
        if one.error:
            raise one.error
    return hurt_s


def check_journal(swarm, jobs, units):
    """Every unit ended once, with one receipt, which is what it should be; no daemon runs."""
    directory = swarm._root / "receipts"
    directory.mkdir()
    program = {job.id: job.program for job in jobs}
    awards = defaultdict(set)
    with _journal(swarm.nodes[0]) as journal:
        ended = journal.execute("SELECT job, place, state FROM units").fetchall()
        receipts = journal.execute("SELECT job, place, id, envelope FROM receipts").fetchall()
    ended = [(job, place, state) for job, place, state in ended if job in program]
    receipts = [found for found in receipts if found[0] in program]
    assert sorted(ended) == sorted((*place, "done") for place in units)
    assert sorted(found[:2] for found in receipts) == sorted(units)
    for job_id, index, receipt_id, envelope in receipts:
        unit, receipt = units[job_id, index], open_receipt(envelope)
        assert blob_id_of(envelope) == receipt_id == unit.receipt
        assert receipt.unit == f"{job_id}/{index}"
        assert dict(receipt.inputs) == unit.inputs
        assert dict(receipt.outputs) == unit.outputs
        assert receipt.provider == unit.provider
        assert receipt.requester == swarm.nodes[0].peer
        assert receipt.program == program[job_id]
        awards[receipt.award].add((receipt.provider, job_id))
        (directory / f"{receipt_id}.receipt").write_bytes(envelope)
    for award, of in awards.items():  # one lease is of one provider and for one job
        assert len(of) == 1, (award, of)
    providers = {provider for of in awards.values() for provider, _ in of}
    assert providers <= {node.peer for node in swarm.nodes}
    assert len(providers) > NODES / 2, f"only {len(providers)} daemons did anything"
    files = sorted(directory.iterdir())
    _verify(random.Random(0).sample(files, min(len(files), VERIFIED_BY_COMMAND)))


def _verify(files):
    """``shoal receipt verify`` finds nothing wrong."""
    for first in range(0, len(files), VERIFIED_AT_ONCE):
        some = files[first : first + VERIFIED_AT_ONCE]
        verified = shoal("receipt", "verify", *some, "--json")
        assert verified.code == 0, verified
        assert [one["valid"] for one in verified.json["receipts"]] == [True] * len(some)


def journal_now(node):
    """How many units stand how, by job."""
    with _journal(node) as journal:
        return journal.execute(
            "SELECT job, state, COUNT(*) FROM units GROUP BY job, state"
        ).fetchall()


@contextmanager
def _journal(node):
    journal = sqlite3.connect(f"file:{node.home}/state.sqlite?mode=ro", uri=True)
    try:
        yield journal
    finally:
        journal.close()


def check_logs(nodes):
    """No daemon met what it had not foreseen."""
    for node in nodes:
        log = node.log_path.read_text(errors="replace")
        for word in ("Traceback", '"internal"', "Exception ignored", "failed inside"):
            at = log.find(word)
            found = log[max(0, at - 500) : at + 4000]
            assert at < 0, f"{word} in the log of daemon {node.number}:\n{found}"
