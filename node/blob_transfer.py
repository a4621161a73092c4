"""Blobs between peers: ``/shoal/blob/1`` over a libp2p stream, both sides of it.

The step "fetch inputs" of the data path, and "deliver" the other way. A blob is
served to those who hold a right to it, and to nobody else: of a lease, or since it is
kept for them or shared with them (`node.kept_outputs`). The receiver checks
the chunk list against the blob's id and each chunk against the list; a wrong
byte ends the transfer and names the peer, and what was right before it stays,
so that a retry, with the same peer or another, goes on from there.

Fetching a blob ends in two things at once: the store holds it, and the peer has
shown that it has it, byte by byte or by a proof (`node.blob_proofs`) of what the
store held before. So it is also done for blobs that are held, for a peer that is
not known to have them; who is known, and which peer to ask how often, is for the
caller to decide. The words are in `protocol.blob_messages`, the bytes end in
`node.blobs`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
import trio

from shoal.crypto.content import BlobId, ChunkList, decode_chunk_list
from shoal.crypto.errors import VerificationError
from shoal.crypto.peer_id import PeerId
from shoal.node.blob_proofs import ANSWER_TIME_LIMIT_S, give_proof, hashing_limit_s, is_proved
from shoal.node.errors import NetworkError, StoreError, StreamClosedError
from shoal.node.frames import receive_frame, send_frame, within
from shoal.node.kept_outputs import KeptOutputs
from shoal.node.notes import Seen
from shoal.node.program_shares import ProgramShares
from shoal.node.standing import Offence
from shoal.node.turns import Turns
from shoal.protocol.blob_messages import (
    MESSAGE_LIMIT_BYTES,
    BlobAnswer,
    BlobFound,
    BlobNext,
    BlobProve,
    BlobRefused,
    BlobRequest,
    BlobSend,
    WhyNot,
)
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.limits import BLOB_AT_ONCE_LIMIT_BYTES

if TYPE_CHECKING:
    from shoal.node.blob_files import OpenBlob
    from shoal.node.blob_reception import Reception
    from shoal.node.blobs import BlobStore
    from shoal.node.network import ByteStream

log = structlog.get_logger()

BLOB_PROTOCOL = "/shoal/blob/1"

REQUEST_TIME_LIMIT_S = 15.0
"""From a stream's opening to what is wanted on it: nothing is to be thought about."""

SERVED_LIMIT = 32
"""Streams of one peer that are sent over at once, and so how many chunks of 1 MiB are in
memory for it; more side by side are no faster. Those of its other connection wait; how
many one connection may open is `node.admission`'s to say."""

CHUNK_TIME_LIMIT_S = 60.0
"""For one chunk of 1 MiB: a peer that is slower than 17 KB/s is cut."""


PEERS_SERVED_LIMIT = 1024
"""Peers of which it is kept when they were last sent something, the last ones."""

EVERYBODY = PeerId("*")
"""In place of a peer, for blobs that are public."""


class Rights:
    """Who may fetch which blob: granted under a name, withdrawn with it.

    The name is a lease's or an award's id, or a fraud proof's. In memory: after a restart
    no lease of before holds.
    """

    def __init__(self) -> None:
        self._granted: dict[str, set[tuple[PeerId, BlobId]]] = {}
        self._count: Counter[tuple[PeerId, BlobId]] = Counter()

    def grant(self, name: str, peer: PeerId, blob_ids: Iterable[BlobId]) -> None:
        """Let ``peer``, or `EVERYBODY`, fetch these, beside what ``name`` granted before."""
        granted = self._granted.setdefault(name, set())
        new = {(peer, blob_id) for blob_id in blob_ids} - granted
        granted |= new
        self._count.update(new)

    def withdraw(self, name: str) -> None:
        """Take back what ``name`` granted; what another name grants too stays."""
        for right in self._granted.pop(name, ()):
            self._count[right] -= 1
            if not self._count[right]:
                del self._count[right]

    def allows(self, peer: PeerId, blob_id: BlobId) -> bool:
        """Whether ``peer`` may fetch the blob now."""
        return (peer, blob_id) in self._count or (EVERYBODY, blob_id) in self._count


