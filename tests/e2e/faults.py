"""Faults by a seed: a list that is planned beforehand, and what carries it out.

The same seed, length and number of daemons give the same list, so whatever a run finds can
be looked for again. What happens in between is up to the machine.
"""

import random
import signal
import subprocess
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

EVERY_S = (1.5, 4.0)
"""Between the beginnings of two faults."""

LASTS_S = {
    "kill": (0.0, 4.0),  # from SIGKILL to the next start
    "end": (0.0, 3.0),  # the same by SIGTERM, of which a daemon makes an orderly end
    "stop": (1.0, 9.0),  # SIGSTOP to SIGCONT
    "cut": (2.0, 12.0),  # its packets are lost
    "fill": (4.0, 8.0),  # nothing can be written to its disk
    "ahead": (6.0, 12.0),  # its clock
    "behind": (6.0, 12.0),
}
COMMON = ("kill", "stop", "end", "cut")
RARE = ("fill", "ahead", "behind")
COMMON_PER_RARE = 4
HURT_LIMIT = 3
"""Daemons hurt at once, of six: else there is nobody to do anything."""

START_S = 4.0
"""What a daemon takes to start, for the plan: it is left alone meanwhile."""

END_LIMIT_S = 40.0
_BALLAST = "ballast"


@dataclass(frozen=True)
class Fault:
    """One daemon is hurt from ``at_s`` on for ``lasts_s`` seconds."""

    at_s: float
    node: int
    kind: str
    lasts_s: float

    def __str__(self):
        return f"{self.at_s:7.1f} s  daemon {self.node}  {self.kind} for {self.lasts_s:.1f} s"

    @property
    def over_s(self):
        """When the daemon may be hurt again."""
        return self.at_s + self.lasts_s + (START_S if self.kind in ("kill", "end") else 1.0)


def plan_faults(seed, length_s, nodes, small_disk, odd_clock):
    """Which daemon is hurt when and how.

    Each kind comes up as often as the others, and each daemon, the first among them.

    Args:
        seed: Equal seeds give equal plans.
        length_s: The last fault is over by then.
        nodes: How many daemons; they are numbered from 1.
        small_disk: The daemon whose disk can be filled.
        odd_clock: The daemon whose clock can be set.
    """
    chance = random.Random(seed)
    own = {"fill": small_disk, "ahead": odd_clock, "behind": odd_clock}
    kinds, whom, plan = [], [], []
    rare, at_s = 0, 0.0
    while True:
        at_s += chance.uniform(*EVERY_S)
        if not kinds:
            kinds = [*COMMON * COMMON_PER_RARE, RARE[rare % 3], RARE[(rare + 1) % 3]]
            rare += 2
            chance.shuffle(kinds)
        busy = {fault.node for fault in plan if fault.over_s > at_s}
        if len(busy) >= min(HURT_LIMIT, nodes - 1):
            continue
        kind = next((one for one in kinds if own.get(one) not in busy), None)
        if kind is None:
            continue
        lasts_s = chance.uniform(*LASTS_S[kind])
        if not set(whom) - busy:
            whom += chance.sample(range(1, nodes + 1), nodes)
        node = own.get(kind) or next(one for one in whom if one not in busy)
        fault = Fault(round(at_s, 2), node, kind, round(lasts_s, 2))
        if fault.over_s > length_s:
            return plan
        kinds.remove(kind)
        if kind not in own:
            whom.remove(node)
        plan.append(fault)


class Faults:
    """Carries a plan out in threads of its own, and notes which daemon died without it.

    Args:
        swarm: Of which `cut`, `mend`, `disk` and `set_clock` are used too.
        plan: As `plan_faults` gives it.
    """

    def __init__(self, swarm, plan):
        self.swarm, self.plan = swarm, plan
        self.done = Counter()
        self.wrong = []
        """What happened that no fault accounts for."""
        self._down = set()
        self._locks = {node.number: threading.Lock() for node in swarm.nodes}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="faults")

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        """Every fault that has begun is over then, and every daemon was started again."""
        self._over.set()
        self._thread.join()

    @property
    def running(self):
        """Whether faults are still to come."""
        return self._thread.is_alive()

    def _run(self):
        began_s = time.monotonic()
        hurting = []
        for fault in self.plan:
            while (left_s := began_s + fault.at_s - time.monotonic()) > 0:
                if self._over.wait(min(left_s, 0.2)):
                    break
                self._look()
            if self._over.is_set():
                break
            hurting.append(threading.Thread(target=self._hurt_and_tell, args=(fault,)))
            hurting[-1].start()
        for thread in hurting:
            thread.join()
        self._look()

    def _look(self):
        for node in self.swarm.nodes:
            if node.number not in self._down and not node.running:
                code = None if node.process is None else node.process.returncode
                self._tell(f"daemon {node.number} ended by itself with {code}", node)
                self._down.add(node.number)

    def _tell(self, what, node):
        self.wrong.append(f"{what}; its last words:\n{node.last_words()}")

    def _hurt_and_tell(self, fault):
        node = self.swarm.nodes[fault.node - 1]
        with self._locks[fault.node]:
            try:
                self._hurt(node, fault)
            except Exception as error:  # noqa: BLE001  # in a thread: the test is told
                self._tell(f"{fault}: {error!r}", node)
        self.done[fault.kind] += 1

    def _hurt(self, node, fault):
        match fault.kind:
            case "kill" | "end":
                self._down.add(node.number)
                if fault.kind == "kill":
                    node.kill()
                else:
                    self._end(node)
                time.sleep(fault.lasts_s)
                self.swarm.start(node)
                self._down.discard(node.number)
                self.swarm.wait_ready(node)
            case "stop":
                node.signal(signal.SIGSTOP)
                time.sleep(fault.lasts_s)
                node.signal(signal.SIGCONT)
            case "cut":
                self.swarm.cut(node)
                time.sleep(fault.lasts_s)
                self.swarm.mend(node)
            case "fill":
                self._fill(node, fault.lasts_s)
            case "ahead" | "behind":
                self.swarm.set_clock(node, 3600 if fault.kind == "ahead" else -3600)
                time.sleep(fault.lasts_s)
                self.swarm.set_clock(node, 0)

    def _end(self, node):
        node.signal(signal.SIGTERM)
        try:
            code = node.process.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._tell(f"daemon {node.number} does not end when told to", node)
            node.kill()
            return
        if code != 0:
            self._tell(f"daemon {node.number}, told to end, ended with {code}", node)

    def _fill(self, node, lasts_s):
        """Keep the disk full: what the daemon itself frees meanwhile is taken too."""
        ballast = node.home / _BALLAST
        until_s = time.monotonic() + lasts_s
        try:
            with ballast.open("wb", buffering=0) as file:
                while time.monotonic() < until_s:
                    with suppress(OSError):  # full
                        while time.monotonic() < until_s:
                            file.write(bytes(self.swarm.BALLAST_STEP_BYTES))
                    time.sleep(0.1)
        finally:
            ballast.unlink()
