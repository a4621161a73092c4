"""What is counted in a run of the simulator, and the tables that are made of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from statistics import mean, median

from simulator_world import RIGHT

STEP_UNITS = 500
VERIFYING = ("checks", "own", "again")
"""Runs that there would not be if nothing were verified."""


@dataclass(frozen=True, slots=True)
class Mark:
    """How far things were when so many results were delivered."""

    units: int
    at_s: float
    extra: int


class Counts:
    """Of one run.

    Args:
        world: Whose clock counts.
        units_wanted: How many results there will be in the end.

    Attributes:
        wrong_late: Wrong results that were fetched in the last quarter.
    """

    def __init__(self, world, units_wanted):
        self.world, self.units_wanted = world, units_wanted
        self.wrong_late = 0
        self.runs = Counter()
        self.units, self.given_up = 0, 0
        self.wrong = Counter()
        """Wrong results by what became of them, and by the kind of who gave them."""
        self.marks = [Mark(0, 0.0, 0)]
        self.bans = Counter()
        self.first_ban_s, self.last_ban_s, self.units_then = {}, {}, {}
        self.honest_banned = set()

    def ran(self, what, units):
        """Units were run: for their results, as copies, or to verify."""
        self.runs[what] += units

    @property
    def extra(self):
        """Runs for the sake of verification."""
        return sum(self.runs[what] for what in VERIFYING)

    def delivered(self, receipt):
        """A result was given to the submitter."""
        self.units += 1
        if receipt.result != RIGHT:
            self.wrong["delivered", receipt.provider.kind.name] += 1
        if self.units % STEP_UNITS == 0:
            self.marks.append(Mark(self.units, self.world.now_s, self.extra))

    def undelivered(self, receipt):
        """One was taken back before it was fetched: None for a right one."""
        self.units -= 1
        if receipt is not None:
            self.wrong["again", receipt.provider.kind.name] += 1

    def fetched(self, receipt):
        """The submitter has a wrong one."""
        self.wrong_late += self.units >= 0.75 * self.units_wanted
        self.wrong["fetched", receipt.provider.kind.name] += 1

    def banned(self, node, accused):
        """One more node has banned another."""
        self.bans[accused.peer] += 1
        self.last_ban_s[accused.peer] = self.world.now_s
        if accused.peer not in self.first_ban_s:
            self.first_ban_s[accused.peer] = self.world.now_s
            self.units_then[accused.peer] = accused.units
        if accused.honest:
            self.honest_banned.add(accused.peer)

    def all_wrong(self, what):
        """Wrong results of all kinds."""
        return sum(n for (became, _), n in self.wrong.items() if became == what)

    def extra_between(self, begin, end):
        """Extra runs for each unit, in a part of the run."""
        last = self.marks[-1].units

        def at(share):
            return next(mark for mark in self.marks if mark.units >= share * last)

        first, then = at(begin), at(end)
        return (then.extra - first.extra) / max(1, then.units - first.units)


def table(head, rows):
    """A table in Markdown; the first column is text."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def of_run(swarm):
    """What there is to say of one run."""
    counts = swarm.counts
    wrong = counts.all_wrong("fetched")
    liars = [n for n in swarm.world.nodes.values() if n.first_lie_s is not None]
    return [
        swarm.scenario.name,
        f"{counts.units:,}",
        counts.all_wrong("delivered"),
        f"{wrong} ({wrong / counts.units:.3%})",
        counts.wrong_late,
        f"{counts.extra_between(0.0, 0.25):.0%}",
        f"{counts.extra_between(0.75, 1.0):.1%}",
        f"{sum(n.peer in counts.bans for n in liars)} of {len(liars)}",
        len(counts.honest_banned),
    ]


def of_runs(rows):
    """One line for each run: what `of_run` gives."""
    head = [
        "run",
        "units",
        "wrong, delivered",
        "wrong, fetched",
        "of these in the last quarter",
        "extra, first quarter",
        "extra, last quarter",
        "liars banned",
        "honest banned",
    ]
    return table(head, rows)


def of_kinds(swarm):
    """One line for each kind of node."""
    counts, kinds = swarm.counts, defaultdict(list)
    for node in swarm.world.nodes.values():
        kinds[node.kind.name].append(node)
    rows = []
    for name, nodes in kinds.items():
        banned = [node for node in nodes if node.peer in counts.bans]
        lied = [node for node in banned if node.first_lie_s is not None]
        units = [counts.units_then[node.peer] for node in banned]
        rows.append(
            [
                f"`{name}`",
                len(nodes),
                len(banned) or "",
                _middle(units),
                max(units, default=""),
                _middle([counts.first_ban_s[n.peer] - n.first_lie_s for n in lied]),
                _middle([counts.last_ban_s[n.peer] - counts.first_ban_s[n.peer] for n in lied]),
                _standing(swarm, nodes),
                counts.wrong["delivered", name] or "",
                counts.wrong["fetched", name] or "",
            ]
        )
    head = [
        "kind",
        "keys",
        "banned",
        "units before",
        "at most",
        "s, first lie to ban",
        "s, until all ban",
        "standing at the end",
        "wrong, delivered",
        "wrong, fetched",
    ]
    return table(head, rows)


def _middle(values):
    return f"{median(values):.0f}" if values else ""


def _standing(swarm, nodes):
    """What those think of a kind in the end who have something to go by."""
    shares = [
        court.standings.share(node.peer)
        for court in swarm.spread.courts.values()
        for node in nodes
        if court.knows(node.peer)
    ]
    return f"{mean(shares):.2f}" if shares else ""
