"""Fraud proofs that this node believes, the bans that follow, and what it tells of them.

Part of *verify*. A proof is believed when this node's own worker has judged it, and by
nothing else: its own disputes hand proofs in (`Convictions.convict`), and links tell of
others (`Accusation`, a message), which are fetched from whoever told, judged one at
a time, and only then passed on. So a false proof gets one hop far, and costs its sender
standing. In which order they are looked into, and whose are not heard, is
`node.docket`'s. Links compare what they know when they meet and every few minutes, so that
a lost message is no matter.

Who is convicted is *banned*: it gets no call and no award, what it asks is refused by name,
and what it was doing goes to others. Its links stay, since that is how it hears of it. A
ban lasts for `BAN_S` from the award under which it lied, which is the same moment for
every node: counted from when each of them hears of it, a ban would go round for ever.

What is kept of a proof, and made public so that whoever is told can fetch it, is
`node.believed_proofs`'s.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

import structlog
import trio

from shoal.crypto.content import BlobId
from shoal.crypto.errors import ShoalError, VerificationError
from shoal.crypto.peer_id import PeerId
from shoal.node.believed_proofs import (
    Believed,
    BelievedProofs,
    Charge,
    accusation_of,
    readable_since,
)
from shoal.node.docket import BLOBS_LIMIT_BYTES, Docket, End, Heard, Hearing
from shoal.node.errors import PeerError, StoreError
from shoal.node.house import fitting, hold
from shoal.node.peer_views import ProofView
from shoal.node.records import Ban
from shoal.protocol.checking_messages import Accusation, Accusations, AccusationsWanted
from shoal.protocol.limits import (
    CLOCK_TOLERANCE_MS,
    FRAUD_PROOF_LIMIT_BYTES,
    KNOWN_PROOFS_LIMIT,
)
from shoal.protocol.messages import Done, Problem
from shoal.protocol.verification.fraud_proof import Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shoal.node.house import House
    from shoal.node.journal_verdicts import KeptProof

BAN_S: Final = 30 * 86400.0
"""A machine that computes wrong is mended or sold within a month."""

REST: Final = 3.0
"""After an accusation was looked into, nothing is for so many times what judging it took of a
processor: whatever peers tell, it takes a quarter of the lowest priority of this node. By the
clock it may have waited for that, and for blobs, a hundred times as long."""

FETCH_BASE_S: Final = 30.0
FETCH_BYTES_PER_S: Final = 250e3
"""Who is slower than that at giving what it accuses by is told of by others, or not at all."""

TELL_LIMIT_S: Final = 5.0
TELLING_LIMIT: Final = 8
"""Links that are told at once."""

COMPARE_INTERVAL_S: Final = 300.0
LOOK_INTERVAL_S: Final = 1.0

UNKNOWN_LIMIT: Final = 256
"""Accused of whom nothing is known yet, as after a start; the oldest go first."""

FETCHING = "accusation"
"""Under which name blobs are pinned while an accusation is looked into."""

log = structlog.get_logger(__name__)


Judge: TypeAlias = Callable[[bytes, Mapping[BlobId, bytes]], Awaitable[Verdict]]
Reader: TypeAlias = Callable[[bytes], Charge]
"""Checks all of a proof that needs no computing; raises VerificationError."""


@dataclass(slots=True)
class Convictions:
    """What this node holds proved of its peers. Made by `open_convictions`.

    Args:
        judge: Judges a proof in the worker, at its lowest priority; raises ComputeError.
        judge_own: The same at the priority of a unit, for what this node itself found out;
            ``judge`` where it is None.
        read: Reads a proof.
        links: The peers that are told, and heard.
        matters: Whether a peer is one that this node might deal with; of others no proof
            is looked into, since anybody can make two keys and convict one of them.
        convicted: Told of each new conviction: who, and what the proof shows.
        accused_falsely: Told of whoever sent a proof that is false, and why it is.
        judging_s: What ``judge`` has taken of a processor so far, in seconds.

    Attributes:
        house: The modules of this node, which has to be set before anything else is done.
        on_ban: Called with each peer that is banned from now on, to end what runs with it.
        on_lift: Called with each peer that the operator lets back in.
        ended: How many accusations of others came to which end.
    """

    judge: Judge
    read: Reader
    links: Callable[[], Collection[PeerId]]
    matters: Callable[[PeerId], bool] = lambda _peer: True
    convicted: Callable[[PeerId, str], None] = lambda _peer, _why: None
    accused_falsely: Callable[[PeerId, str], None] = lambda _peer, _why: None
    judge_own: Judge | None = None
    judging_s: Callable[[], float] = trio.current_time
    wall_s: Callable[[], float] = time.time
    house: House = field(init=False)
    on_ban: list[Callable[[PeerId], None]] = field(default_factory=list)
    on_lift: list[Callable[[PeerId], None]] = field(default_factory=list)
    ended: Counter[End] = field(default_factory=Counter)
    _bans: dict[PeerId, Ban] = field(default_factory=dict)
    _believed: BelievedProofs = field(default_factory=BelievedProofs)
    _pardoned: dict[PeerId, float] = field(default_factory=dict)
    """Until when others' proofs against a peer that the operator let back in are not heard."""
    _unknown: dict[PeerId, PeerId] = field(default_factory=dict)
    """Who told of an accused that did not matter yet: its first advert may be a second late."""
    _docket: Docket = field(default_factory=Docket)
    _woken: trio.Event = field(default_factory=trio.Event)
    _telling: trio.CapacityLimiter = field(
        default_factory=lambda: trio.CapacityLimiter(TELLING_LIMIT)
    )
    _nursery: trio.Nursery | None = None
    _keeping: trio.Lock = field(default_factory=trio.Lock)

    # --- what others ask of it ------------------------------------------------------

    def is_banned(self, peer: PeerId) -> Ban | None:
        """The ban of a peer that is banned now."""
        ban = self._bans.get(peer)
        return ban if ban is not None and ban.until > self.wall_s() else None

    def bans(self) -> list[Ban]:
        """All bans that last, the newest first."""
        now = self.wall_s()
        lasting = (ban for ban in self._bans.values() if ban.until > now)
        return sorted(lasting, key=lambda ban: (-ban.since, ban.peer))

    def proofs(self) -> list[ProofView]:
        """The proofs that this node believes, the newest first."""
        return self._believed.views()

    async def proof(self, proof_id: BlobId) -> bytes:
        """The bytes of a proof that is kept.

        Raises:
            PeerError: ``no_such_proof``.
        """
        kept = await self.house.journal.proof(proof_id)
        if kept is None:
            raise PeerError(
                f"no proof {proof_id[:16]}… is kept here",
                code="no_such_proof",
                hint="`shoal proof list` shows those that are",
            )
        return kept.proof

    async def convict(
        self, proof: bytes, blobs: Mapping[BlobId, bytes], *, private: bool = False
    ) -> Verdict:
        """Judge a proof of this node's own, and ban by it.

        Args:
            proof: The proof.
            blobs: All that is needed to check it.
            private: Tell nobody, and let nobody fetch it.

        Returns:
            The verdict; nothing follows from one that does not convict.

        Raises:
            VerificationError: It is no proof.
            ComputeError: The worker could not judge it.
            StoreError: It could not be written down.
        """
        charge = self.read(proof)
        verdict = await (self.judge_own or self.judge)(proof, blobs)
        if verdict.outcome is not Outcome.CONVICTED:
            log.error(
                "a proof of this node's own does not hold",
                accused=charge.accused,
                outcome=verdict.outcome.value,
                why=verdict.sentence,
            )
            return verdict
        sizes = {blob_id: len(blob) for blob_id, blob in blobs.items()}
        accusation = accusation_of(proof, charge, sizes)
        await self._believed.put(self.house, proof, accusation, blobs.values())
        await self._believe(proof, accusation, charge, verdict, own=True, private=private)
        return verdict

    async def unban(self, peer: PeerId) -> None:
        """Let a peer back in, and hear nothing of others against it until the ban's end.

        Raises:
            PeerError: ``not_banned``.
            StoreError: It could not be written down.
        """
        ban = self.is_banned(peer)
        if ban is None:
            raise PeerError(
                f"{peer[:64]} is not banned here",
                code="not_banned",
                hint="`shoal peers` lists who is",
            )
        await self.house.journal.lift_ban(peer)
        del self._bans[peer]
        self._pardoned[peer] = ban.until
        self._believed.withdraw(self.house, peer)
        for let_back_in in self.on_lift:
            let_back_in(peer)
        log.info("a ban was lifted by the operator", peer=peer)

    async def answer(
        self, peer: PeerId, message: Accusation | AccusationsWanted
    ) -> Done | Accusations | Problem:
        """Answer a peer that accuses another, or compares."""
        if isinstance(message, AccusationsWanted):
            theirs = self.house.control.versions.of(peer)
            return Accusations(accusations=self._believed.lacking(message.known, theirs))
        if peer not in self.links():
            return Problem(code="not_linked", message="accusations are heard of links alone")
        self._hear(peer, message)
        return Done()

    # --- tasks --------------------------------------------------------------------

    async def load(self) -> None:
        """Take up bans and proofs of before the start; before anything else needs room."""
        now = self.wall_s()
        self._bans = {ban.peer: ban for ban in await self.house.journal.bans()}
        for kept in sorted(await self.house.journal.proofs(), key=lambda row: row.at):
            ban = self._bans.get(kept.accused)
            if ban is None or ban.proof != kept.id:
                if ban is None and (until := self._until(kept)) > now:
                    self._pardoned[kept.accused] = until
                continue
            await self._believed.restore(self.house, kept, Charge(kept.accused, ban.since))

    def _until(self, kept: KeptProof) -> float:
        """Until when a proof that is kept bans, where its ban was not lifted."""
        try:
            return self.read(kept.proof).at_s + BAN_S
        except VerificationError:  # it is of the form of an older shoal
            return kept.at + BAN_S

    async def run(self, nursery: trio.Nursery) -> None:
        """Start the tasks in ``nursery``."""
        self._nursery = nursery
        nursery.start_soon(self._keep_judging)
        nursery.start_soon(self._keep_comparing)

    def stop(self) -> None:
        """Tell nobody anything any more."""
        self._nursery = None

    async def _keep_judging(self) -> None:
        """Look into accusations one after the other, for ever."""
        while True:
            heard = self._docket.take(trio.current_time())
            if heard is None:
                self._woken = trio.Event()
                await self._woken.wait()
                continue
            spent_s = self.judging_s()
            end, why = await self._look_into(heard)
            spent_s = self.judging_s() - spent_s
            now_s = trio.current_time()
            self.ended[end] += 1
            for liar in self._docket.close(end, now_s):
                log.warning("a peer accused falsely", peer=liar, why=why)
                self.accused_falsely(liar, why)
            if end is End.OPEN:
                log.info("an accusation is left open", peer=heard.sender, why=why)
            await trio.sleep(REST * spent_s)

    async def _look_into(self, heard: Heard) -> tuple[End, str]:
        """Fetch a proof and what it needs, and have it judged; never raises."""
        said = heard.accusation
        if (why := self._needless(PeerId(said.accused))) is not None:
            return End.NEEDLESS, why
        limit_s = FETCH_BASE_S + (said.proof_bytes + said.blobs_bytes) / FETCH_BYTES_PER_S
        try:
            with trio.move_on_after(limit_s) as fetching:
                proof, charge, blobs = await self._fetch(heard)
            if fetching.cancelled_caught:
                return End.OPEN, f"what it needs did not come within {limit_s:.0f} s"
            lapsed = charge.at_s + BAN_S <= self.wall_s()
            if lapsed:
                return End.NEEDLESS, "it is of a time that is not held against anybody now"
            if charge.at_s > self.wall_s() + CLOCK_TOLERANCE_MS / 1000:
                return End.OPEN, "its award is of a time to come"
            verdict = await self.judge(proof, blobs)
            if verdict.outcome is Outcome.ACQUITTED:
                return End.FALSE, verdict.sentence
            if verdict.outcome is not Outcome.CONVICTED:
                return End.OPEN, verdict.sentence
            sizes = {blob_id: len(blob) for blob_id, blob in blobs.items()}
            accusation = accusation_of(proof, charge, sizes)
            await self._believe(
                proof, accusation, charge, verdict, own=False, besides=heard.sender
            )
        except VerificationError as error:
            newer = error.code == "version_unsupported"
            return (End.OPEN if newer else End.FALSE), error.message
        except ShoalError as error:
            return End.OPEN, error.message
        except Exception as error:  # root of a trial: a bug in one must not end the others
            log.exception("an accusation could not be looked into", peer=heard.sender)
            return End.OPEN, repr(error)
        finally:
            self.house.store.unpin(FETCHING)
        return End.PROVED, verdict.sentence

    async def _fetch(self, heard: Heard) -> tuple[bytes, Charge, dict[BlobId, bytes]]:
        """A proof and its blobs from who told of it, each within what is left of its bound."""
        store, said = self.house.store, heard.accusation
        proof_id = BlobId(said.proof)
        await hold(self.house, heard.sender, proof_id, FETCHING, FRAUD_PROOF_LIMIT_BYTES)
        proof = await store.get_bytes(proof_id)
        charge = self.read(proof)
        if charge.accused != said.accused:
            raise VerificationError(
                f"the proof is against {charge.accused}, and {said.accused} is accused by it",
                code="wrong_accused",
            )
        room, blobs = BLOBS_LIMIT_BYTES, {}
        for text in dict.fromkeys(said.blobs):
            blob_id = BlobId(text)
            await hold(self.house, heard.sender, blob_id, FETCHING, room)
            room -= store.size_bytes(blob_id)
            blobs[blob_id] = await store.get_bytes(blob_id)
        return proof, charge, blobs

    async def _keep_comparing(self) -> None:
        """Ask each link what it knows, at once and then now and again; let bans lapse."""
        asked_at_s: dict[PeerId, float] = {}
        while True:
            links, now_s = set(self.links()), trio.current_time()
            for accused in filter(self.matters, list(self._unknown)):
                asked_at_s.pop(self._unknown.pop(accused), None)
            asked_at_s = {peer: at for peer, at in asked_at_s.items() if peer in links}
            due = [
                peer
                for peer in links
                if asked_at_s.get(peer, -COMPARE_INTERVAL_S) + COMPARE_INTERVAL_S <= now_s
            ]
            for peer in due:
                asked_at_s[peer] = now_s
                await self._compare(peer)
            await self._lapse()
            await trio.sleep(LOOK_INTERVAL_S)

    async def _compare(self, peer: PeerId) -> None:
        told = [view.id for view in self.proofs() if not view.private]
        known = tuple(told[:KNOWN_PROOFS_LIMIT])
        try:
            answer = fitting(
                await self.house.control.request(
                    peer, AccusationsWanted(known=known), TELL_LIMIT_S
                ),
                Accusations,
            )
        except ShoalError as error:  # an older one, or a link that breaks
            log.debug("accusations were not compared", peer=peer, error=str(error))
            return
        for accusation in answer.accusations:
            self._hear(peer, accusation)

    async def _lapse(self) -> None:
        now = self.wall_s()
        for ban in [ban for ban in self._bans.values() if ban.until <= now]:
            del self._bans[ban.peer]
            self._believed.withdraw(self.house, ban.peer)
            log.info("a ban has lapsed", peer=ban.peer)
            try:
                await self.house.journal.lift_ban(ban.peer)
            except StoreError as error:  # it says itself when it ends
                log.warning("a lapsed ban stays on disk", peer=ban.peer, error=str(error))
        self._pardoned = {peer: until for peer, until in self._pardoned.items() if until > now}

    # --- steps --------------------------------------------------------------------

    def _hear(self, sender: PeerId, accusation: Accusation) -> None:
        accused = PeerId(accusation.accused)
        if self._needless(accused) is not None:
            if self._of_nobody(accused):
                self._unknown.setdefault(accused, sender)
                while len(self._unknown) > UNKNOWN_LIMIT:
                    del self._unknown[next(iter(self._unknown))]
            return
        hearing = self._docket.hear(sender, accusation, trio.current_time())
        if hearing is Hearing.WAITS:
            self._woken.set()
        elif hearing is Hearing.FALSE:
            self.accused_falsely(sender, "it passed on a proof that is known to be false")
        elif hearing is not Hearing.KNOWN:
            log.debug("an accusation is not heard", peer=sender, why=hearing.value)

    def _needless(self, accused: PeerId) -> str | None:
        """Why a proof against a peer is not looked into, if it is not."""
        if self.is_banned(accused) is not None:
            return "it is banned already"
        if self._pardoned.get(accused, 0.0) > self.wall_s():
            return "this node's operator has let it back in"
        return "nothing is known of it here" if self._of_nobody(accused) else None

    def _of_nobody(self, accused: PeerId) -> bool:
        return accused != self.house.peer_id and not self.matters(accused)

    async def _believe(
        self,
        proof: bytes,
        accusation: Accusation,
        charge: Charge,
        verdict: Verdict,
        *,
        own: bool,
        private: bool = False,
        besides: PeerId | None = None,
    ) -> None:
        """Ban by a proof, keep it, and tell the links."""
        accused, proof_id = charge.accused, BlobId(accusation.proof)
        if accused == self.house.peer_id:
            log.error("this node was convicted of a false result", why=verdict.sentence)
            return
        now = self.wall_s()
        since = min(charge.at_s, now)
        ban = Ban(
            peer=accused,
            proof=proof_id,
            since=since,
            until=since + BAN_S,
            why=verdict.sentence,
            own=own,
        )
        async with self._keeping:
            blobs = map(BlobId, accusation.blobs)
            await self.house.journal.add_proof(
                proof_id,
                accused,
                proof,
                blobs,
                verdict.sentence,
                own=own,
                at=now,
                private=private,
            )
            if not await self.house.journal.add_ban(ban):
                log.warning("a ban is not kept: there are too many", peer=accused)
                return
            self._believed.withdraw(self.house, accused)
            self._bans[accused] = ban
            self._pardoned.pop(accused, None)
            readable = readable_since(proof)
            self._believed.add(
                Believed(accusation, verdict.sentence, own, now, private, since=readable)
            )
            public = self._believed.publish(self.house, proof_id)
        log.warning("a peer is banned", peer=accused, proof=proof_id, why=verdict.sentence)
        self.convicted(accused, verdict.sentence)
        for banned in self.on_ban:
            banned(accused)
        if public:
            for link in set(self.links()) - {besides, accused}:
                if self.house.control.versions.of(link) < readable:
                    continue
                if self._nursery is not None:
                    self._nursery.start_soon(self._tell, link, accusation)

    async def _tell(self, peer: PeerId, accusation: Accusation) -> None:
        async with self._telling:
            try:
                await self.house.control.request(peer, accusation, TELL_LIMIT_S)
            except ShoalError as error:  # it hears of it when it compares
                log.debug("a link was not told", peer=peer, error=str(error))


@asynccontextmanager
async def open_convictions(convictions: Convictions) -> AsyncIterator[Convictions]:
    """Hear, judge and tell for as long as the block runs; `Convictions.load` it before."""
    async with trio.open_nursery() as nursery:
        await convictions.run(nursery)
        try:
            yield convictions
        finally:
            convictions.stop()
            nursery.cancel_scope.cancel()