class BlobServer:
    """Answers the blob streams that peers open; `serve` is the handler of `BLOB_PROTOCOL`.

    Args:
        own: This node.
        store: Whose blobs are served.
        rights: Who may have which, and so may demand a proof of it.
        kept: What is kept for whom, and may be had as well.
        shares: Which requesters' programs are shared with whom, likewise.
        newer: Whether a peer speaks a newer version (`protocol.versions`).
        broke: Told of what breaks the protocol.
        noted: Told who asks for what it has no right to.

    Attributes:
        sent_s: When a peer was last sent bytes of a blob, or asked for some that it may have,
            by the clock of Trio.
    """

    def __init__(
        self,
        own: PeerId,
        store: BlobStore,
        rights: Rights,
        kept: KeptOutputs | None = None,
        shares: ProgramShares | None = None,
        *,
        newer: Callable[[PeerId], bool] = lambda _peer: False,
        broke: Callable[[PeerId, Offence, str], None] = lambda _peer, _offence, _detail: None,
        noted: Callable[[PeerId, Seen, str], None] = lambda _peer, _what, _detail: None,
    ) -> None:
        self._own = own
        self._broke, self._noted = broke, noted
        self._sending: Turns[PeerId] = Turns(SERVED_LIMIT)
        self._store = store
        self._rights = rights
        self._kept = KeptOutputs() if kept is None else kept
        self._shares = ProgramShares() if shares is None else shares
        self._newer = newer
        self._proving: Turns[PeerId] = Turns()
        self.sent_s: dict[PeerId, float] = {}

    async def serve(self, stream: ByteStream) -> None:
        """Answer the one request of a stream.

        Raises:
            NetworkError: The peer went away or is too slow.
        """
        try:
            with within(REQUEST_TIME_LIMIT_S, stream.remote):
                request = await self._hear(stream, BlobRequest)
            async with self._sending.take(stream.remote):
                await self._send(stream, request)
        except (RemoteProtocolError, StoreError) as error:
            log.warning("a blob was not served", peer=stream.remote, error=error.message)
            if isinstance(error, RemoteProtocolError):
                slow = error.code == "dribbled"
                offence = Offence.SLOW_FRAME if slow else Offence.BAD_FRAME
                self._broke(stream.remote, offence, error.message)
            await stream.reset()

    async def open_blob(
        self, peer: PeerId, blob_id: BlobId, requester: str | None, known: OpenBlob | None
    ) -> OpenBlob | WhyNot:
        """Open a blob for a peer's bulk channel; the caller closes it.

        Args:
            peer: Who wants it.
            blob_id: Which.
            requester: As in `BlobRequest`.
            known: What was opened last, given again where it is that blob, and whole.
        """
        if not self._allows(peer, blob_id, requester):
            return WhyNot.NO_RIGHT
        self._note_sent(peer)
        if known is not None and known.is_whole and known.chunks.blob_id == blob_id:
            return known
        try:
            return await self._store.open_blob(blob_id)
        except StoreError as error:
            return _not_held(peer, error)

    def _note_sent(self, peer: PeerId) -> None:
        self.sent_s.pop(peer, None)
        self.sent_s[peer] = trio.current_time()  # the last served is last
        if len(self.sent_s) > PEERS_SERVED_LIMIT:
            del self.sent_s[next(iter(self.sent_s))]

    async def _send(self, stream: ByteStream, request: BlobRequest) -> None:
        blob_id = BlobId(request.blob)
        with self._store.kept(blob_id):
            chunks = await self._look_up(stream.remote, blob_id, request.requester)
            if isinstance(chunks, WhyNot):
                await send_frame(stream, BlobRefused(reason=chunks), MESSAGE_LIMIT_BYTES)
                return
            listed = chunks.encode()
            await send_frame(stream, BlobFound(list_bytes=len(listed)), MESSAGE_LIMIT_BYTES)
            with within(ANSWER_TIME_LIMIT_S, stream.remote):
                await stream.send_all(listed)
            first_chunk = await self._first_chunk(stream, chunks)
            for index in range(first_chunk, len(chunks.digests)):
                chunk = await self._store.read_chunk(blob_id, index)
                with within(CHUNK_TIME_LIMIT_S, stream.remote):
                    await stream.send_all(chunk)
                self._note_sent(stream.remote)

    async def _look_up(
        self, peer: PeerId, blob_id: BlobId, requester: str | None
    ) -> ChunkList | WhyNot:
        """Decide on a request: whoever has no right does not learn what is held."""
        if not self._allows(peer, blob_id, requester):
            return WhyNot.NO_RIGHT
        try:
            return await self._store.chunk_list(blob_id)
        except StoreError as error:
            return _not_held(peer, error)

    def _allows(self, peer: PeerId, blob_id: BlobId, requester: str | None) -> bool:
        for_whom = None if requester is None else PeerId(requester)
        allowed = (
            self._kept.allows(peer, blob_id, for_whom, trio.current_time())
            or self._shares.allows(peer, blob_id, for_whom)
            or (for_whom is None and self._rights.allows(peer, blob_id))
        )
        # One that gets the same program may ask before this node has heard of it.
        if not allowed and (for_whom is None or not self._shares.serves(for_whom)):
            self._noted(peer, Seen.NO_RIGHT, f"blob {blob_id[:16]}…")
        return allowed

    async def _first_chunk(self, stream: ByteStream, chunks: ChunkList) -> int:
        """From where to send; past the end, where the peer wants nothing more."""
        if chunks.size_bytes <= BLOB_AT_ONCE_LIMIT_BYTES:
            return 0
        try:
            with within(ANSWER_TIME_LIMIT_S, stream.remote):
                said = await self._hear(stream, BlobNext)
            if isinstance(said, BlobProve):
                feed = partial(self._store.feed, chunks.blob_id)
                async with self._proving.take(stream.remote):  # one peer, one core
                    await give_proof(stream, self._own, chunks, said, feed)
                with within(hashing_limit_s(chunks.size_bytes), stream.remote):
                    said = await self._hear(stream, BlobSend)
        except StreamClosedError:
            return len(chunks.digests)
        return int(said.first_chunk)

    async def _hear(self, stream: ByteStream, kind: Any) -> Any:
        newer = self._newer(stream.remote)
        return await receive_frame(stream, kind, MESSAGE_LIMIT_BYTES, newer=newer)


