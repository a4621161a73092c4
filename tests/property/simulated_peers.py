"""Peers of given speeds in virtual time, for the scheduler of one node.

`Simulation` does what `node.jobs` does with the plan's actions, and what providers do:
each runs one unit at a time, in the order in which they came, stops at a unit that is
cancelled, and answers a batch whole.
"""

import heapq
import math
from dataclasses import dataclass, field
from itertools import count

from leases import lease_granted

from shoal.node.scheduling import actions as do
from shoal.node.scheduling import events
from shoal.node.scheduling.plan import WINDOW_UNITS, plan
from shoal.node.scheduling.state import Facts, JobQueue, Offer, State

CLASS = "fp32"
REST_S = 5.0


@dataclass
class Peer:
    """A provider: ``unit_s`` seconds per unit, and ``cold_s`` for the first.

    For ``fetches_s`` of those the node sends it the program.
    """

    name: str
    unit_s: float
    rtt_s: float = 0.01
    cold_s: float = 0.0
    fetches_s: float = -math.inf
    began_s: float = math.inf
    batch_max: int = 64
    in_flight_max: int = 128
    rate: float | None = None
    up: bool = True
    hung: bool = False
    runs: int = 0
    turn: int = 0
    line: list = field(default_factory=list)
    working: bool = False
    generation: int = 0


