"""One requester of the simulator: its jobs, over the scheduler that nodes run.

What `node.jobs` and `node.handing_over` do with the plan's actions is done here with virtual
messages. What comes back goes to `simulator_checking`.
"""

from __future__ import annotations

import math
from collections import Counter
from hashlib import blake2b

from leases import lease_granted
from simulator_checking import Checking, Returned
from simulator_world import TIME_LIMIT_S, Work

from shoal.node import probation
from shoal.node.result_standing import Deed
from shoal.node.scheduling import actions as do
from shoal.node.scheduling import events
from shoal.node.scheduling.plan import WINDOW_UNITS, plan
from shoal.node.scheduling.state import Facts, JobQueue, Offer, State
from shoal.node.standing import Offence

CLASS = "exact"
REST_S = 5.0
LOOK_AROUND_S = 5.0
CALL_LIMIT_S, UNIT_LIMIT_S = 3.0, 5.0

PLAN_S = 0.5
"""How often a requester plans at most: what comes in between is planned for together."""

RTT_S = 0.15

FETCH_S = 1.0
"""After which a submitter that waits for results has fetched one."""


READY, ENDING, DONE = "ready", "ending", "done"


class Requester:
    """A node with work for others, one job after another.

    Args:
        world, swarm: Where it lives, and who counts.
        node: Itself.
        jobs: Of each, how many units it has, and whether its results are fetched as they
            come, and not all at its end.
        verify: How they are verified.
    """

    def __init__(self, world, swarm, node, jobs, verify):
        self.world, self.swarm, self.node = world, swarm, node
        self.state, self.court = State(), swarm.spread.court(node)
        self.standings = self.court.standings
        self.jobs_left = list(jobs)
        self.job, self.streaming, self.done = None, False, False
        self.journal, self.cursor = {}, -1
        self.checking = Checking(self, verify)
        self._planned_s = math.inf
        self._looked_s = -math.inf
        self._names = 0
        self._orders = {}
        self.world.at(self.world.random.uniform(0.0, 5.0), self._next_job)

    # -- jobs --

    def _next_job(self):
        if not self.jobs_left:
            self.done = True
            return
        units, self.streaming = self.jobs_left.pop(0)
        self._names += 1
        self.job = f"{self.node.number}-{self._names}"
        self.journal, self.cursor = dict.fromkeys(range(units), READY), -1
        queue = JobQueue(self.job, ("p", CLASS), CLASS, units=units)
        events.job_started(self.state, queue)
        self.look_again()

    @property
    def queue(self):
        """The scheduler's part of the job; None where none runs."""
        return self.state.jobs.get(self.job)

    def _ends(self, job):
        """All units have ended, if that is so."""
        if job != self.job:
            return
        states = Counter(self.journal.values())
        if states[READY]:
            self.cursor = -1
            events.units_ready(self.state, job)
            self.wake()
        elif states[ENDING]:
            self.world.after(0.5, self._ends, job)
        else:
            events.job_ended(self.state, job, self.world.now_s)
            for unit in self.journal:
                self.checking.fetched(unit)
            self.job = None
            self.world.after(FETCH_S, self._next_job)

    def delivers(self, unit):
        """A result is there for the submitter: each unit's once, unless it is run again."""
        assert self.journal[unit] == ENDING, "a unit is delivered once"
        self.journal[unit] = DONE
        if self.streaming:
            self.world.after(FETCH_S, self._fetches, self.job, unit)

    def _fetches(self, job, unit):
        if job == self.job and self.journal[unit] == DONE:
            self.checking.fetched(unit)

    def reopen(self, unit):
        """A unit waits again, whatever came of it before."""
        assert self.journal[unit] != READY
        self.journal[unit] = READY
        self.cursor = -1
        events.units_ready(self.state, self.job)
        self.wake()

    # -- the plan --

    def wake(self, at_s=None):
        """Plan again, at once or then."""
        now_s = self.world.now_s
        at_s = now_s + PLAN_S if at_s is None else max(at_s, now_s + PLAN_S)
        if at_s < self._planned_s:
            self._planned_s = at_s
            self.world.at(at_s, self._plans, at_s)

    def look_again(self):
        """See again who may be called, and plan."""
        self._looked_s = -math.inf
        self.wake()

    def _plans(self, at_s):
        if at_s != self._planned_s:
            return
        self._planned_s, now_s = math.inf, self.world.now_s
        if self.job is None:
            return
        if now_s >= self._looked_s + LOOK_AROUND_S:
            self._looked_s = now_s
            events.peers_known(self.state, {CLASS: self._offering()})
            self._renew_leases()
        while (decided := plan(self.state, now_s)).actions:
            for action in decided.actions:
                events.apply(self.state, action, now_s)
                self._begin(action)
        self.wake(min(decided.wake_at_s, self._looked_s + LOOK_AROUND_S))

    def _offering(self):
        able = [
            peer
            for peer in self.world.nodes
            if peer != self.node.peer and not self.checking.shuns(peer)
        ]
        peers, _ = self._tried(sorted(able, key=self._preference))
        share = self.standings.share
        return {peer: Facts(rtt_s=RTT_S, standing=share(peer)) for peer in peers}

    def _tried(self, peers):
        if self.checking.verify.level != "auto":
            return peers, []
        return probation.tried(peers, self.standings.of, self.standings.may_verify)

    def _preference(self, peer):
        """An order of its own, as the distance on the network gives one."""
        order = self._orders.get(peer)
        if order is None:
            order = blake2b(f"{self.node.peer}/{peer}".encode(), digest_size=8).digest()
            self._orders[peer] = order
        return order

    def _renew_leases(self):
        able = set(self.checking.able())
        for lease_id, lease in self.state.leases.items():
            listed = self.checking.draws[lease_id].draw.candidates
            if not lease.closed and probation.outdated(listed, len(able - {lease.peer})):
                events.lease_closed(self.state, lease_id)

    def _begin(self, action):
        match action:
            case do.Call():
                for peer in action.peers:
                    self._ask(self._bid, action.job, peer)
            case do.Award():
                self._ask(self._lease, action.job, action.peer)
            case do.HandOver():
                self._hand_over(action)
            case do.ReadOn():
                self.world.after(0.0, self._read, action.job)
            case do.Check():
                self.world.after(0.0, self._ends, action.job)
            case do.Drop(lease=lease):
                peer = self.checking.draws[lease].provider
                self.standings.note(peer, Deed.SLOW)
                self._refused(action.job, peer, "no_answer")
            case do.GiveUp():  # too many leases broke under it
                self.swarm.counts.given_up += 1
                self.journal[action.unit] = DONE

    def _ask(self, then, job, peer):
        took_s = self.world.exchange_s(tries=1)
        if took_s is None:
            self.world.after(CALL_LIMIT_S, self._refused, job, peer, "no_answer")
        else:
            self.world.after(took_s, then, job, peer)

    def _refused(self, job, peer, why, rest_s=REST_S):
        events.refused(self.state, job, peer, why, self.world.now_s + rest_s)
        self.wake()

    def _bid(self, job, peer):
        events.bid_came(self.state, job, peer, Offer(1.0, 4096, 256, 64), self.world.now_s)
        self.wake()

    def _lease(self, job, peer):
        queue = self.state.jobs.get(job)
        if queue is None or not queue.candidate(peer).awarding:
            return
        if self.checking.shuns(peer):
            self._refused(job, peer, "banned", math.inf)
            return
        lease = lease_granted(self.state, job, peer, self.world.now_s)
        self.checking.awarded(lease, peer)
        self.wake()

    def _read(self, job):
        if job == self.job:
            units = [i for i, s in self.journal.items() if s == READY and i > self.cursor]
            units = units[:WINDOW_UNITS]
            self.cursor = units[-1] if units else self.cursor
            events.units_read(self.state, job, units, more=len(units) == WINDOW_UNITS)
            self.wake()

    # -- units --

    def batches_at(self, peer):
        """How many messages are out at a peer."""
        return len(self.state.line(peer).batches)

    def _hand_over(self, action):
        world, lease = self.world, self.state.leases[action.lease]
        node = world.nodes[lease.peer]
        took_s = world.exchange_s()
        if took_s is None:
            world.after(UNIT_LIMIT_S, self._broken, action.lease, Deed.NO_ANSWER)
            return
        at_s, waits_s, returned = max(world.now_s + took_s / 2, node.free_at_s), 0.0, []
        for unit in action.units:
            work = Work(self.job, unit)
            ran = world.run_unit(node, work)
            at_s += ran.seconds
            waits_s += ran.reply.wait * TIME_LIMIT_S
            receipt = world.sign(node, work, f"{self.job}/{action.lease}", ran.result)
            returned.append(Returned(self.job, unit, receipt, ran.reply.receipts > 1))
        node.free_at_s = at_s
        self.swarm.counts.ran("copies" if action.copies else "units", len(action.units))
        world.at(at_s + waits_s + took_s / 2, self._answered, action, returned)

    def _broken(self, lease_id, deed):
        lease = self.state.leases.get(lease_id)
        if lease is not None:
            events.lease_broken(self.state, lease_id)
            self.standings.note(lease.peer, deed)
            self._refused(lease.job, lease.peer, deed.value)

    def _answered(self, action, returned):
        batch = self.state.batches.get(action.batch)
        if batch is None:
            return  # its lease is gone
        node = self.world.nodes[batch.peer]
        if not node.kind.serves_blobs():
            self._broken(action.lease, Deed.NO_ANSWER)
            return
        draw = self.checking.draws[action.lease].draw
        events.came_back(self.state, batch.id, self.world.now_s, len(returned), action.cost_s)
        for one in returned:
            if not self.checking.shuns(batch.peer) and events.ended(
                self.state, action.job, one.unit, batch.id
            ):
                assert self.journal[one.unit] == READY
                self.journal[one.unit] = ENDING
                self.checking.took(one, draw)
        events.batch_over(self.state, batch.id)
        if node.kind.invents(node.units):  # a receipt under an award that nobody gave
            self.court.wire.broke(node.peer, Offence.BAD_RESULT)
            events.lease_broken(self.state, action.lease)
            self._refused(action.job, node.peer, "wrong_award", math.inf)
        if node.kind.accuses(node.units):
            self.swarm.accuses(node)
        self.wake()

    def lets_go_of(self, peer):
        """Have nothing more to do with a peer."""
        for lease in [x for x in self.state.leases.values() if x.peer == peer]:
            events.lease_broken(self.state, lease.id)
        if self.queue is not None:
            events.refused(self.state, self.job, peer, "banned", math.inf)
        self.look_again()
