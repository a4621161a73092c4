"""Blobs between peers: ``/shoal/blob/1`` over a libp2p stream, both sides of it.

The step "fetch inputs" of the data path, and "deliver" the other way. A blob is
served to those who hold a right to it, and to nobody else. The receiver checks
the chunk list against the blob's id and each chunk against the list; a wrong
byte ends the transfer and names the peer, and what was right before it stays,
so that a retry, with the same peer or another, goes on from there.

Which peer to ask, and how often, is for the caller to decide. The words are in
`protocol.blob_messages`, the bytes end in `node.blobs`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog
import trio

from shoal.crypto.content import BlobId, ChunkList, decode_chunk_list
from shoal.crypto.errors import VerificationError
from shoal.crypto.peer_id import PeerId
from shoal.node.errors import NetworkError, StoreError
from shoal.node.frames import receive_frame, send_frame
from shoal.protocol.blob_messages import (
    MESSAGE_LIMIT_BYTES,
    BlobAnswer,
    BlobFound,
    BlobRefused,
    BlobRequest,
    WhyNot,
)
from shoal.protocol.errors import RemoteProtocolError

if TYPE_CHECKING:
    from shoal.node.blob_reception import Reception
    from shoal.node.blobs import BlobStore
    from shoal.node.network import ByteStream

log = structlog.get_logger()

BLOB_PROTOCOL = "/shoal/blob/1"

ANSWER_TIME_LIMIT_S = 60.0
"""For a request to come after the stream, and for its answer with the chunk list."""

CHUNK_TIME_LIMIT_S = 60.0
"""For one chunk of 1 MiB: a peer that is slower than 17 KB/s is cut."""


class Rights:
    """Who may fetch which blob: granted under a name, withdrawn with it.

    The name is a lease's or an award's id. In memory: after a restart no lease
    of before holds.
    """

    def __init__(self) -> None:
        self._granted: dict[str, set[tuple[PeerId, BlobId]]] = {}
        self._count: Counter[tuple[PeerId, BlobId]] = Counter()

    def grant(self, name: str, peer: PeerId, blob_ids: Iterable[BlobId]) -> None:
        """Let ``peer`` fetch these blobs, beside what ``name`` granted before."""
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
        return (peer, blob_id) in self._count


async def serve_blob(stream: ByteStream, store: BlobStore, rights: Rights) -> None:
    """Answer the one request of a blob stream: the handler of `BLOB_PROTOCOL`.

    Raises:
        NetworkError: The peer went away or is too slow.
    """
    try:
        await _serve(stream, store, rights)
    except (RemoteProtocolError, StoreError) as error:
        log.warning("a blob was not served", peer=stream.remote, error=error.message)
        await stream.reset()


async def fetch_blob(
    open_stream: Callable[[], Awaitable[ByteStream]],
    blob_id: BlobId,
    store: BlobStore,
    *,
    limit_bytes: int,
) -> None:
    """Fetch a blob from one peer; returns when the store holds it.

    Two that fetch one blob at once share one transfer: the second waits, and
    goes on where the first ended if that one failed. Pin the blob first where
    it must not go again at once. Cancelled, it keeps the chunks that came.

    Args:
        open_stream: Opens a `BLOB_PROTOCOL` stream to a peer.
        blob_id: The blob wanted.
        store: Where it goes.
        limit_bytes: A larger blob is refused from its chunk list, before its bytes.

    Raises:
        NetworkError: The peer cannot be reached, is too slow, or refuses:
            ``not_held``, ``no_right``.
        RemoteProtocolError: The peer sent something that is not the blob.
        StoreError: ``blob_too_large``, or the store has no room for it.
    """
    async with store.receive(blob_id) as reception:
        if store.holds(blob_id):
            return
        if reception.chunk_list is not None:
            _check_size(reception.chunk_list, limit_bytes)
        if reception.chunk_list is None or reception.missing_chunks():
            async with await open_stream() as stream:
                await _receive_blob(stream, reception, limit_bytes)
        await reception.finish()


async def _serve(stream: ByteStream, store: BlobStore, rights: Rights) -> None:
    with _within(ANSWER_TIME_LIMIT_S, stream.remote):
        request = await receive_frame(stream, BlobRequest, MESSAGE_LIMIT_BYTES)
    blob_id = BlobId(request.blob)
    with store.kept(blob_id):
        chunks = await _look_up(stream.remote, blob_id, store, rights)
        if isinstance(chunks, WhyNot):
            await send_frame(stream, BlobRefused(reason=chunks), MESSAGE_LIMIT_BYTES)
            return
        listed = chunks.encode()
        await send_frame(stream, BlobFound(list_bytes=len(listed)), MESSAGE_LIMIT_BYTES)
        with _within(ANSWER_TIME_LIMIT_S, stream.remote):
            await stream.send_all(listed)
        for index in range(request.first_chunk, len(chunks.digests)):
            chunk = await store.read_chunk(blob_id, index)
            with _within(CHUNK_TIME_LIMIT_S, stream.remote):
                await stream.send_all(chunk)


async def _receive_blob(stream: ByteStream, reception: Reception, limit_bytes: int) -> None:
    first_chunk = next(iter(reception.missing_chunks()), 0)
    request = BlobRequest(blob=reception.blob_id, first_chunk=first_chunk)
    await send_frame(stream, request, MESSAGE_LIMIT_BYTES)
    with _within(ANSWER_TIME_LIMIT_S, stream.remote):
        chunks = await _receive_list(stream, reception.blob_id)
    _check_size(chunks, limit_bytes)
    await reception.begin(chunks)
    missing = set(reception.missing_chunks())
    for index in range(first_chunk, len(chunks.digests)):
        with _within(CHUNK_TIME_LIMIT_S, stream.remote):
            chunk = await stream.receive_exactly(chunks.chunk_size_bytes(index))
        if index not in missing:
            continue
        try:
            await reception.write_chunk(index, chunk)
        except VerificationError as error:
            raise _not_the_blob(stream.remote, error) from None


async def _receive_list(stream: ByteStream, blob_id: BlobId) -> ChunkList:
    answer = await receive_frame(stream, BlobAnswer, MESSAGE_LIMIT_BYTES)
    if isinstance(answer, BlobRefused):
        raise NetworkError(
            f"{stream.remote} does not serve blob {blob_id[:16]}…: {_SAID[answer.reason]}",
            code=answer.reason.value,
        )
    listed = await stream.receive_exactly(answer.list_bytes)
    try:
        return decode_chunk_list(listed, blob_id)
    except VerificationError as error:
        raise _not_the_blob(stream.remote, error) from None


async def _look_up(
    peer: PeerId, blob_id: BlobId, store: BlobStore, rights: Rights
) -> ChunkList | WhyNot:
    """Decide on a request: whoever has no right does not learn what is held."""
    if not rights.allows(peer, blob_id):
        return WhyNot.NO_RIGHT
    try:
        return await store.chunk_list(blob_id)
    except StoreError as error:  # missing, or found damaged just now
        log.info("a blob that a peer may have is not here", peer=peer, error=error.message)
        return WhyNot.NOT_HELD


_SAID = {
    WhyNot.NOT_HELD: "it does not hold it",
    WhyNot.NO_RIGHT: "it grants this node no right to it",
}


def _check_size(chunks: ChunkList, limit_bytes: int) -> None:
    if chunks.size_bytes > limit_bytes:
        raise StoreError(
            f"blob {chunks.blob_id[:16]}… has {chunks.size_bytes} bytes, "
            f"and {limit_bytes} may be fetched",
            code="blob_too_large",
        )


def _not_the_blob(peer: PeerId, error: VerificationError) -> RemoteProtocolError:
    return RemoteProtocolError(f"{peer} sent wrong bytes: {error.message}", code=error.code)


@contextmanager
def _within(limit_s: float, peer: PeerId) -> Iterator[None]:
    """Cut a peer that is too slow."""
    with trio.move_on_after(limit_s) as scope:
        yield
    if scope.cancelled_caught:
        raise NetworkError(
            f"{peer} did not send or take its next bytes within {limit_s:.0f} s",
            code="too_slow",
        )
