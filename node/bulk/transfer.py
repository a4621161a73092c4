"""One blob on its way in over bulk channels, from all of its sources at once.

A task for each source, which has a channel to it; which chunks it brings is `plan`'s to say.
A source that sends a wrong byte is cut and named, one that breaks off is tried again, one
that has stalled is not waited for, and what they had not sent comes from the others.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING

import structlog
import trio

from shoal.crypto.errors import ShoalError
from shoal.node.bulk.channels import offence_of
from shoal.node.bulk.plan import STARVED_S, Plan, Role
from shoal.node.errors import NetworkError, StoreError
from shoal.node.notes import Seen
from shoal.protocol.blob_messages import WhyNot
from shoal.protocol.errors import RemoteProtocolError

if TYPE_CHECKING:
    from shoal.crypto.content import BlobId, ChunkList
    from shoal.crypto.peer_id import PeerId
    from shoal.node.blob_reception import Reception
    from shoal.node.house import House

CHANNEL_TRIES = 3
"""Channels to one source that may break in the middle of one blob, before it is given up."""

REACH_LIMIT_S = 10.0
"""To be connected with another taker."""

ASK_TAKER_AGAIN_S = 0.2
"""When a taker is asked again that had nothing of the blob, or knew of no right to it."""

ASK_BUSY_AGAIN_S = 0.5
"""When a source is asked again for a channel that had none free."""

LOOK_AGAIN_S = 0.1
"""How often a source with nothing to do looks whether there is something again."""

_NOT_AGAIN = frozenset({"no_channel", "channels_busy", "not_connected", *WhyNot})

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """A connected peer that a blob is asked of.

    Attributes:
        requester: For whose unit, where that is another peer that named this one; it knows
            protocol 1.3 then.
        role: What it is to the transfer.
    """

    peer: PeerId
    requester: PeerId | None = None
    role: Role = Role.HOLDER

    @property
    def is_taker(self) -> bool:
        """Whether it is only getting the blob itself, or may have it by now."""
        return self.role in {Role.BEFORE, Role.AFTER}


@dataclass(slots=True)
class Failures:
    """Why sources gave nothing, or gave no more."""

    why: dict[PeerId, ShoalError] = field(default_factory=dict)

    def of(self, sources: Iterable[Source], blob_id: BlobId) -> ShoalError:
        """What is said where nobody is left: by the last source, which the others were for."""
        last: ShoalError | None = None
        for source in sources:
            last = self.why.get(source.peer, last)
        assert last is not None
        if len(self.why) == 1:
            return last
        each = "; ".join(f"{peer}: {error.message}" for peer, error in self.why.items())
        code = last.code if isinstance(last, NetworkError) else "no_source"
        return NetworkError(f"blob {blob_id[:16]}… is not to be had: {each}", code=code)

    def note(self, source: Source, blob_id: BlobId, error: ShoalError) -> None:
        """Note why a source is done without."""
        self.why[source.peer] = error
        log.info("a source gave no blob", source=source.peer, blob=blob_id, why=error.message)


class Transfer:
    """One blob on its way in over channels; a task for each source."""

    def __init__(
        self,
        house: House,
        chunks: ChunkList,
        reception: Reception,
        failures: Failures,
        takers: Callable[[], Sequence[Source]] | None,
    ) -> None:
        own = None if takers is None else house.peer_id
        self.plan: Plan[PeerId] = Plan(reception.missing_chunks(), own=own, name=chunks.blob_id)
        self._house, self._chunks, self._reception = house, chunks, reception
        self._failures = failures
        self._takers = takers or (lambda: ())
        self._known: set[PeerId] = set()
        self._lock = Lock()  # the plan is asked in the threads of all channels
        self._taking: dict[PeerId, trio.CancelScope] = {}
        self._done = trio.Event()
        self._store_error: StoreError | None = None
        self._token = trio.lowlevel.current_trio_token()

    async def run(self, sources: Sequence[Source]) -> None:
        """Take all that can be had; raises `StoreError`, and notes any other failure."""
        if self.plan.done:
            return
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as taking:
                self._begin([*self._takers(), *sources], taking)
                nursery.start_soon(self._watch, taking)
            nursery.cancel_scope.cancel()
        if self._store_error is not None:
            raise self._store_error

    def _begin(self, sources: Iterable[Source], taking: trio.Nursery) -> None:
        for source in sources:
            if source.peer not in self._known:
                self._known.add(source.peer)
                self._join(source)
                taking.start_soon(self._take_from, source)

    def _join(self, source: Source) -> None:
        with self._lock:
            self.plan.join(source.peer, source.role, time.monotonic())

    async def _watch(self, taking: trio.Nursery) -> None:
        """End the waiting for sources that nothing more is needed of, or that have stalled."""
        while True:
            with trio.move_on_after(LOOK_AGAIN_S):
                await self._done.wait()
                break
            if taking.child_tasks:
                self._begin(self._takers(), taking)
            with self._lock:
                stalled = self.plan.stalled(time.monotonic())
            for peer in stalled:
                if peer in self._taking:
                    blob_id = self._chunks.blob_id
                    log.info("a source has stalled", source=peer, blob=blob_id)
                    self._house.noted(peer, Seen.STALLED, f"blob {blob_id[:16]}…")
                    self._taking[peer].cancel()
        for peer, scope in self._taking.items():
            if self.plan.owes(peer):  # else it ends by itself, and its channel can rest
                scope.cancel()

    async def _take_from(self, source: Source) -> None:
        """Take from one source, which has joined, until all is here or it has failed."""
        peer, tries, given_up = source.peer, CHANNEL_TRIES, False
        while not self._done.is_set() and not given_up:
            pause_s = 0.0
            try:
                await self._take_by_one_channel(source)
            except StoreError as error:
                self._store_error = error
                self._done.set()
            except RemoteProtocolError as error:
                self._house.broke(peer, offence_of(error), error.message)
                self._failures.note(source, self._chunks.blob_id, error)
                given_up = True
            except ShoalError as error:
                if error.code == "link_lost":
                    self._house.noted(peer, Seen.BROKE_OFF, error.message)
                wait_s = _not_yet_s(source, error)
                if wait_s is not None and not self._is_starved():
                    pause_s = wait_s
                else:
                    tries -= 1
                    given_up = not tries or error.code in _NOT_AGAIN
                if given_up:
                    self._failures.note(source, self._chunks.blob_id, error)
            finally:
                with self._lock:
                    self.plan.leave(peer)
            if not given_up:
                self._join(source)
                with trio.move_on_after(pause_s):
                    await self._done.wait()

    def _is_starved(self) -> bool:
        with self._lock:
            return self.plan.waited_s(time.monotonic()) >= STARVED_S

    async def _take_by_one_channel(self, source: Source) -> None:
        assert self._house.channels is not None
        if source.is_taker:
            try:
                with trio.fail_after(REACH_LIMIT_S):
                    await self._house.reach(source.peer)
            except trio.TooSlowError:
                raise NetworkError(
                    f"{source.peer} was not reached within {REACH_LIMIT_S:g} s",
                    code="not_connected",
                ) from None
        share = _Share(self, source.peer)
        async with self._house.channels.to(source.peer) as channel:
            while not self._done.is_set():
                await self._take(channel.take, share, source)
                with trio.move_on_after(LOOK_AGAIN_S):
                    await self._done.wait()

    async def _take(
        self,
        take: Callable[[ChunkList, _Share, PeerId | None], Awaitable[None]],
        share: _Share,
        source: Source,
    ) -> None:
        with trio.CancelScope() as scope:
            self._taking[source.peer] = scope
            try:
                await take(self._chunks, share, source.requester)
            finally:
                del self._taking[source.peer]
        if scope.cancelled_caught:  # something may still come on it, so it is over
            raise NetworkError(f"{source.peer} was not waited for any longer", code="stalled")

    # --- called in the channels' threads ----------------------------------------------

    def more(self, peer: PeerId) -> range | None:
        """As `taking.Share.more`."""
        with self._lock:
            return None if self.plan.done else self.plan.more(peer, time.monotonic())

    def came(self, peer: PeerId, index: int, chunk: memoryview) -> None:
        """As `taking.Share.came`; what another source was faster with is checked too."""
        if self.plan.lacks(index):
            self._reception.write_here(index, chunk)
        else:
            self._chunks.check_chunk(index, chunk)
        with self._lock:
            self.plan.came(peer, index, time.monotonic())
            if self.plan.done:
                self._token.run_sync_soon(self._done.set)

    def lacking(self, peer: PeerId, chunks: range) -> None:
        """As `taking.Share.lacking`."""
        with self._lock:
            self.plan.lacking(peer, chunks, time.monotonic())
            starved = self.plan.starved(peer, time.monotonic())
        if starved:
            raise NetworkError(
                f"{peer} has not got all of the blob, and gets no more of it",
                code=WhyNot.NOT_HELD.value,
            )


def _not_yet_s(source: Source, error: ShoalError) -> float | None:
    """When to ask again a source that can give nothing yet; none for one that has failed."""
    if error.code == "channels_busy":
        return ASK_BUSY_AGAIN_S
    if source.is_taker and error.code in set(WhyNot):
        return ASK_TAKER_AGAIN_S  # it has not begun yet, or was not told yet
    return None


@dataclass(frozen=True, slots=True)
class _Share:
    """What one source brings of a transfer: a `taking.Share`."""

    transfer: Transfer
    peer: PeerId

    def more(self) -> range | None:
        return self.transfer.more(self.peer)

    def came(self, index: int, chunk: memoryview) -> None:
        self.transfer.came(self.peer, index, chunk)

    def lacking(self, chunks: range) -> None:
        self.transfer.lacking(self.peer, chunks)
