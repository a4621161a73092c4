"""What the blob store holds, what is promised room, and what has to go: pure.

The least recently used blob goes first, a pinned one never, and transfers that
have not ended and that nobody is at work on go before any blob. Blobs that are kept
for peers (`node.kept_outputs`) go after all others, those of the lowest rank first.
Nothing here does IO; `node.blob_shelf` carries out what is decided here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from shoal.crypto.content import BlobId
from shoal.node.errors import StoreError


class BlobIndex:
    """Sizes, pins and room, in bytes of blobs.

    Attributes:
        held: Size of each blob, least recently used first.
        unfinished: Size of each transfer that ended early and may be resumed.
        used_bytes: Both together, and the room promised to what is being written.
    """

    def __init__(
        self,
        quota_bytes: int,
        held: Iterable[tuple[BlobId, int]] = (),
        unfinished: Iterable[tuple[BlobId, int]] = (),
    ) -> None:
        self.quota_bytes = quota_bytes
        self.held = OrderedDict(held)
        self.unfinished = OrderedDict(unfinished)
        self.used_bytes = sum(self.held.values()) + sum(self.unfinished.values())
        self._pins: dict[str, set[BlobId]] = {}
        self._kept: dict[BlobId, int] = {}

    def pin(self, blob_id: BlobId, by: str) -> None:
        """Keep a blob, held now or later, until ``by`` lets go."""
        self._pins.setdefault(by, set()).add(blob_id)

    def unpin(self, by: str) -> None:
        """Let go of everything that ``by`` pinned."""
        self._pins.pop(by, None)

    def keep_longer(self, blob_id: BlobId, rank: int) -> None:
        """Let a blob, held now or later, go after all that is not kept; a high rank first."""
        self._kept[blob_id] = rank

    def let_go(self, blob_id: BlobId) -> None:
        """Let a blob go like any other, in its turn."""
        self._kept.pop(blob_id, None)

    def touch(self, blob_id: BlobId) -> None:
        """Note that a blob was used; one that is not held is no matter."""
        if blob_id in self.held:
            self.held.move_to_end(blob_id)

    def victims(self, size_bytes: int) -> list[BlobId]:
        """What has to go before ``size_bytes`` more find room; nothing changes yet.

        Raises:
            StoreError: ``quota_exceeded``: not even all that may go is enough.
        """
        excess_bytes = self.used_bytes + size_bytes - self.quota_bytes
        victims: list[BlobId] = []
        if excess_bytes <= 0:
            return victims
        pinned = set().union(*self._pins.values())
        unpinned = [each for each in self.held.items() if each[0] not in pinned]
        kept = [each for each in unpinned if each[0] in self._kept]
        candidates = [
            *self.unfinished.items(),
            *(each for each in unpinned if each[0] not in self._kept),
            *sorted(kept, key=lambda each: -self._kept[each[0]]),
        ]
        for blob_id, freed_bytes in candidates:
            victims.append(blob_id)
            excess_bytes -= freed_bytes
            if excess_bytes <= 0:
                return victims
        raise StoreError(
            f"there is no room for {size_bytes} bytes: the blob store may take "
            f"{self.quota_bytes} bytes, and jobs in progress need what is in it",
            code="quota_exceeded",
            hint="raise blob_quota in config.toml, or wait until jobs have ended",
        )

    def forget(self, blob_id: BlobId) -> None:
        """Take out a blob or an unfinished transfer that is gone from disk."""
        place = self.unfinished if blob_id in self.unfinished else self.held
        self.used_bytes -= place.pop(blob_id)