class Simulation:
    """One node with its jobs, and its peers."""

    def __init__(self, *peers):
        self.state = State()
        self.peers = {peer.name: peer for peer in peers}
        self.now_s = 0.0
        self.ended_s, self.journal, self.results = {}, {}, {}
        self.cursors, self.batches = {}, {}
        self.units_run = 0
        self.failed, self.dropped = [], []
        self._queue, self._order = [], count()
        self._wake_s = math.inf

    # -- what tests do --

    def at(self, time_s, action, *args):
        """Do this then."""
        heapq.heappush(self._queue, (time_s, next(self._order), action, args))

    def job(self, name, units, *, at_s=0.0, priority=0, program="p", factor=1.0, **more):
        """A job whose units take ``factor`` as long as each peer's own seconds."""

        def start():
            self.journal[name] = dict.fromkeys(range(units))
            self.results[name], self.cursors[name] = {}, -1
            job = JobQueue(
                name, (program, CLASS), CLASS, weight=2.0**priority, units=units, **more
            )
            events.job_started(self.state, job)

        self.factors = {**getattr(self, "factors", {}), name: factor}
        self.at(at_s, start)

    def down(self, name):
        """A peer dies: its links break, and what it had is lost."""
        peer = self.peers[name]
        peer.up, peer.line, peer.working = False, [], False
        peer.generation += 1
        for lease in [lease for lease in self.state.leases.values() if lease.peer == name]:
            events.lease_broken(self.state, lease.id)
            until_s = self.now_s + REST_S
            events.refused(self.state, lease.job, name, "link_lost", until_s)

    def comes_up(self, name):
        self.peers[name].up = True

    def hangs(self, name):
        self.peers[name].hung = True

    def run(self, until_s=1e5):
        """Until all jobs have ended; gives when the last one did."""
        while self._queue and self.now_s < until_s:
            self.now_s, _, action, args = heapq.heappop(self._queue)
            action(*args)
            self._settle()
            if not self.state.jobs and not self._pending():
                break
        return max(self.ended_s.values(), default=math.inf)

    def _pending(self):
        return any(action.__name__ == "start" for _, _, action, _ in self._queue)

    # -- the node --

    def _settle(self):
        up = {name: peer for name, peer in self.peers.items() if peer.up}
        offering = {
            name: Facts(p.rtt_s, rate=p.rate, sent_s=self._sent_s(p)) for name, p in up.items()
        }
        events.peers_known(self.state, {CLASS: offering})
        if self._wake_s <= self.now_s:
            self._wake_s = math.inf
        for _ in range(10_000):
            decided = plan(self.state, self.now_s)
            assert plan(self.state, self.now_s) == decided
            for action in decided.actions:
                if isinstance(action, do.Drop):
                    self._drop(action)
                events.apply(self.state, action, self.now_s)
                self._begin(action)
            if decided.actions:
                self.check()
            if not decided.actions:
                break
        else:
            raise AssertionError("the plan never comes to an end")
        wake_s = max(decided.wake_at_s, self.now_s)
        if wake_s < self._wake_s or self._wake_s <= self.now_s:
            self._wake_s = wake_s
            if wake_s < math.inf:
                self.at(wake_s, self._nothing)

    def _sent_s(self, peer):
        """When it last got something of the program, which it fetches with its first unit."""
        if math.inf in {peer.began_s, -peer.fetches_s}:
            return -math.inf
        return min(self.now_s, peer.began_s + peer.fetches_s)

    def _nothing(self):
        pass

    def check(self):
        for job in self.state.jobs.values():
            for index, copies in job.out.items():
                assert index not in job.waiting
                assert len({self.state.batches[b].peer for b in copies}) == len(copies) <= 2
        for lease in self.state.leases.values():
            batches = [self.state.batches[b] for b in lease.batches]
            assert sum(b.units for b in batches) <= lease.offer.in_flight_max
            assert lease.left >= 0

    def _begin(self, action):  # noqa: C901
        match action:
            case do.Call():
                for name in action.peers:
                    self.at(self.now_s + self.peers[name].rtt_s, self._bid, action.job, name)
            case do.Award():
                peer = self.peers[action.peer]
                self.at(self.now_s + peer.rtt_s, self._lease, action.job, action.peer)
            case do.HandOver():
                batch = self.state.batches[action.batch]
                peer = self.peers[batch.peer]
                entry = {"job": action.job, "batch": action.batch, "cost": action.cost_s}
                entry |= {"left": list(action.units), "ran": [], "gone": set()}
                self.batches[action.batch] = entry
                self.at(self.now_s + peer.rtt_s / 2, self._arrive, peer, peer.generation, entry)
            case do.Cancel():
                peer = self.peers[self.state.batches[action.batch].peer]
                entry = self.batches[action.batch]
                entry["gone"].update(action.units)
                self.at(self.now_s + peer.rtt_s / 2, self._stop, peer, peer.generation, entry)
            case do.ReadOn():
                self.at(self.now_s, self._read, action.job)
            case do.Check():
                self.at(self.now_s, self._checked, action.job)
            case do.GiveUp():
                self.failed.append((action.job, action.unit))
                self._ends(action.job, action.unit)
            case do.FailFast():
                self.at(self.now_s, self._over, action.job)
            case do.Drop():
                pass

    def _drop(self, action):
        name = self.state.leases[action.lease].peer
        self.dropped.append(name)
        events.refused(self.state, action.job, name, "no_answer", self.now_s + REST_S)

    def _bid(self, job_id, name):
        peer = self.peers[name]
        if peer.up:
            offer = Offer(1.0, 4096, peer.in_flight_max, peer.batch_max)
            events.bid_came(self.state, job_id, name, offer, self.now_s)
        else:
            events.refused(self.state, job_id, name, "unreachable", self.now_s + REST_S)

    def _lease(self, job_id, name):
        job = self.state.jobs.get(job_id)
        if job is None or not job.candidate(name).awarding:
            return
        if self.peers[name].up:
            lease_granted(self.state, job_id, name, self.now_s)
        else:
            events.refused(self.state, job_id, name, "unreachable", self.now_s + REST_S)

    def _read(self, job_id):
        if job_id not in self.state.jobs:
            return
        units = [i for i in self.journal[job_id] if i > self.cursors[job_id]][:WINDOW_UNITS]
        self.cursors[job_id] = units[-1] if units else self.cursors[job_id]
        events.units_read(self.state, job_id, units, more=len(units) == WINDOW_UNITS)

    def _checked(self, job_id):
        if job_id in self.state.jobs:
            assert not self.journal[job_id]
            self._over(job_id)

    def _over(self, job_id):
        self.ended_s[job_id] = self.now_s
        events.job_ended(self.state, job_id, self.now_s)

    def _ends(self, job_id, index):
        assert index in self.journal[job_id], "a unit ended twice"
        del self.journal[job_id][index]
        self.results[job_id][index] = self.now_s

    # -- the providers --

    def _arrive(self, peer, generation, entry):
        if peer.up and peer.generation == generation:
            peer.began_s = min(peer.began_s, self.now_s)
            peer.line.append(entry)
            self._work(peer)

    def _work(self, peer):
        if peer.working or peer.hung or not peer.up:
            return
        while peer.line:
            entry = peer.line[0]
            while entry["left"] and entry["left"][0] in entry["gone"]:
                entry["left"].pop(0)
            if entry["left"]:
                seconds = peer.unit_s * self.factors[entry["job"]]
                seconds += self._cold_for_s(peer)
                peer.working = True
                peer.runs += 1
                self.units_run += 1
                peer.turn += 1
                at_s = self.now_s + seconds
                self.at(at_s, self._ran, peer, peer.generation, peer.turn, entry)
                return
            peer.line.pop(0)
            self.at(self.now_s + peer.rtt_s / 2, self._answered, peer, peer.generation, entry)

    def _cold_for_s(self, peer):
        if peer.fetches_s > 0:  # it fetches on, whatever becomes of its units meanwhile
            return max(0.0, peer.began_s + peer.cold_s - self.now_s)
        return 0.0 if peer.runs else peer.cold_s

    def _stop(self, peer, generation, entry):
        runs = peer.working and peer.line[0] is entry and entry["left"][0] in entry["gone"]
        if runs and peer.generation == generation and not peer.hung:
            peer.working = False
            peer.turn += 1
            self._work(peer)

    def _ran(self, peer, generation, turn, entry):
        if (peer.generation, peer.turn) == (generation, turn) and not peer.hung:
            peer.working = False
            entry["ran"].append(entry["left"].pop(0))
            self._work(peer)

    def _answered(self, peer, generation, entry):
        if peer.generation != generation or peer.hung:
            return
        batch = entry["batch"]
        events.came_back(self.state, batch, self.now_s, len(entry["ran"]), entry["cost"])
        for index in entry["ran"]:
            if events.ended(self.state, entry["job"], index, batch):
                self._ends(entry["job"], index)
        events.batch_over(self.state, batch)
