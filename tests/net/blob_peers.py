"""Peers that serve blobs over streams in memory: honest ones, and what liars are made of."""

from contextlib import asynccontextmanager

import trio
from trio.testing import memory_stream_pair

from shoal.crypto.content import CHUNK_SIZE_BYTES, blob_id_of, chunk_list_of
from shoal.crypto.peer_id import PeerId
from shoal.crypto.possession import PossessionHasher
from shoal.node.errors import NetworkError, StreamClosedError
from shoal.node.frames import receive_frame, send_frame
from shoal.protocol.blob_messages import (
    BlobFound,
    BlobNext,
    BlobProof,
    BlobProve,
    BlobRequest,
    BlobSend,
)
from shoal.protocol.limits import BLOB_AT_ONCE_LIMIT_BYTES

MIB = CHUNK_SIZE_BYTES
GIVER, TAKER = PeerId("giver"), PeerId("taker")


class Pipe:
    """A `ByteStream` over one of trio's memory streams."""

    def __init__(self, remote, stream):
        self.remote = remote
        self.received_bytes = 0
        self.sent = bytearray()
        self._stream = stream

    async def receive_some(self, limit):
        try:
            some = await self._stream.receive_some(limit)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise NetworkError("the stream broke") from error
        self.received_bytes += len(some)
        return bytes(some)

    async def receive_exactly(self, count):
        received = bytearray()
        while len(received) < count:
            some = await self.receive_some(count - len(received))
            if not some:
                raise NetworkError("cut") if received else StreamClosedError("closed")
            received += some
        return bytes(received)

    async def send_all(self, data):
        try:
            self.sent += data
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise NetworkError("the stream broke") from error

    async def aclose(self):
        self.ended = "closed"
        await self._stream.send_eof()

    async def reset(self):
        self.ended = "reset"
        await trio.aclose_forcefully(self._stream)

    async def __aenter__(self):
        return self

    async def __aexit__(self, kind, error, traceback):
        await (self.aclose() if error is None else self.reset())


class Giver:
    """Serves each stream that is opened, by `serve_blob` or by a lie given as ``serve``."""

    def __init__(self, nursery, serve, pair=memory_stream_pair):
        self.opened = []
        self._nursery = nursery
        self._serve = serve
        self._pair = pair

    async def open_stream(self):
        await trio.lowlevel.checkpoint()
        ours, theirs = self._pair()
        self.opened.append(Pipe(GIVER, ours))
        self._nursery.start_soon(self._guarded, Pipe(TAKER, theirs))
        return self.opened[-1]

    async def _guarded(self, stream):
        try:
            async with stream:
                await self._serve(stream)
        except NetworkError:
            pass


@asynccontextmanager
async def giver(serve, **kwargs):
    async with trio.open_nursery() as nursery:
        yield Giver(nursery, serve, **kwargs)
        nursery.cancel_scope.cancel()


async def begin(stream, chunks, data=None, asked=None):
    """Say what comes before the chunks, proving what is asked by ``data``; gives the first.

    ``asked`` is told what proofs and chunks were asked for.
    """
    await receive_frame(stream, BlobRequest)
    listed = chunks.encode()
    await send_frame(stream, BlobFound(list_bytes=len(listed)))
    await stream.send_all(listed)
    said = BlobSend(first_chunk=0)
    if chunks.size_bytes > BLOB_AT_ONCE_LIMIT_BYTES:
        said = await receive_frame(stream, BlobNext)
    if isinstance(said, BlobProve):
        if asked is not None:
            asked.append(("prove", said.chunks))
        await send_frame(stream, BlobProof(proof=proof_of(data, said)))
        said = await receive_frame(stream, BlobSend)
    if asked is not None:
        asked.append(("send", said.first_chunk))
    return said.first_chunk


def proof_of(data, demand, prover=GIVER, verifier=TAKER):
    size_bytes = min(len(data), demand.chunks * MIB)
    hasher = PossessionHasher(
        demand.challenge, blob_id_of(data), size_bytes, prover=prover, verifier=verifier
    )
    hasher.update(data[:size_bytes])
    return hasher.digest()


def sends(data, *, chunks=None, until=None, wrong_chunk=None, asked=None):
    """Serve ``data``, by another list, up to a byte, or with a wrong chunk."""

    async def serve(stream):
        first_chunk = await begin(stream, chunks or chunk_list_of(data), data, asked)
        body = bytearray(data)
        if wrong_chunk is not None:
            body[wrong_chunk * MIB + 5] ^= 1
        await stream.send_all(bytes(body[first_chunk * MIB : until]))

    return serve
