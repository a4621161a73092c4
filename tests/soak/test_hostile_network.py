"""Everything at once that peers and strangers can do to a daemon, while it works.

A swarm of two: one daemon is attacked, and the other has its units run there. All
the time the attacked one must answer its user within a second and the units must run
on; half a minute later it must be as it was. The attackers are processes of their
own (`hostile_peer.py`), with the lowest priority.

``SHOAL_SOAK_S`` scales the fuzzing: from 600 on it is 10,000 frames on each protocol.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from daemons import curl
from onnx import parser

from shoal.node.demo.swarm import Swarm
from shoal.node.errors import DaemonUnreachableError

SOAK_S = float(os.environ.get("SHOAL_SOAK_S", "60"))
FRAMES = 10_000 if SOAK_S >= 600 else int(SOAK_S * 5)
STATUS_LIMIT_S = 1.0
RECOVERY_S = 30.0
POLL_S = 0.2
ATTACK_LIMIT_S = 300.0
"""Attackers have the lowest priority: on a busy machine they get little of it."""
HOSTILE_PEER = Path(__file__).parent / "hostile_peer.py"
MODEL = parser.parse_model(
    '<ir_version: 8, opset_import: ["" : 18]>g (float[n] x) => (float[n] y) { y = Add(x, x) }'
).SerializeToString()


@dataclass(frozen=True)
class Figures:
    """What a daemon holds; ``tasks`` by its own metrics."""

    descriptors: int
    threads: int
    memory_mb: float
    tasks: int

    @classmethod
    def of(cls, node):
        proc = Path(f"/proc/{node.process.pid}")
        pages = int((proc / "statm").read_text().split()[1])
        _, metrics = curl(node, "http://shoal/metrics")
        tasks = re.search(rb"^shoal_tasks (.*)$", metrics, re.MULTILINE)
        return cls(
            descriptors=len(list((proc / "fd").iterdir())),
            threads=len(list((proc / "task").iterdir())),
            memory_mb=round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1),
            tasks=int(float(tasks[1])),
        )


class Watch(threading.Thread):
    """Asks the daemon how it is, again and again, as ``shoal status`` does."""

    def __init__(self, node):
        super().__init__(daemon=True)
        self.node, self.phase = node, "before"
        self.worst, self.served, self.failures = {}, [], []
        self.over = threading.Event()

    def run(self):
        while not self.over.wait(POLL_S):
            phase, began = self.phase, time.monotonic()
            try:
                with self.node.client() as client:  # a new connection each time
                    found = client.status()
            except DaemonUnreachableError as error:
                self.failures.append((phase, str(error)))
                continue
            took_s = time.monotonic() - began
            self.worst[phase] = max(self.worst.get(phase, 0.0), took_s)
            self.served.append((phase, found.units_served))

    def units_in(self, phase):
        counts = [count for where, count in self.served if where == phase]
        return counts[-1] - counts[0] if counts else 0


class Work(threading.Thread):
    """Has the other daemon's user run jobs, one after another."""

    def __init__(self, node):
        super().__init__(daemon=True)
        self.node, self.units, self.error = node, 0, None
        self.over = threading.Event()

    def run(self):
        x = np.arange(20 * 64, dtype=np.float32)
        try:
            with self.node.client() as client:
                while not self.over.is_set():
                    outputs = list(client.map(MODEL, {"x": x}, batch=64))
                    np.testing.assert_array_equal(
                        np.concatenate([found["y"] for found in outputs]), 2 * x
                    )
                    self.units += len(outputs)
        except Exception as error:  # noqa: BLE001  # told by the test, with what it is
            self.error = error


def attack(node, name, count):
    """Start an attack; gives its process."""
    command = [sys.executable, HOSTILE_PEER, name, node.address, str(count)]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE)


def told(process, limit_s):
    """What an attack did, once it has ended."""
    out, _ = process.communicate(timeout=limit_s)
    assert process.returncode == 0
    return json.loads(out)


def test_the_daemon_answers_and_works_through_all_of_it_and_is_then_as_it_was():
    with Swarm(2, settings=["--cores=1"]) as swarm:
        swarm.start_all()
        swarm.wait_acquainted()
        victim, other = swarm.nodes
        with other.client() as client:
            client.pause("cpu")  # so that its units run on the one that is attacked
        watch, work = Watch(victim), Work(other)
        work.start()
        watch.start()
        processes = []
        try:
            time.sleep(8.0)
            before = Figures.of(victim)
            did = {}
            for name, count in (("resets", 50), ("garbage", 1000), ("streams", 1000)):
                watch.phase = name
                processes.append(attack(victim, name, count))
                did[name] = told(processes[-1], ATTACK_LIMIT_S)
            watch.phase = "silent, dribble, fuzz"
            together = {
                name: attack(victim, name, count)
                for name, count in (("silent", 400), ("dribble", 25), ("fuzz", FRAMES))
            }
            processes += together.values()
            did |= {
                name: told(each, ATTACK_LIMIT_S + FRAMES / 4) for name, each in together.items()
            }
            peak = Figures.of(victim)
            watch.phase = "after"
            time.sleep(RECOVERY_S)
            after = Figures.of(victim)
            with victim.client() as client:
                cut = client.cuts()
        finally:
            watch.over.set()
            work.over.set()
            for process in processes:
                if process.poll() is None:
                    process.kill()
            watch.join(30)
            work.join(130)
        phases = list(watch.worst)
        print()
        for name, what in did.items():
            print(f"{name}: {what}")
        for phase in phases:
            print(
                f"{phase:24} worst status {watch.worst[phase] * 1000:6.0f} ms, "
                f"{watch.units_in(phase)} units of the other daemon"
            )
        print(f"before {before}\nat the end {peak}\n{RECOVERY_S:.0f} s later {after}")
        print(f"cut now: {len(cut)}; log: {victim.log_path.stat().st_size / 1e6:.1f} MB")
        assert work.error is None, work.error
        assert not watch.failures
        assert max(watch.worst.values()) < STATUS_LIMIT_S
        for phase in phases:
            assert phase == "resets" or watch.units_in(phase) > 0, phase
        assert "Traceback" not in victim.log_path.read_text()
        assert min(done["frames"] for done in did["fuzz"].values()) >= FRAMES
        assert after.descriptors <= before.descriptors + 5
        assert after.threads <= before.threads + 5
        assert after.memory_mb <= before.memory_mb + 30
        assert after.tasks <= before.tasks + 20
