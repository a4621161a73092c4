"""How a blob is got from peers: small ones by stream, large ones by bulk channels.

The one place that decides between the two. Every blob begins by stream, since its size
stands in its chunk list; the list of a large one is all that is taken of it there. Its
chunks come from all sources at once, as `node.bulk.plan` says. A source that sends a wrong
byte is cut and named, one that breaks off is tried again, and what it had not sent comes
from the others. Where no source is left that a channel can be had to, a stream carries the
rest.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING

import structlog
import trio

from shoal.crypto.errors import ShoalError
from shoal.node.blob_transfer import BLOB_PROTOCOL, fetch_blob
from shoal.node.bulk.channels import offence_of
from shoal.node.bulk.plan import STARVED_S, Plan, Role
from shoal.node.errors import NetworkError, StoreError
from shoal.node.standing import Offence
from shoal.protocol.blob_messages import WhyNot
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.limits import BLOB_AT_ONCE_LIMIT_BYTES, CHANNEL_FROM_BYTES

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
class _Failures:
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


async def fetch(
    house: House,
    blob_id: BlobId,
    source: PeerId,
    limit_bytes: int,
    requester: PeerId | None = None,
) -> None:
    """Fetch a blob from one peer, for itself or for ``requester``; as `fetch_from`."""
    await fetch_from(house, blob_id, [Source(source, requester)], limit_bytes)


async def fetch_from(
    house: House, blob_id: BlobId, sources: Sequence[Source], limit_bytes: int
) -> None:
    """Fetch a blob; returns when the sources have shown to have all of it.

    Args:
        house: Whose store it goes to.
        blob_id: Which.
        sources: At least one, in the order in which to try; the last one's word decides on
            what is wrong where all fail.
        limit_bytes: A larger one is refused.

    Raises:
        NetworkError: As `fetch_blob`; where several sources were tried it says of each why
            it did not give the blob.
        RemoteProtocolError: The only source sent something else than the blob. That is
            reported of any.
        StoreError: ``blob_too_large``, or the store has no room for it.
    """
    failures = _Failures()
    try_stream = partial(_from_the_first, house, blob_id, limit_bytes, failures)
    chunks = await try_stream(sources, leave=True)
    if chunks is None:
        return
    left = [source for source in sources if source.peer not in failures.why]
    if await _by_channels(house, left, chunks, failures):
        return
    able = [source for source in left if _may_do_by_stream(failures.why.get(source.peer))]
    if not able:
        raise failures.of(sources, blob_id)
    await try_stream(able)  # the rest, or a proof of what others had sent before


async def _from_the_first(
    house: House,
    blob_id: BlobId,
    limit_bytes: int,
    failures: _Failures,
    sources: Sequence[Source],
    *,
    leave: bool = False,
    leave_over_bytes: int = CHANNEL_FROM_BYTES,
) -> ChunkList | None:
    """Fetch by stream from the first source that gives it; ``leave`` what is large."""
    channels = house.channels
    for source in sources:
        wanted = leave and channels is not None and channels.may_be_had(source.peer)
        left = leave_over_bytes if wanted else None
        try:
            return await _by_stream(house, blob_id, source, limit_bytes, left)
        except StoreError:
            raise
        except ShoalError as error:
            _failed(failures, source, blob_id, error)
    raise failures.of(sources, blob_id)


async def fetch_beside(
    house: House,
    blob_id: BlobId,
    origin: PeerId,
    takers: Callable[[], Sequence[Source]],
    limit_bytes: int,
) -> None:
    """Fetch a blob that others get from the same peer, from them as far as may be.

    Args:
        house: Whose store it goes to.
        blob_id: Which.
        origin: Whom all have it from, and who named them to each other.
        takers: The others that are known by now.
        limit_bytes: A larger one is refused.

    Raises:
        NetworkError: As `fetch_from`; what the others do or fail to do is no matter.
        RemoteProtocolError: As `fetch_from`.
        StoreError: As `fetch_from`.
    """
    failures, source = _Failures(), Source(origin, role=Role.ORIGIN)
    by_stream = partial(_from_the_first, house, blob_id, limit_bytes, failures, [source])
    chunks = await by_stream(leave=True, leave_over_bytes=BLOB_AT_ONCE_LIMIT_BYTES)
    if chunks is None or await _by_channels(house, [source], chunks, failures, takers):
        return
    if not _may_do_by_stream(failures.why.get(origin)):
        raise failures.why[origin]
    await by_stream()


def _may_do_by_stream(failed: ShoalError | None) -> bool:
    """Whether a source may give by stream what it has not given by channel."""
    return not isinstance(failed, RemoteProtocolError) and (
        failed is None or failed.code not in set(WhyNot)
    )


def _failed(failures: _Failures, source: Source, blob_id: BlobId, error: ShoalError) -> None:
    failures.why[source.peer] = error
    log.info("a source gave no blob", source=source.peer, blob=blob_id, why=error.message)


async def _by_stream(
    house: House,
    blob_id: BlobId,
    source: Source,
    limit_bytes: int,
    leave_over_bytes: int | None = None,
) -> ChunkList | None:
    peer = source.peer
    try:
        async with house.fetching_from.take(peer):
            return await fetch_blob(
                partial(house.network.begin_stream, peer, BLOB_PROTOCOL),
                blob_id,
                house.store,
                own=house.peer_id,
                limit_bytes=limit_bytes,
                requester=source.requester,
                newer=house.control.versions.is_newer(peer),
                leave_over_bytes=leave_over_bytes,
            )
    except RemoteProtocolError as error:
        house.broke(peer, Offence.BAD_BLOB, error.message)
        raise


async def _by_channels(
    house: House,
    sources: Sequence[Source],
    chunks: ChunkList,
    failures: _Failures,
    takers: Callable[[], Sequence[Source]] | None = None,
) -> bool:
    """Take what is missing by channel; gives whether the sources have sent all of the blob."""
    if house.store.receiving(chunks.blob_id):  # by another peer, whose pace is not this one's
        return False
    async with house.store.receive(chunks.blob_id) as reception:
        await reception.begin(chunks)
        transfer = _Transfer(house, chunks, reception, failures, takers)
        all_missing = len(reception.missing_chunks()) == len(chunks.digests)
        # What was here before is no word of these sources', and is not passed on in it.
        whom = sources[-1].peer if takers is not None and all_missing else None
        with house.shares.arriving(whom, chunks.blob_id):
            await transfer.run(sources)
        if not transfer.plan.done:
            return False
        await reception.finish()
        return all_missing


class _Transfer:
    """One blob on its way in over channels; a task for each source."""

    def __init__(
        self,
        house: House,
        chunks: ChunkList,
        reception: Reception,
        failures: _Failures,
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
                    log.info("a source has stalled", source=peer, blob=self._chunks.blob_id)
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
                _failed(self._failures, source, self._chunks.blob_id, error)
                given_up = True
            except ShoalError as error:
                if source.is_taker and error.code in set(WhyNot) and not self._is_starved():
                    pause_s = ASK_TAKER_AGAIN_S  # it has not begun yet, or was not told yet
                else:
                    tries -= 1
                    given_up = not tries or error.code in _NOT_AGAIN
                if given_up:
                    _failed(self._failures, source, self._chunks.blob_id, error)
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


@dataclass(frozen=True, slots=True)
class _Share:
    """What one source brings of a transfer: a `taking.Share`."""

    transfer: _Transfer
    peer: PeerId

    def more(self) -> range | None:
        return self.transfer.more(self.peer)

    def came(self, index: int, chunk: memoryview) -> None:
        self.transfer.came(self.peer, index, chunk)

    def lacking(self, chunks: range) -> None:
        self.transfer.lacking(self.peer, chunks)