def _not_held(peer: PeerId, error: StoreError) -> WhyNot:
    """What a peer hears of a blob that is missing, or was found damaged just now."""
    log.info("a blob that a peer may have is not here", peer=peer, error=error.message)
    return WhyNot.NOT_HELD


async def fetch_blob(
    open_stream: Callable[[], Awaitable[ByteStream]],
    blob_id: BlobId,
    store: BlobStore,
    *,
    own: PeerId,
    limit_bytes: int,
    requester: PeerId | None = None,
    newer: bool = False,
    leave_over_bytes: int | None = None,
) -> ChunkList | None:
    """Fetch a blob from one peer; returns when that peer has shown to have all of it.

    Then the store holds it. Pin the blob first where it must not go again at once.
    What the store held before is demanded as a proof and not sent again; where
    the proof fails, all is sent, as if nothing were held. Nothing that is here
    already, or is being sent by another peer, is used before that, and none of it
    is told to a peer that cannot give the blob's chunk list. Cancelled, it keeps
    the chunks that came.

    Args:
        open_stream: Opens a `BLOB_PROTOCOL` stream to a peer.
        blob_id: The blob wanted.
        store: Where it goes.
        own: This node, for which the peer proves what it has.
        limit_bytes: A larger blob is refused from its chunk list, before its bytes.
        requester: For whose unit, where it is another peer that keeps the blob for it; to
            be said only to a peer that knows protocol 1.3.
        newer: Whether the peer speaks a newer version.
        leave_over_bytes: A larger blob, of which nobody sends or has sent all, is left
            where it is, for `node.fetching` to get its chunks another way.

    Returns:
        The chunk list of a blob that was left, of which the peer has shown nothing.

    Raises:
        NetworkError: The peer cannot be reached, is too slow, or refuses:
            ``not_held``, ``no_right``.
        RemoteProtocolError: The peer sent something that is not the blob.
        StoreError: ``blob_too_large``, or the store has no room for it.
    """
    request = BlobRequest(blob=blob_id, requester=requester)
    with store.kept(blob_id):
        try:
            async with await open_stream() as stream:
                chunks = await _receive_list(stream, request, limit_bytes, newer=newer)
                if (
                    leave_over_bytes is not None
                    and chunks.size_bytes > leave_over_bytes
                    and not (store.holds(blob_id) or store.receiving(blob_id))
                ):
                    return chunks
                await _take_the_rest(stream, own, chunks, store, newer=newer)
        except _UnprovedError:
            async with await open_stream() as stream:
                chunks = await _receive_list(stream, request, limit_bytes, newer=newer)
                await _take_all(stream, chunks, store)
    return None


class _UnprovedError(Exception):
    """The peer did not prove to have what is here; the stream is of no further use."""


