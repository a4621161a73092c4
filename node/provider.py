"""The provider's half of the node: answers negotiation and runs units under leases.

Holds one `ProviderSide` machine per conversation and does what its effects
say, by the steps of `node.pipeline`. A unit belongs to its lease and not to
the request that brought it: when a link breaks, the unit runs on, and its
requester may ask for it again.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog
import trio

from shoal.compute.errors import ProgramError
from shoal.crypto.content import BlobId
from shoal.crypto.errors import ShoalError
from shoal.node import bidding, pipeline
from shoal.node.errors import StoreError
from shoal.node.house import House, inputs_of, manifest_of, program_blobs, usable
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.messages import (
    AwardOffer,
    Call,
    Cancel,
    Done,
    Lease,
    Reason,
    Refusal,
    Release,
    UnitRefusal,
    UnitRequest,
    UnitResult,
    UnitsRequest,
    UnitsResult,
)
from shoal.protocol.negotiation import (
    Abandon,
    Answer,
    Await,
    Effect,
    Execute,
    ProviderSide,
    State,
)
from shoal.protocol.vocabulary import knows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from shoal.crypto.peer_id import PeerId

OPEN_LIMIT = 256
"""Bids and leases of one requester held at once; one that is greedy is in nobody's way."""

STRANGERS_OPEN_LIMIT = 4096
"""From so many of all requesters on no stranger gets a bid: anybody can make keys."""

SWEEP_INTERVAL_S = 1.0

