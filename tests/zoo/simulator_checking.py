"""What a requester of the simulator does with results: over the draw, the checks and the
standing that nodes run, as `node.checking` does it with real messages.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from dataclasses import dataclass

from kinds import Lie
from simulator_world import RIGHT, TIME_LIMIT_S, Receipt

from shoal.node import checks, look_back, probation
from shoal.node.result_standing import Deed
from shoal.protocol.limits import CANDIDATES_LIMIT
from shoal.protocol.verification.draw import SALT_SIZE_BYTES, verifiers

WAITING_UNITS = 1024
"""How many results of a job may wait to be checked."""

ANSWER_LIMIT_S = 10.0

ASKED_TWICE = 0.05
"""Of units: how often a link breaks after the answer, so that a provider is asked again."""


@dataclass(slots=True)
class Returned:
    """What a provider gave for a unit."""

    job: str
    unit: int
    receipt: Receipt
    twice: bool = False


@dataclass(slots=True, eq=False)
class Waiting:
    """A result that waits for its check, and all receipts on it.

    Attributes:
        looks_back: It was delivered long ago, and is only looked at again.
    """

    one: Returned
    check: checks.UnitCheck
    receipts: dict
    looks_back: bool = False


@dataclass(slots=True, eq=False)
class Ready:
    """A result that is held, though it could be delivered."""

    one: Returned
    receipt: Receipt
    since_s: float
    agreed: frozenset = frozenset()


@dataclass(frozen=True, slots=True)
class LeaseDraw:
    """With whom a lease is, and by what verifiers of its receipts are drawn."""

    provider: str
    draw: checks.Draw


class Checking:
    """Of one requester."""

    def __init__(self, requester, verify):
        self.requester, self.verify = requester, verify
        self.world, self.swarm = requester.world, requester.swarm
        self.draws = {}
        self.false = {}
        self.waiting = {}
        self.pending = Counter()
        self.unfetched = defaultdict(dict)
        self.holders = {}
        self.wrong = {}
        self.vouched = {}
        self.doubted = set()
        self.vouchers = look_back.Vouchers()
        self.held, self.held_units = defaultdict(dict), 0
        self.own_line, self.own_busy = deque(), False

    @property
    def standings(self):
        return self.requester.standings

    def shuns(self, peer):
        """Whether nothing is to be taken of a peer."""
        court = self.requester.court
        return peer in self.false or peer in court.bans or court.wire.cuts(peer)

    # -- the draw --

    def able(self):
        """Who may verify."""
        return [peer for peer in self.world.nodes if self._usable(peer)]

    def _usable(self, peer):
        return (
            peer != self.requester.node.peer
            and self.standings.may_verify(peer)
            and not self.shuns(peer)
        )

    def awarded(self, lease, provider):
        """A lease begins: by what verifiers of its receipts will be drawn."""
        able = [peer for peer in self.able() if peer != provider]
        able = self.world.random.sample(able, min(CANDIDATES_LIMIT, len(able)))
        salt = self.world.random.randbytes(SALT_SIZE_BYTES)
        self.draws[lease] = LeaseDraw(provider, checks.Draw(salt, tuple(sorted(able))))

    def took(self, one, draw):
        """A result came: check it, or deliver it."""
        receipt, peer = one.receipt, one.receipt.provider.peer
        p = self.standings.probability(peer)
        doubted = (one.job, one.unit) in self.doubted
        more = checks.wanted(self.verify, receipt.signature, draw.salt, p, doubted=doubted)
        if receipt.result == Lie.ERROR.value and self.verify.level != "receipt":
            more = max(1, more)
        if not more:
            self._unchecked(one)
            return
        own = self.requester.node.peer
        order = verifiers(receipt.signature, draw.salt, draw.candidates, {peer, own})
        few = p >= 1.0 and len(order) < probation.LISTED_ENOUGH
        audit = (few or len(self.own_line) < checks.AUDITED_WHILE) and checks.audited(
            self.verify, receipt.signature, draw.salt, p, few=few, doubted=doubted
        )
        check = checks.UnitCheck(peer, own, tuple(order), more, True, receipt.result, audit)
        waiting = Waiting(one, check, {peer: receipt})
        self.waiting[one.unit] = waiting
        self.pending[peer] += 1
        self._note_room(peer)
        self._asks(waiting)

    # -- checks --

    def _waits(self, waiting):
        return waiting.looks_back or self.waiting.get(waiting.one.unit) is waiting

    def _note_room(self, peer):
        if (queue := self.requester.queue) is not None:
            queue.full = len(self.waiting) >= WAITING_UNITS * (0.5 if queue.full else 1.0)
            now = self.standings.of(peer)
            queue.candidate(peer).full = probation.is_full(now, self.pending[peer])

    def _asks(self, waiting):
        check = waiting.check
        for peer in check.next(self._usable):
            check.asks(peer)
            if peer == check.own:
                if check.stage is checks.Stage.DIFFERS:  # somebody lies
                    self.own_line.appendleft(waiting)
                else:
                    self.own_line.append(waiting)
                self._works()
            else:
                self._ask(self.world.nodes[peer], waiting)

    def _works(self):
        """This node's own worker takes what is next in its line and still waits."""
        while self.own_line and not self.own_busy:
            waiting = self.own_line.popleft()
            if self._waits(waiting):
                node = self.requester.node
                self.swarm.counts.ran("own", 1)
                self.own_busy = True
                receipt = self.world.sign(node, waiting.one.receipt.work, "own", RIGHT)
                self.world.after(node.unit_s, self._worked, waiting, receipt)

    def _worked(self, waiting, receipt):
        self.own_busy = False
        self._answers(waiting, receipt)
        self._works()

    def _ask(self, node, waiting):
        world, work = self.world, waiting.one.receipt.work
        took_s = [world.exchange_s() for _ in range(3)]  # call, award, unit
        if None in took_s:
            world.after(ANSWER_LIMIT_S, self._silent, waiting, node)
            return
        ran = world.run_unit(node, work)
        node.free_at_s = max(world.now_s + sum(took_s), node.free_at_s) + ran.seconds
        self.swarm.counts.ran("checks", 1)
        if node.kind.serves_blobs() and not ran.reply.wait:
            receipt = world.sign(node, work, "check", ran.result)
            world.at(node.free_at_s, self._answers, waiting, receipt)
        else:
            at_s = world.now_s + max(ANSWER_LIMIT_S, ran.reply.wait * TIME_LIMIT_S)
            world.at(at_s, self._silent, waiting, node)

    def _silent(self, waiting, node):
        self.standings.note(node.peer, Deed.NO_ANSWER)
        if self._waits(waiting):
            waiting.check.says_nothing(node.peer)
            self._asks(waiting)

    def _answers(self, waiting, receipt):
        if not self._waits(waiting):
            return
        waiting.receipts[receipt.provider.peer] = receipt
        waiting.check.answers(receipt.provider.peer, receipt.result)
        if waiting.check.stage.final:
            self._checked(waiting)
        else:
            self._asks(waiting)

    def _checked(self, waiting):
        check, receipts = waiting.check, waiting.receipts
        waiting.looks_back or self.waiting.pop(waiting.one.unit)
        for peer in check.opinions.keys() - {check.own, *check.false}:
            deed = Deed.CHECKED_GOOD if peer == check.provider else Deed.CHECKED_OTHERS
            if not waiting.looks_back:
                self.standings.note(peer, deed)
        agreed = check.opinions.keys() - {check.right, *check.false}
        if check.own not in agreed and not waiting.looks_back:
            self.vouchers.note(check.right, agreed, waiting)
        for peer in check.false:
            self._disputes(receipts[peer])
        if waiting.looks_back:
            return
        self.pending[check.provider] -= 1
        self._ready(waiting.one, receipts[check.right], frozenset(agreed))
        self._note_room(check.provider)
        self._releases(check.provider)

    # -- deliver --

    def _unchecked(self, one):
        peer = one.receipt.provider.peer
        if self.shuns(peer):
            self._again(one.unit)
            return
        self.standings.note(peer, Deed.DELIVERED)
        self._ready(one, one.receipt)
        if one.twice and self.world.random.random() < ASKED_TWICE:
            self.swarm.spread.equivocated(self.requester.node, one.receipt.provider)
            self.found_false(peer)

    def _ready(self, one, receipt, agreed=frozenset()):
        """A result may be delivered, at once or after what else its provider gives."""
        ready = Ready(one, receipt, self.world.now_s, agreed)
        provider = receipt.provider.peer
        if provider == self.requester.node.peer or not self._is_held(ready):
            self._finish(ready)
            return
        self.held[provider][one.unit] = ready
        self.held_units += 1
        self.world.after(look_back.HOLD_S + 0.01, self._releases, provider)

    def _is_held(self, ready):
        peer = ready.receipt.provider.peer
        if self.verify.level != "auto" or self.requester.node.peer in ready.agreed:
            return False
        return look_back.is_held(
            trusted=self.standings.may_verify(peer),
            out=self.pending[peer] + self.requester.batches_at(peer),
            held=self.held_units,
            waited_s=self.world.now_s - ready.since_s,
        )

    def _releases(self, provider):
        """Deliver what needs not be held any more."""
        held = self.held[provider]
        for unit, ready in list(held.items()):
            if not self._is_held(ready):
                del held[unit]
                self.held_units -= 1
                self._finish(ready)

    def _finish(self, ready):
        unit, receipt = ready.one.unit, ready.receipt
        self.swarm.counts.delivered(receipt)
        self.unfetched[receipt.provider.peer][unit] = None
        self.holders[unit] = receipt.provider.peer
        if ready.agreed:
            self.vouched[unit] = ready.agreed
        if receipt.result != RIGHT:
            self.wrong[unit] = receipt
        self.requester.delivers(unit)
        self.requester.wake()

    def fetched(self, unit):
        """The submitter has it."""
        receipt = self.wrong.pop(unit, None)
        if receipt is not None:
            self.swarm.counts.fetched(receipt)
        self.unfetched[self.holders.pop(unit, None)].pop(unit, None)
        self.vouched.pop(unit, None)

    def _again(self, unit):
        self.swarm.counts.ran("again", 1)
        self.doubted.add((self.requester.job, unit))
        self.requester.reopen(unit)

    # -- who was found false --

    def found_false(self, peer):
        """Nothing more goes to a peer, and what rests on its word alone is run again."""
        if peer in self.false:
            return
        self.false[peer] = self.world.now_s
        for waiting in [w for w in self.waiting.values() if w.check.provider == peer]:
            del self.waiting[waiting.one.unit]
            self._again(waiting.one.unit)
        self.pending[peer] = 0
        for unit in self.held.pop(peer, ()):
            self.held_units -= 1
            self._again(unit)
        theirs = self.unfetched[peer].keys() | {
            unit for unit, agreed in self.vouched.items() if peer in agreed
        }
        for unit in sorted(theirs):
            if look_back.is_doubtful(
                self.holders[unit], self.vouched.get(unit, ()), self._is_false
            ):
                self.swarm.counts.undelivered(self.wrong.pop(unit, None))
                self.unfetched[self.holders.pop(unit)].pop(unit)
                self.vouched.pop(unit, None)
                self._again(unit)
        for waiting in self.vouchers.friends_of(peer, self._is_false):
            self._looks_back(waiting)
        self.requester.lets_go_of(peer)
        self._note_room(peer)

    def _is_false(self, peer):
        return peer != self.requester.node.peer and self.shuns(peer)

    def _looks_back(self, waiting):
        """Run here what a liar and its friend agreed upon."""
        old = waiting.check
        check = checks.UnitCheck(old.provider, old.own, (), old.more, True, old.key, True)
        again = Waiting(waiting.one, check, dict(waiting.receipts), looks_back=True)
        for peer, key in old.opinions.items():
            if peer != old.provider:
                check.asks(peer)
                check.answers(peer, key)
        self._asks(again)

    def _disputes(self, receipt):
        accused = receipt.provider
        is_false = receipt.result != RIGHT
        self.swarm.spread.dispute(self.requester.node, accused, is_false=is_false)
        self.found_false(accused.peer)
