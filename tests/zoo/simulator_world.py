"""The world of the simulator: virtual time, links that lose messages, and the nodes on them.

What is modelled is what lies between the machines: how long a unit runs, how long a message
takes and whether it arrives, and what a liar signs in place of a result. A result is a plain
value here, and `RIGHT` is the one that the program gives; two values are equal where the
bytes would be. Whatever is decided about results is decided by the real code, in
`simulator_requester`.
"""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass, field
from itertools import count

from blake3 import blake3
from kinds import Asked, Kind, Lie, Reply

from shoal.crypto.peer_id import peer_id_of

LATENCY_S = (0.01, 0.15)
"""One way: the same continent, and the other side of the world."""

UNIT_S = (0.5, 2.0)
"""Of one unit, from the fastest machine to the slowest, drawn by its logarithm."""

LINKS = 8
"""Of one node; what spreads goes over them."""

TIME_LIMIT_S = 60.0
"""What a submitter allows a unit."""

LEAST_COST = 0.01
"""Of the time of a unit: what it takes to answer without running it."""

RESENT_S = 1.0
"""When what was lost is said again."""

RIGHT = "right"
"""The result that the program gives."""


@dataclass(frozen=True, slots=True)
class Work:
    """What anybody sees of a unit who runs it: its program and its inputs, by their ids."""

    requester: str
    number: int


@dataclass(slots=True)
class Receipt:
    """A receipt: who says what came of which work, under a signature."""

    provider: Node
    work: Work
    award: str
    result: str
    signature: bytes
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Ran:
    """What comes of a unit at a node, and how many seconds its worker had to do with it."""

    result: str
    reply: Reply
    seconds: float


@dataclass(slots=True)
class Node:
    """One machine, honest or not, as others meet it.

    Attributes:
        number: Counts its keys too: a sybil's next one is another node.
        free_at_s: When its one worker has done what it has been given.
        units: How many it was given, of anybody.
        first_lie_s: When it first signed something false.
    """

    number: int
    peer: str
    kind: Kind
    unit_s: float
    links: list[Node] = field(default_factory=list)
    free_at_s: float = 0.0
    units: int = 0
    first_lie_s: float | None = None

    @property
    def honest(self):
        return type(self.kind) is Kind


class Ring:
    """What accomplices have told one another: the results of some work, and whose they are."""

    def __init__(self):
        self.told: dict[Work, tuple[Node, str]] = {}

    def of(self, work, node):
        """What another than ``node`` said of this work; None where nobody did."""
        teller, result = self.told.get(work, (node, None))
        return None if teller is node else result


class World:
    """Time, chance, and all nodes.

    Args:
        seed: The same seed gives the same run.
        loss: Of single messages.
        all_tell: Whether every liar tells its ring what it answers.
    """

    def __init__(self, seed, *, loss=0.0, all_tell=False):
        self.all_tell = all_tell
        self.random = random.Random(seed)
        self.loss = loss
        self.now_s = 0.0
        self.nodes: dict[str, Node] = {}
        self.rings: dict[object, Ring] = {}
        self._seed = str(seed).encode()
        self._queue, self._order, self._numbers = [], count(), count()
        self._signatures = count()

    # -- time --

    def at(self, time_s, action, *arguments):
        """Do this then."""
        heapq.heappush(self._queue, (time_s, next(self._order), action, arguments))

    def after(self, wait_s, action, *arguments):
        """Do this so much later."""
        self.at(self.now_s + wait_s, action, *arguments)

    def run(self, done, until_s=math.inf):
        """Let time pass until ``done``, or nothing happens any more."""
        while self._queue and not done() and self.now_s < until_s:
            self.now_s, _, action, arguments = heapq.heappop(self._queue)
            action(*arguments)

    # -- nodes --

    def join(self, kind, ring=None):
        """One more node, with a key of its own."""
        low, high = UNIT_S
        node = Node(
            number=next(self._numbers),
            peer=peer_id_of(self.random.randbytes(32)),
            kind=kind,
            unit_s=low * (high / low) ** self.random.random(),
        )
        self.rings[node.peer] = ring if ring is not None else Ring()
        others = list(self.nodes.values())
        for other in self.random.sample(others, min(LINKS // 2, len(others))):
            node.links.append(other)
            other.links.append(node)
        self.nodes[node.peer] = node
        return node

    # -- links --

    def latency_s(self):
        """One way, once."""
        return self.random.uniform(*LATENCY_S)

    def lost(self):
        """Whether one message is lost."""
        return self.loss > 0.0 and self.random.random() < self.loss

    def exchange_s(self, tries=3):
        """How long a request and its answer are under way; None where they never arrive."""
        wait_s = 0.0
        for _ in range(tries):
            if not self.lost() and not self.lost():
                return wait_s + self.latency_s() + self.latency_s()
            wait_s += RESENT_S
        return None

    # -- work --

    def sign(self, node, work, award, result):
        """What a node signs; nobody knows the signature before."""
        said = blake3(f"{next(self._signatures)} {node.peer} {award} {result}".encode())
        said.update(self._seed)
        return Receipt(node, work, award, result, said.digest(length=64), self.now_s)

    def run_unit(self, node, work):
        """What a node gives for a unit."""
        told = self.rings[node.peer].of(work, node)
        reply = node.kind.outputs(Asked(node.units, copied=told is not None))
        result = self._result(node, work, reply.lie, told)
        if reply.tells or (self.all_tell and result != RIGHT and told is None):
            self.rings[node.peer].told[work] = node, result
        node.units += 1
        if node.first_lie_s is None and (result != RIGHT or reply.receipts > 1):
            node.first_lie_s = self.now_s
        return Ran(result, reply, node.unit_s * max(reply.lie.cost, LEAST_COST))

    def _result(self, node, work, lie, told):
        """The bytes of an answer, as a value.

        Two liars who save work in the same way give the same wrong bytes.
        """
        match lie:
            case Lie.NONE:
                return RIGHT
            case Lie.COPIED:
                return told
            case Lie.CHEAPER | Lie.SKIPPED | Lie.ERROR:
                return lie.value
            case _:
                return f"{lie.value} of {node.number} for {work.number}"
