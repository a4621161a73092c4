"""200 nodes, a fifth of them liars, in virtual time, over the machines that nodes run.

``python tests/zoo/simulator.py`` prints the tables of docs/verification.md; ``--only 0`` runs
the first scenario alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from kinds import KINDS, ColludingVerifier, HonestThenCheat, Kind
from simulator_measures import Counts, of_kinds, of_run, of_runs
from simulator_requester import Requester
from simulator_spread import Spread
from simulator_world import Ring, World

from shoal.protocol.verification.policy import Verify

RENEWALS, RENEWED_AFTER_S = 8, 10.0
"""Keys that a sybil has beside its first, and when the next one comes."""

SEEDS = 3
"""Runs of the first scenario, each by a seed of its own."""

GOOD_FIRST = (30, 100, 300)
"""Units that those who earn a good name first do as they should."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is simulated.

    Attributes:
        liars: Their share of all nodes; of each kind as many.
        colluding: The share of all others that are honest as providers, and as verifiers
            say whatever a liar said before them; then all liars and these are one ring.
        units, requesters, job: How many units in all, by how many honest nodes, in jobs of
            so many.
        loss: Of single messages.
    """

    name: str = "auto"
    seed: int = 1
    nodes: int = 200
    liars: float = 0.2
    units: int = 100_000
    requesters: int = 4
    job: int = 5000
    verify: str = "auto"
    loss: float = 0.0
    colluding: float = 0.0

    @property
    def weight(self):
        """The more, the longer it runs."""
        return self.units * (1.0 + self.colluding + self.loss)


class Swarm:
    """One run of a scenario."""

    def __init__(self, scenario):
        self.scenario = scenario
        colluding = round(scenario.colluding * scenario.nodes * (1.0 - scenario.liars))
        self.world = World(scenario.seed, loss=scenario.loss, all_tell=colluding > 0)
        self.counts = Counts(self.world, scenario.units)
        self.spread = Spread(self.world, self._convicted)
        self._renewals = {}
        ring = Ring()
        liars = liars_of(round(scenario.liars * scenario.nodes))
        for place in range(scenario.nodes - len(liars)):
            if place < colluding:
                self.world.join(ColludingVerifier(), ring)
            else:
                self.world.join(Kind())
        for kind in liars:
            self.world.join(kind, ring if colluding or kind.ring else None)
        givers = [node for node in self.world.nodes.values() if node.honest]
        self.requesters = {
            node.peer: Requester(
                self.world, self, node, self._jobs(), Verify.parse(scenario.verify)
            )
            for node in givers[: scenario.requesters]
        }

    def _jobs(self):
        """Every other one is fetched as its results come."""
        left, jobs = self.scenario.units // self.scenario.requesters, []
        while left:
            jobs.append((min(left, self.scenario.job), len(jobs) % 2 == 0))
            left -= jobs[-1][0]
        return jobs

    def run(self):
        """Until all jobs have ended."""
        self.world.run(lambda: all(r.done for r in self.requesters.values()))
        assert all(r.done for r in self.requesters.values()), "a job never ends"
        return self

    def accuses(self, node):
        """A false accuser does what it is there for."""
        others = [other for other in self.world.nodes.values() if other.honest]
        self.spread.accuse_falsely(node, self.world.random.choice(others))

    def _convicted(self, node, accused):
        self.counts.banned(node, accused)
        if node.peer in self.requesters:
            self.requesters[node.peer].checking.found_false(accused.peer)
        if self.counts.bans[accused.peer] > 1:
            return
        renewals = self._renewals.setdefault(accused.kind, 0)
        if accused.kind.renews_key(banned=True) and renewals < RENEWALS:
            self._renewals[accused.kind] += 1
            self.world.after(RENEWED_AFTER_S, self.world.join, accused.kind)


def liars_of(count):
    """So many liars, of each kind in turn."""
    names = [name for name in KINDS if name not in {"honest", "never_acknowledges"}]
    made = []
    for place in range(count):
        kind = KINDS[names[place % len(names)]]
        good = GOOD_FIRST[place // len(names) % len(GOOD_FIRST)]
        made.append(kind(good) if kind is HonestThenCheat else kind())
    return made


def scenarios(units, seed):
    """Those of docs/verification.md: where p falls with time whole, the others at a fifth."""
    fifth = max(1000, units // 5)
    return [
        *(Scenario(f"`auto`, seed {s}", s, units=units) for s in range(seed, seed + SEEDS)),
        Scenario("`auto`, 30 % of messages lost", seed, units=units, loss=0.3),
        Scenario("`auto`, 45 % colluding verifiers", seed, units=units, colluding=0.45),
        Scenario("`auto`, both of these", seed, units=units, loss=0.3, colluding=0.45),
        Scenario("`sample:1`", seed, units=fifth, verify="sample:1"),
        Scenario("`quorum:2`", seed, units=fifth, verify="quorum:2"),
        Scenario("`quorum:3`", seed, units=fifth, verify="quorum:3"),
        Scenario("`receipt` (nothing is checked)", seed, units=fifth, verify="receipt"),
    ]


def main():
    """Run all scenarios and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="one scenario, counted from 0")
    parser.add_argument("--jobs", type=int, default=1, help="scenarios at a time, one per core")
    given = parser.parse_args()
    wanted = scenarios(given.units, given.seed)
    if given.only is not None:
        wanted = [wanted[given.only]]
    with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn")) as pool:
        longest = sorted(
            range(len(wanted)), key=lambda place: wanted[place].weight, reverse=True
        )
        runs = {place: pool.submit(_outcome, wanted[place]) for place in longest}
        rows, kinds = zip(*(runs[place].result() for place in range(len(wanted))), strict=True)
    print(of_runs(rows))
    print()
    print(kinds[0])


def _outcome(scenario):
    """A run's line, and its table of kinds."""
    began_s = time.process_time()
    swarm = Swarm(scenario).run()
    took_s = time.process_time() - began_s
    row = of_run(swarm)
    line = " | ".join(map(str, row))
    print(f"{line}: {took_s:.0f} s of a core", file=sys.stderr, flush=True)
    return row, of_kinds(swarm)


if __name__ == "__main__":
    main()