HAND_BACK_AFTER_S = 10.0
"""What a unit that runs gets to end when its owner wants the device: then it is handed
back. Most units end within it, and the worker yields to the owner's processes meanwhile."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Running:
    """A unit in the worker or waiting for it."""

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)
    answer: UnitResult | Refusal | None = None
    unwanted_since_s: float | None = None
    """Since when this node would not take the unit any more."""
    handed_back: Refusal | None = None
    """What to answer when the unit was ended because of that."""

    async def end(self) -> UnitResult | Refusal:
        """Wait for its answer."""
        await self.ended.wait()
        assert self.answer is not None
        return self.answer


@dataclass(slots=True)
class _Conversation:
    """A machine and the units that run because of it."""

    side: ProviderSide
    running: dict[str, _Running] = field(default_factory=dict)


class Provider:
    """Answers negotiation messages. Made by `open_provider`."""

    def __init__(self, house: House, nursery: trio.Nursery) -> None:
        self._house = house
        self._nursery = nursery
        self._conversations: dict[tuple[PeerId, str], _Conversation] = {}
        self._forgotten = trio.Event()
        self.units_served = 0
        self.refused: Counter[Reason] = Counter()
        """How many calls, awards and units were refused, for each reason."""

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

    def hand_back(self, reason: Reason, detail: str) -> None:
        """End every unit that runs, and tell its requester why."""
        for conversation in self._conversations.values():
            call = conversation.side.call
            assert call is not None  # of which its units come
            for unit, running in conversation.running.items():
                log.info("a unit is handed back", unit=unit, reason=reason)
                running.handed_back = Refusal(call=call.call, reason=reason, detail=detail)
                running.scope.cancel()

    async def answer(
        self,
        peer: PeerId,
        message: Call | AwardOffer | UnitRequest | UnitsRequest | Cancel | Release,
    ) -> Refusal | UnitResult | UnitsResult | Lease | Done | bidding.Bid:
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

    async def _answer(
        self,
        peer: PeerId,
        message: Call | AwardOffer | UnitRequest | UnitsRequest | Cancel | Release,
    ) -> Refusal | UnitResult | UnitsResult | Lease | Done | bidding.Bid:
        if isinstance(message, Call):
            return await self._bid(peer, message)
        conversation = self._conversations.get((peer, message.call))
        if conversation is None:
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
                return await pipeline.answer_together(
                    self._house, conversation.side, units, answers
                )
        for effect in effects:
            if isinstance(effect, Abandon) and effect.unit in conversation.running:
                conversation.running[effect.unit].scope.cancel()
        if isinstance(message, Release):
            self._forget((peer, message.call))
        return Done()

    async def _bid(self, peer: PeerId, call: Call) -> bidding.Bid | Refusal:
        terms = self._house.terms()
        answer = bidding.refusal(call, peer, terms)
        if answer is not None:
            return answer
        held_bytes = await self._held_bytes(peer, call)
        if sum(requester == peer for requester, _ in self._conversations) >= OPEN_LIMIT:
            return Refusal(
                call=call.call, reason=Reason.BUSY, detail="you have too many bids open here"
            )
        stranger = bidding.rank(peer, terms) == bidding.STRANGER
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
        self._conversations[peer, call.call] = _Conversation(side)
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

    def _lease(self, conversation: _Conversation, offer: AwardOffer) -> Lease | Refusal:
        side = conversation.side
        assert side.call is not None
        assert side.award_id is not None
        changed = bidding.refusal(side.call, side.requester, self._house.terms())
        if changed is not None:  # since the bid
            side.send(changed, trio.current_time())
            return changed
        lease = Lease(call=offer.call, award=side.award_id, idle_s=bidding.LEASE_IDLE_S)
        side.send(lease, trio.current_time())
        log.info("leased", requester=side.requester, award=side.award_id)
        return lease

    async def _units(
        self, conversation: _Conversation, effects: Sequence[Effect]
    ) -> list[UnitResult | Refusal]:
        """The answers to the units of one message, when all have ended."""
        closed = self._closed(conversation.side)
        answers: list[UnitResult | Refusal | _Running] = []
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
                    running = _Running()
                    conversation.running[request.unit] = running
                    self._nursery.start_soon(self._run, conversation, request, running)
                    answers.append(running)
        return [
            await answer.end() if isinstance(answer, _Running) else answer for answer in answers
        ]

    async def _run(
        self, conversation: _Conversation, request: UnitRequest, running: _Running
    ) -> None:
        """Take one unit through fetch, execute and sign, and keep its answer."""
        side = conversation.side
        answer: UnitResult | Refusal = Refusal(
            call=request.call, reason=Reason.EXPIRED, detail="the unit was cancelled"
        )
        try:
            with running.scope:
                answer = await self._run_steps(side, request)
                self.units_served += isinstance(answer, UnitResult)
            if running.scope.cancelled_caught and running.handed_back is not None:
                answer = running.handed_back
        except Exception:  # root of a unit: a bug here must not end the other units
            log.exception("a unit failed inside this node", unit=request.unit)
            answer = Refusal(
                call=request.call,
                reason=Reason.INTERNAL,
                detail="this node failed to run the unit",
            )
        finally:
            if side.state is State.LEASED:
                side.send(answer, trio.current_time(), request.unit)
            else:  # forgotten meanwhile: what the last step still granted goes too
                self._take_back(side)
            running.answer = answer
            running.ended.set()
            conversation.running.pop(request.unit, None)

    async def _run_steps(
        self, side: ProviderSide, request: UnitRequest
    ) -> UnitResult | Refusal:
        assert side.call is not None
        house, started_at_ms = self._house, time.time_ns() // 1_000_000
        try:
            manifest = await pipeline.fetch_program(house, side)
            inputs = await pipeline.fetch_inputs(house, side, manifest, request)
            outcome = await pipeline.execute(house, side, manifest, inputs)
            return await pipeline.sign(house, side, request, outcome, started_at_ms)
        except ProgramError as error:
            return _refuse(request, Reason.PROGRAM_REFUSED, error)
        except StoreError as error:
            # A blob over what the unit may have of memory fits no disk of any node.
            too_large = error.code == "blob_too_large"
            reason = Reason.PROGRAM_REFUSED if too_large else Reason.NO_ROOM
            return _refuse(request, reason, error)
        except ShoalError as error:
            return _refuse(request, Reason.DATA_MISSING, error)
        finally:
            house.store.unpin(inputs_of(side, request.unit))

    async def sweep(self) -> None:
        """Look over the conversations for ever.

        Ends units that this node's owner has no room for any more, and forgets what
        has ended: most conversations do by their time.
        """
        while True:
            await trio.sleep(SWEEP_INTERVAL_S)
            now_s = trio.current_time()
            for key, conversation in list(self._conversations.items()):
                self._hand_back(conversation, now_s)
                conversation.side.expire(now_s)
                if conversation.side.state is State.ENDED:  # or a late message ended it
                    self._forget(key)

    def _hand_back(self, conversation: _Conversation, now_s: float) -> None:
        """End units that are not wanted any more, and have had their time to end."""
        closed = self._closed(conversation.side) if conversation.running else None
        for unit, running in conversation.running.items():
            # How long a drain lasts is `node.lifecycle`'s to say.
            if closed is None or closed.reason is Reason.DRAINING:
                running.unwanted_since_s = None
            elif running.unwanted_since_s is None:
                running.unwanted_since_s = now_s
            elif now_s - running.unwanted_since_s >= HAND_BACK_AFTER_S:
                log.info("a unit is handed back", unit=unit, reason=closed.reason)
                running.handed_back = closed
                running.scope.cancel()

    def _closed(self, side: ProviderSide) -> Refusal | None:
        """Why this node takes nothing of this requester now, as an answer to it."""
        assert side.call is not None
        reason = bidding.closed(side.requester, self._house.terms())
        return reason and Refusal(call=side.call.call, reason=reason[0], detail=reason[1])

    def _forget(self, key: tuple[PeerId, str]) -> None:
        conversation = self._conversations.pop(key)
        self._forgotten.set()
        self._forgotten = trio.Event()
        for running in conversation.running.values():
            running.scope.cancel()
        self._take_back(conversation.side)

    def _take_back(self, side: ProviderSide) -> None:
        """End the rights and pins that an award gave."""
        if side.award_id is not None:
            self._house.rights.withdraw(side.award_id)
            self._house.store.unpin(side.award_id)


@asynccontextmanager
async def open_provider(house: House) -> AsyncIterator[Provider]:
    """Answer negotiation for as long as the block runs; running units end with it."""
    async with trio.open_nursery() as nursery:
        provider = Provider(house, nursery)
        nursery.start_soon(provider.sweep)
        yield provider
        nursery.cancel_scope.cancel()


def _refuse(request: UnitRequest, reason: Reason, error: ShoalError) -> Refusal:
    return Refusal(call=request.call, reason=reason, detail=error.message[:256])