async def _take_the_rest(
    stream: ByteStream, own: PeerId, chunks: ChunkList, store: BlobStore, *, newer: bool
) -> None:
    """Take what is not here yet, and let the peer prove that it has what is."""
    blob_id = chunks.blob_id
    if chunks.size_bytes <= BLOB_AT_ONCE_LIMIT_BYTES:
        await _take_small(stream, chunks, store)
    elif store.holds(blob_id):
        feed = partial(store.feed, blob_id)
        if not await is_proved(stream, own, chunks, len(chunks.digests), feed, newer=newer):
            raise _UnprovedError
    elif store.receiving(blob_id):  # from another peer, whose pace is not this one's
        await _take_all(stream, chunks, store)
    else:
        async with store.receive(blob_id) as reception:
            await reception.begin(chunks)
            here = next(iter(reception.missing_chunks()), len(chunks.digests))
            if here and not await is_proved(
                stream, own, chunks, here, reception.feed, newer=newer
            ):
                raise _UnprovedError
            await _receive_chunks(stream, chunks, here, reception)


async def _receive_chunks(
    stream: ByteStream, chunks: ChunkList, first_chunk: int, reception: Reception
) -> None:
    """Take every chunk from ``first_chunk`` on, also those that an earlier peer sent."""
    if first_chunk < len(chunks.digests):
        await send_frame(stream, BlobSend(first_chunk=first_chunk), MESSAGE_LIMIT_BYTES)
    for index in range(first_chunk, len(chunks.digests)):
        chunk = await _receive_chunk(stream, chunks, index)
        try:
            await reception.write_chunk(index, chunk)
        except VerificationError as error:
            raise _not_the_blob(stream.remote, error) from None
    await reception.finish()


async def _take_all(stream: ByteStream, chunks: ChunkList, store: BlobStore) -> None:
    """Take every byte, as if nothing were here."""
    if chunks.size_bytes <= BLOB_AT_ONCE_LIMIT_BYTES:
        await _take_small(stream, chunks, store)
        return
    await send_frame(stream, BlobSend(first_chunk=0), MESSAGE_LIMIT_BYTES)

    async def pieces() -> AsyncGenerator[bytes, None]:
        for index in range(len(chunks.digests)):
            chunk = await _receive_chunk(stream, chunks, index)
            await trio.to_thread.run_sync(_check_chunk, stream.remote, chunks, index, chunk)
            yield chunk

    async with aclosing(pieces()) as checked:
        await store.put(checked)


async def _take_small(stream: ByteStream, chunks: ChunkList, store: BlobStore) -> None:
    """Take a blob that follows its list at once."""
    data = b""
    if chunks.digests:
        data = await _receive_chunk(stream, chunks, 0)
        _check_chunk(stream.remote, chunks, 0, data)
    await store.put_bytes(data)


async def _receive_list(
    stream: ByteStream, request: BlobRequest, limit_bytes: int, *, newer: bool
) -> ChunkList:
    blob_id = BlobId(request.blob)
    await send_frame(stream, request, MESSAGE_LIMIT_BYTES)
    with within(ANSWER_TIME_LIMIT_S, stream.remote):
        answer = await receive_frame(stream, BlobAnswer, MESSAGE_LIMIT_BYTES, newer=newer)
        if isinstance(answer, BlobRefused):
            raise NetworkError(
                f"{stream.remote} does not serve blob {blob_id[:16]}…: {_SAID[answer.reason]}",
                code=answer.reason.value,
            )
        listed = await stream.receive_exactly(answer.list_bytes)
    try:
        chunks = decode_chunk_list(listed, blob_id)
    except VerificationError as error:
        raise _not_the_blob(stream.remote, error) from None
    if chunks.size_bytes > limit_bytes:
        raise StoreError(
            f"blob {blob_id[:16]}… has {chunks.size_bytes} bytes, "
            f"and {limit_bytes} may be fetched",
            code="blob_too_large",
        )
    return chunks


async def _receive_chunk(stream: ByteStream, chunks: ChunkList, index: int) -> bytes:
    with within(CHUNK_TIME_LIMIT_S, stream.remote):
        return await stream.receive_exactly(chunks.chunk_size_bytes(index))


_SAID = {
    WhyNot.NOT_HELD: "it does not hold it",
    WhyNot.NO_RIGHT: "it grants this node no right to it",
}


def _check_chunk(peer: PeerId, chunks: ChunkList, index: int, chunk: bytes) -> None:
    try:
        chunks.check_chunk(index, chunk)
    except VerificationError as error:
        raise _not_the_blob(peer, error) from None


def _not_the_blob(peer: PeerId, error: VerificationError) -> RemoteProtocolError:
    return RemoteProtocolError(f"{peer} sent wrong bytes: {error.message}", code=error.code)
