"""Which blobs each peer is known to have: it sent them, proved them, or was given them.

A provider uses a blob that it holds only for a peer that is known to have it.
Knowing a blob's id is nothing: receipts name ids, and whoever could run an
identity over another's tensor would read it. Pure; `node.house` asks here before
it uses a blob, and notes here what a peer sent, proved, or was computed for it.

In memory and bounded: what is forgotten, here or by a restart, is asked for once
more. A peer that has many blobs pushes out its own first; where all peers together
have too many, whoever was longest silent loses its least recently used one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from shoal.crypto.content import BlobId
from shoal.crypto.peer_id import PeerId

PEER_BLOBS_LIMIT = 32_768
"""Blobs of one peer: a program of the most tensors (20,000) and its inputs."""

BLOBS_LIMIT = 65_536
"""Blobs of all peers: some 10 MB, and 50 where each is another peer's."""


class KnownBlobs:
    """A table of (peer, blob), least recently used first.

    Args:
        peer_limit: Entries of one peer at most.
        limit: Entries in all at most.
    """

    def __init__(self, *, peer_limit: int = PEER_BLOBS_LIMIT, limit: int = BLOBS_LIMIT) -> None:
        self._peer_limit = min(peer_limit, limit)
        self._limit = limit
        self._of: OrderedDict[PeerId, OrderedDict[bytes, None]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        """How many entries there are."""
        return self._count

    def has(self, peer: PeerId, blob_id: BlobId) -> bool:
        """Whether ``peer`` is known to have the blob; an entry that is asked for is used."""
        blobs, key = self._of.get(peer), bytes.fromhex(blob_id)
        if blobs is None or key not in blobs:
            return False
        blobs.move_to_end(key)
        self._of.move_to_end(peer)
        return True

    def note(self, peer: PeerId, blob_ids: Iterable[BlobId]) -> None:
        """Note that ``peer`` has these blobs."""
        for blob_id in blob_ids:
            blobs, key = self._of.setdefault(peer, OrderedDict()), bytes.fromhex(blob_id)
            self._count += key not in blobs
            blobs[key] = None
            blobs.move_to_end(key)
            self._of.move_to_end(peer)
            if len(blobs) > self._peer_limit:
                self._forget_one(peer)
            elif self._count > self._limit:
                self._forget_one(next(iter(self._of)))

    def _forget_one(self, peer: PeerId) -> None:
        blobs = self._of[peer]
        blobs.popitem(last=False)
        self._count -= 1
        if not blobs:
            del self._of[peer]
