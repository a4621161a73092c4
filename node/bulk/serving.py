"""The serving thread of a bulk channel: requests in, chunks out, one after another.

What may be had is asked of the Trio side at each request, so that a right that is
withdrawn ends within `CHANNEL_CHUNKS_LIMIT` chunks. Chunks are read from the file into
the one buffer that the channel has and sent from there. How fast is the taker's matter:
where it does not read, its socket fills, and this thread waits.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from shoal.crypto.content import CHUNK_SIZE_BYTES, BlobId
from shoal.node.allowance import Bucket
from shoal.node.blob_files import OpenBlob
from shoal.node.errors import StreamClosedError
from shoal.protocol.blob_messages import WhyNot
from shoal.protocol.channel_messages import (
    ChannelRequest,
    ChunksGiven,
    ChunksRefused,
    ChunksWanted,
    ListGiven,
)

if TYPE_CHECKING:
    from shoal.node.bulk.fair import FairTurns
    from shoal.node.bulk.wire import Wire

SMALL_BURST = 100.0
SMALL_PER_S = 50.0
"""Requests on a channel that bring less than a chunk. Each takes some 0.2 ms of the loop, for
the right to it, so a peer's six channels cannot have more than 6 % of it by asking for
nothing. What brings more is bounded by the link."""

SERVED_IDLE_S = 60.0
"""Twice as long as the taker keeps a channel, so that it is the one that ends it."""


class LookUp(Protocol):
    """Asks the Trio side for a blob; called in this thread."""

    def __call__(
        self, blob_id: BlobId, requester: str | None, known: OpenBlob | None
    ) -> OpenBlob | WhyNot:
        """The blob, or why the peer does not get it; ``known`` again where it still fits."""
        ...


def serve(wire: Wire, look_up: LookUp, disk: FairTurns) -> None:
    """Answer requests until the peer has no more; closes nothing of the wire.

    Raises:
        RemoteProtocolError: The peer sent something else than a request, or takes nothing.
        NetworkError: The channel broke.
        StoreError: A blob turned out to be damaged after its chunks were announced.
    """
    buffer = memoryview(bytearray(CHUNK_SIZE_BYTES))
    blob: OpenBlob | None = None
    small = Bucket(SMALL_PER_S, SMALL_BURST)
    wire.shake_hands()
    try:
        with suppress(StreamClosedError):
            while True:
                request = wire.receive(ChannelRequest, idle_s=SERVED_IDLE_S)
                before = wire.sent
                found = look_up(BlobId(request.blob), request.requester, blob)
                if found is not blob and blob is not None:
                    blob.close()
                blob = None if isinstance(found, WhyNot) else found
                if isinstance(found, WhyNot):
                    wire.send(ChunksRefused(reason=found))
                elif isinstance(request, ChunksWanted):
                    with wire.in_full_segments():
                        _give_chunks(wire, found, request, disk, buffer)
                else:
                    listed = found.chunks.encode()
                    wire.send(ListGiven(list_bytes=len(listed)))
                    wire.send_bytes(memoryview(listed))
                if wire.sent - before < CHUNK_SIZE_BYTES:
                    small.pay(1.0, now_s := time.monotonic())
                    time.sleep(small.wait_s(now_s))
    finally:
        if blob is not None:
            blob.close()


def _give_chunks(
    wire: Wire, blob: OpenBlob, request: ChunksWanted, disk: FairTurns, buffer: memoryview
) -> None:
    wanted = range(request.first, request.first + request.count)
    count = next((at for at, index in enumerate(wanted) if not blob.has(index)), request.count)
    wire.send(ChunksGiven(first=request.first, count=count))
    for index in wanted[:count]:
        with disk.take(wire.peer):
            chunk = blob.read_into(index, buffer)
        wire.send_bytes(chunk)
