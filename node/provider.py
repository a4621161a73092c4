"""The provider's half of the node: answers negotiation and runs units under leases.

Holds one `ProviderSide` machine per conversation and does what its effects
say, by the steps of `node.pipeline`. A unit belongs to its lease and not to
the request that brought it: when a link breaks, the unit runs on, and its
requester may ask for it again.
"""

from __future__ import annotations

import secrets
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from shoal.compute.errors import ProgramError
from shoal.crypto.content import BlobId
from shoal.crypto.peer_id import PeerId
from shoal.node import bidding, kept_outputs, unit_messages
from shoal.node.errors import StoreError
from shoal.node.house import House, manifest_of, program_blobs, usable
from shoal.node.running import Batch, Conversation, Running
from shoal.protocol.checking_messages import Reveal
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.limits import LEASE_UNITS_LIMIT
from shoal.protocol.messages import Done
from shoal.protocol.negotiation import (
    Abandon,
    Answer,
    Await,
    Effect,
    Execute,
    ProviderSide,
    State,
)
from shoal.protocol.negotiation_messages import (
    AwardOffer,
    Bid,
    Call,
    Cancel,
    Drop,
    Lease,
    Reason,
    Refusal,
    Release,
    Share,
    Shared,
    UnitRefusal,
    UnitRequest,
    UnitResult,
    UnitsRequest,
    UnitsResult,
)
from shoal.protocol.verification.draw import list_id, salt_hash
from shoal.protocol.vocabulary import knows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from shoal.protocol.statements import Award


OPEN_LIMIT = 256
"""Bids and leases of one requester held at once; one that is greedy is in nobody's way."""

STRANGERS_OPEN_LIMIT = 4096
"""From so many of all requesters on no stranger gets a bid: anybody can make keys."""

SWEEP_INTERVAL_S = 1.0

