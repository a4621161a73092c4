"""How convictions spread in the simulator: over the docket and the standings that nodes run.

A proof is an id here, and what the reference would find by it is known; when each node
looks into it, whom it hears, and what a false one costs its sender is decided by the real
code. What `node.convictions` does with messages is done with virtual ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.crypto.content import blob_id_of
from shoal.node.convictions import COMPARE_INTERVAL_S, REST
from shoal.node.docket import Docket, End, Hearing
from shoal.node.records import Ban
from shoal.node.result_standing import BAN_S, Deed
from shoal.node.standing import FULL, Offence, Standing
from shoal.node.standings import Standings
from shoal.protocol.checking_messages import Accusation

JUDGE_S = 1.0
"""What fetching and judging a proof takes: one operator."""

ROUND_TRIPS = 8
"""Of a dispute, before there is a proof."""

SILENCE_S = 30.0
"""After which who says nothing in a dispute is given up; the proof is then of the unit."""


@dataclass(frozen=True, slots=True)
class WireView:
    standing: float


class Wire:
    """`node.conduct` without its clock and its connections."""

    def __init__(self, world):
        self.world, self.table = world, Standing()

    def broke(self, peer, offence):
        self.table.note(peer, offence, self.world.now_s)

    def standing_of(self, peer):
        record = self.table.record(peer, self.world.now_s)
        return record and WireView(record.standing / FULL)

    def cuts(self, peer):
        """Whether nothing is to be had of a peer or given to it now."""
        return self.table.cut_for(peer, self.world.now_s) is not None


@dataclass(slots=True)
class Court:
    """What one node holds proved of others, and what it was told."""

    wire: Wire
    standings: Standings
    docket: Docket = field(default_factory=Docket)
    bans: dict[str, Ban] = field(default_factory=dict)
    busy: bool = False

    def knows(self, peer):
        """Whether anything is known of a peer here."""
        return bool(self.standings.of(peer).reasons) or self.wire.standing_of(peer) is not None


class Spread:
    """The courts of all nodes, and what goes between them.

    Args:
        world: Where they live.
        convicted: Called with each node and whom it has banned.
    """

    def __init__(self, world, convicted):
        self.world, self.convicted = world, convicted
        self.courts = {}
        self.proofs = {}
        """What the reference finds by each: whether it convicts."""

    def court(self, node):
        """Of a node."""
        if node.peer not in self.courts:
            wire = Wire(self.world)
            standings = Standings(node.peer, wire, clock=lambda: self.world.now_s)
            court = self.courts[node.peer] = Court(wire, standings)
            standings.banned = court.bans.get
        return self.courts[node.peer]

    # -- proofs of this node's own --

    def dispute(self, node, accused, *, is_false):
        """A node disputes a receipt in the background; in the end it has a proof."""
        took_s = accused.unit_s
        for _ in range(ROUND_TRIPS):
            step_s = self.world.exchange_s()
            if step_s is None or accused.kind.answers_dispute() == "silent":
                took_s += SILENCE_S
                break
            took_s += step_s
        self.world.after(took_s, self._convict, node, accused, is_false)

    def equivocated(self, node, accused):
        """A node has two receipts for one award: a proof as they are."""
        self._convict(node, accused, is_false=True)

    def _accusation(self, accused, *, convicts):
        proof = blob_id_of(f"{accused.peer} {len(self.proofs)}".encode())
        self.proofs[proof] = convicts
        return Accusation(proof, accused.peer, proof_bytes=2000, blobs=(), blobs_bytes=0)

    def _convict(self, node, accused, is_false):
        if accused.peer in self.court(node).bans:
            return
        accusation = self._accusation(accused, convicts=is_false)
        if self.proofs[accusation.proof]:
            self._believe(node, accusation, None)

    # -- what is told --

    def accuse_falsely(self, node, accused):
        """A node tells its links of a proof that proves nothing."""
        accusation = self._accusation(accused, convicts=False)
        for link in node.links:
            self.world.after(self.world.latency_s(), self._hears, link, node, accusation)

    def _tell(self, node, link, accusation):
        wait_s = self.world.latency_s()
        if self.world.lost():  # it hears of it when the two compare
            wait_s += self.world.random.uniform(0.0, COMPARE_INTERVAL_S)
        self.world.after(wait_s, self._hears, link, node, accusation)

    def _hears(self, node, sender, accusation):
        court = self.court(node)
        if accusation.accused in court.bans or court.wire.cuts(sender.peer):
            return
        heard = court.docket.hear(sender.peer, accusation, self.world.now_s)
        if heard is Hearing.WAITS and not court.busy:
            self._looks(node, court)

    def _looks(self, node, court):
        heard = court.docket.take(self.world.now_s)
        court.busy = heard is not None
        if heard is not None:
            needless = heard.accusation.accused in court.bans
            self.world.after(
                0.0 if needless else JUDGE_S, self._judged, node, court, heard, needless
            )

    def _judged(self, node, court, heard, needless):
        convicts = self.proofs[heard.accusation.proof]
        end = End.NEEDLESS if needless else End.PROVED if convicts else End.FALSE
        for liar in court.docket.close(end, self.world.now_s):
            court.standings.note(liar, Deed.FALSE_ACCUSATION)
            court.wire.broke(liar, Offence.BAD_PROOF)
        if end is End.PROVED:
            self._believe(node, heard.accusation, heard.sender)
        self.world.after(0.0 if needless else REST * JUDGE_S, self._looks, node, court)

    def _believe(self, node, accusation, besides):
        court, accused = self.court(node), accusation.accused
        if accused in court.bans:
            return
        now_s = self.world.now_s
        court.bans[accused] = Ban(accused, accusation.proof, now_s, now_s + BAN_S, "a proof")
        self.convicted(node, self.world.nodes[accused])
        for link in node.links:
            if link.peer not in {besides, accused}:
                self._tell(node, link, accusation)