HAND_BACK_AFTER_S = 10.0
"""What a unit that runs gets to end when its owner wants the device: then it is handed
back. Most units end within it, and the worker yields to the owner's processes meanwhile."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Load:
    """What a device has to do.

    Attributes:
        leases: Held on it now.
        units: Handed over for it, and not ended.
        waiting_s: How long these will run, by how long others of their leases ran.
    """

    leases: int
    units: int
    waiting_s: float


class Provider:
    """Answers negotiation messages. Made by `open_provider`."""

    def __init__(self, house: House, nursery: trio.Nursery) -> None:
        self._house = house
        self._nursery = nursery
        self._conversations: dict[tuple[PeerId, str], Conversation] = {}
        self._forgotten = trio.Event()
        self.units_served = 0
        self.refused: Counter[Reason] = Counter()
        """How many calls, awards and units were refused, for each reason."""

    def load_on(self, device: str) -> Load:
        """What one device has to do."""
        there = [c for c in self._conversations.values() if c.device == device]
        return Load(
            leases=sum(c.side.state is State.LEASED for c in there),
            units=sum(len(c.running) for c in there),
            waiting_s=sum(len(c.running) * c.unit_s for c in there),
        )

    @property
    def leases(self) -> int:
        """How many leases are held now."""
        return sum(c.side.state is State.LEASED for c in self._conversations.values())

    @property
    def units_waiting(self) -> int:
        """How many units were handed over and have not ended."""
        return sum(len(c.running) for c in self._conversations.values())

    def drop(self, peer: PeerId) -> None:
        """End whatever was agreed with a peer, and its units: it is cut."""
        for key in [key for key in self._conversations if key[0] == peer]:
            self._forget(key)

    async def idle(self) -> None:
        """Wait until no unit runs and no lease is held.

        A requester that is refused more units gives its lease up, but first it fetches
        what it has waited for.
        """
        while self.units_waiting or self.leases:
            await self._forgotten.wait()

    def hand_back(self, reason: Reason, detail: str, device: str | None = None) -> None:
        """End every unit that runs, or runs on one device, and tell its requester why."""
        for conversation in self._conversations.values():
            if device not in {None, conversation.device}:
                continue
            call = conversation.side.call
            assert call is not None  # of which its units come
            for unit, running in list(conversation.running.items()):
                log.info("a unit is handed back", unit=unit, reason=reason)
                running.give_up(Refusal(call=call.call, reason=reason, detail=detail))

    async def answer(
        self,
        peer: PeerId,
        message: Call | AwardOffer | UnitRequest | UnitsRequest | Cancel | Release,
    ) -> Refusal | UnitResult | UnitsResult | Lease | Done | Bid:
        """Answer one negotiation message of ``peer``.

        Raises:
            RemoteProtocolError: The message is out of turn or over the terms.
            VerificationError: The award is not signed as it must be.
        """
        answer = await self._answer(peer, message)
        parts = answer.answers if isinstance(answer, UnitsResult) else (answer,)
        for part in parts:
            if isinstance(part, Refusal | UnitRefusal):
                self.refused[part.reason] += 1
        return answer

    def answer_about_kept(self, peer: PeerId, message: Share | Drop) -> Shared | Done:
        """Answer a requester about the outputs that are kept here for it."""
        return kept_outputs.answer(self._house, peer, message)

    async def revealed(self, peer: PeerId, message: Reveal) -> Done:
        """Hear by what a lease's verifiers were drawn, and see that the award says so too."""
        for (requester, _), conversation in self._conversations.items():
            side = conversation.side
            if requester == peer and side.award_id == message.award and side.award:
                if not _as_awarded(side.award, message):
                    log.warning(
                        "a requester drew verifiers by another list or salt than it awarded",
                        requester=peer,
                        award=message.award,
                    )
                break
        return Done()

    async def _answer(
        self,
        peer: PeerId,
        message: Call | AwardOffer | UnitRequest | UnitsRequest | Cancel | Release,
    ) -> Refusal | UnitResult | UnitsResult | Lease | Done | Bid:
        if isinstance(message, Call):
            return await self._bid(peer, message)
        conversation = self._conversations.get((peer, message.call))
        refused = (  # with the lease that they were to be run under
            conversation is not None
            and conversation.side.state is State.ENDED
            and isinstance(message, UnitRequest | UnitsRequest)
        )
        if conversation is None or refused:
            if isinstance(message, Cancel | Release):
                return Done()
            return Refusal(
                call=message.call,
                reason=Reason.EXPIRED,
                detail="there is no such bid or lease here: it ended, or this node restarted",
            )
        now_s = trio.current_time()
        effects = conversation.side.receive(message, now_s)
        match message:
            case AwardOffer():
                return self._lease(conversation, message)
            case UnitRequest():
                (answer,) = await self._units(conversation, effects)
                return answer
            case UnitsRequest(units=units):
                answers = await self._units(conversation, effects)
                return await unit_messages.answer_together(
                    self._house, conversation.side, units, answers
                )
        self._abandon(conversation, message, effects)
        return Done()

    def _abandon(
        self, conversation: Conversation, message: Cancel | Release, effects: Sequence[Effect]
    ) -> None:
        """End units that nobody waits for any more, or the lease as well."""
        for effect in effects:
            if isinstance(effect, Abandon) and effect.unit in conversation.running:
                running = conversation.running[effect.unit]
                running.give_up(_cancelled(running.request))
        if isinstance(message, Release):
            self._forget((conversation.side.requester, message.call))
        else:
            names = {message.unit, *message.others}
            if len(conversation.unwanted) < LEASE_UNITS_LIMIT:  # more it cannot have had
                conversation.unwanted |= names
            self._house.settling.excuse(conversation.side, names)

    async def _bid(self, peer: PeerId, call: Call) -> Bid | Refusal:
        terms = bidding.choose(call, peer, self._house.offers())
        if isinstance(terms, Refusal):
            return terms
        held_bytes = await self._held_bytes(peer, call)
        if sum(requester == peer for requester, _ in self._conversations) >= OPEN_LIMIT:
            return Refusal(
                call=call.call, reason=Reason.BUSY, detail="you have too many bids open here"
            )
        stranger = bidding.rank(peer, terms) >= bidding.STRANGER
        if stranger and len(self._conversations) >= STRANGERS_OPEN_LIMIT:
            return Refusal(
                call=call.call, reason=Reason.BUSY, detail="too many bids are open here"
            )
        if (peer, call.call) in self._conversations:
            raise RemoteProtocolError(
                f"call {call.call} was made before", code="duplicate_call"
            )
        side = ProviderSide(requester=peer, provider=self._house.peer_id)
        side.receive(call, trio.current_time())
        batches = knows(self._house.control.versions.of(peer), UnitsRequest)
        nonce = secrets.token_hex(16)
        offer = bidding.bid(call, terms, held_bytes, nonce, batches=batches)
        side.send(offer, trio.current_time())
        conversation = Conversation(side)
        conversation.room.total_tokens += terms.at_once - 1
        self._conversations[peer, call.call] = conversation
        return offer

    async def _held_bytes(self, peer: PeerId, call: Call) -> int:
        """How much of the called program need not be sent; 0 when its manifest must.

        Only what ``peer`` is known to have counts, or the price would tell it
        what others run here.
        """
        house, program = self._house, BlobId(call.program)
        if not usable(house, peer, program):
            return 0
        try:
            manifest = await manifest_of(house.store, program)
        except (ProgramError, StoreError):
            return 0
        blob_ids = [program, *program_blobs(manifest)]
        return sum(house.store.size_bytes(b) for b in blob_ids if usable(house, peer, b))

    def _lease(self, conversation: Conversation, offer: AwardOffer) -> Lease | Refusal:
        side = conversation.side
        assert side.call is not None
        assert side.award_id is not None
        terms = self._house.terms_on(conversation.device)
        changed = bidding.refusal(side.call, side.requester, terms)
        if changed is not None:  # since the bid
            side.send(changed, trio.current_time())
            return changed
        peers = [PeerId(source) for source in offer.sources if source != self._house.peer_id]
        program = BlobId(side.call.program)
        self._house.shares.lease(side.award_id, side.requester, program, peers)
        lease = Lease(call=offer.call, award=side.award_id, idle_s=bidding.LEASE_IDLE_S)
        side.send(lease, trio.current_time())
        log.info("leased", requester=side.requester, award=side.award_id)
        return lease

    async def _units(
        self, conversation: Conversation, effects: Sequence[Effect]
    ) -> list[UnitResult | Refusal]:
        """The answers to the units of one message, when all have ended."""
        closed = self._closed(conversation) or self._withheld(conversation.side)
        answers: list[UnitResult | Refusal | Running] = []
        started: list[Running] = []
        for effect in effects:
            match effect:
                case Answer(message):
                    answers.append(message)
                case Await(unit):
                    answers.append(conversation.running[unit])
                case Execute(request) if closed:
                    conversation.side.send(closed, trio.current_time(), request.unit)
                    answers.append(closed)
                case Execute(request):
                    running = Running(request)
                    conversation.running[request.unit] = running
                    answers.append(running)
                    started.append(running)
        if started:
            ended = partial(self._end, conversation)
            batch = Batch(self._house, conversation, started, ended)
            self._nursery.start_soon(self._run, conversation, batch, started)
        return [
            await answer.end() if isinstance(answer, Running) else answer for answer in answers
        ]

    async def _run(
        self, conversation: Conversation, batch: Batch, units: Sequence[Running]
    ) -> None:
        side, before_s = conversation.side, conversation.ran_s
        try:
            await batch.run()
        finally:
            receipts = {
                unit.request.unit: unit.answer.receipt
                for unit in units
                if isinstance(unit.answer, UnitResult)
            }
            settling = self._house.settling
            settling.answered(side, receipts, conversation.ran_s - before_s)
            ended = side.state is not State.LEASED
            settling.excuse(side, receipts.keys() if ended else conversation.unwanted)
            if side.state is not State.LEASED:
                # Forgotten meanwhile: what the last step still granted goes too.
                self._take_back(side)

    def _end(self, conversation: Conversation, running: Running) -> None:
        """Keep the answer of a unit, for whoever asks for it again."""
        assert running.answer is not None
        unit = running.request.unit
        if conversation.side.state is State.LEASED:
            conversation.side.send(running.answer, trio.current_time(), unit)
        else:
            self._take_back(conversation.side)
        self.units_served += isinstance(running.answer, UnitResult)
        conversation.running.pop(unit, None)

    async def sweep(self) -> None:
        """Look over the conversations for ever.

        Ends units that this node's owner has no room for any more, and forgets what
        has ended: most conversations do by their time.
        """
        while True:
            await trio.sleep(SWEEP_INTERVAL_S)
            kept_outputs.sweep(self._house)
            now_s = trio.current_time()
            for key, conversation in list(self._conversations.items()):
                self._hand_back(conversation, now_s)
                conversation.side.expire(now_s)
                if conversation.side.state is State.ENDED:  # or a late message ended it
                    self._forget(key)

    def _hand_back(self, conversation: Conversation, now_s: float) -> None:
        """End units that are not wanted any more, and have had their time to end."""
        closed = self._closed(conversation) if conversation.running else None
        for unit, running in list(conversation.running.items()):
            # How long a drain lasts is `node.lifecycle`'s to say.
            if closed is None or closed.reason is Reason.DRAINING:
                running.unwanted_since_s = None
            elif running.unwanted_since_s is None:
                running.unwanted_since_s = now_s
            elif now_s - running.unwanted_since_s >= HAND_BACK_AFTER_S:
                log.info("a unit is handed back", unit=unit, reason=closed.reason)
                running.give_up(closed)

    def _closed(self, conversation: Conversation) -> Refusal | None:
        """Why this node takes nothing more under a lease, as an answer to its requester."""
        side = conversation.side
        assert side.call is not None
        terms = self._house.terms_on(conversation.device)
        reason = bidding.ends_lease(side.call, side.requester, terms)
        return reason and Refusal(call=side.call.call, reason=reason[0], detail=reason[1])

    def _withheld(self, side: ProviderSide) -> Refusal | None:
        """Why this requester gets no more units now; those that run go on."""
        assert side.call is not None
        reason = bidding.withheld(side.requester, self._house.terms())
        return reason and Refusal(side.call.call, *reason)

    def _forget(self, key: tuple[PeerId, str]) -> None:
        conversation = self._conversations.pop(key)
        self._forgotten.set()
        self._forgotten = trio.Event()
        for running in list(conversation.running.values()):
            running.give_up(_cancelled(running.request))
        self._take_back(conversation.side)

    def _take_back(self, side: ProviderSide) -> None:
        """End the rights and pins that an award gave."""
        if side.award_id is not None:
            self._house.rights.withdraw(side.award_id)
            self._house.shares.end(side.award_id)
            self._house.store.unpin(side.award_id)


@asynccontextmanager
async def open_provider(house: House) -> AsyncIterator[Provider]:
    """Answer negotiation for as long as the block runs; running units end with it."""
    async with trio.open_nursery() as nursery:
        provider = Provider(house, nursery)
        nursery.start_soon(provider.sweep)
        yield provider
        nursery.cancel_scope.cancel()


def _cancelled(request: UnitRequest) -> Refusal:
    return Refusal(call=request.call, reason=Reason.EXPIRED, detail="the unit was cancelled")


def _as_awarded(award: Award, message: Reveal) -> bool:
    """Whether list and salt are those that an award names: pure."""
    candidates = [PeerId(peer) for peer in message.candidates]
    return award.salt_hash == salt_hash(message.salt) and award.candidates == list_id(
        candidates
    )
