"""The way from a Merkle root down to the first leaf that differs from one's own.

One node at a time is known to differ, the root at first; the digests four levels below it,
which must hash up to it, tell which of them is the first to differ, down to a leaf. All
before that leaf are equal, so that the paths to them, and to it, need not be asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.crypto.errors import VerificationError
from shoal.crypto.merkle import leaf_of, levels_of, root_of, sizes_of

if TYPE_CHECKING:
    from collections.abc import Sequence

LEVELS_AT_ONCE = 4
"""Binary levels per round trip: 16 digests, half a kilobyte."""

_PADDING = bytes(32)
"""In place of leaves that the challenger has not got; no leaf has this digest."""


class Search:
    """The way from a root down to the first leaf that differs from one's own.

    Args:
        root: Theirs.
        count: How many leaves they say are under it.
        own: One's own leaf digests; fewer or more than ``count`` are made to fit.
    """

    def __init__(self, root: bytes, count: int, own: Sequence[bytes]) -> None:
        self.count = count
        fitted = [*own[:count], *[_PADDING] * (count - len(own))]
        self._own = levels_of(fitted)
        self._sizes = sizes_of(count)
        self._known = {(len(self._sizes) - 1, 0): root}
        self.node: tuple[int, int] = (len(self._sizes) - 1, 0)
        """Level and index of the lowest node that is known to differ."""
        self.same = self._own[-1][0] == root

    @property
    def found(self) -> int | None:
        """The first leaf that differs, once that is known."""
        return self.node[1] if self.node[0] == 0 and not self.same else None

    def take(self, digests: Sequence[bytes]) -> None:
        """Take the digests below `node`.

        Raises:
            VerificationError: ``false_digests``: they do not hash up to it.
        """
        level, index = self.node
        below = max(0, level - LEVELS_AT_ONCE)
        first = index << (level - below)
        wanted = min(1 << (level - below), self._sizes[below] - first)
        if len(digests) != wanted or root_of(digests) != self._known[self.node]:
            raise VerificationError(
                f"the {len(digests)} digests below node {index} of level {level} do not hash "
                "up to what was committed to",
                code="false_digests",
            )
        for above, part in enumerate(levels_of(digests)):
            for offset, digest in enumerate(part):
                self._known.setdefault((below + above, (first >> above) + offset), digest)
        # Equal digests would have hashed up to an equal node, so one of them differs.
        own = self._own[below]
        differs = next(i for i, digest in enumerate(digests) if digest != own[first + i])
        self.node = (below, first + differs)

    def check(self, leaf: bytes) -> None:
        """Check that a leaf's bytes are those that were committed to at `found`.

        Raises:
            VerificationError: ``false_leaf``.
        """
        if leaf_of(leaf) != self._known[self.node]:
            raise VerificationError(
                f"leaf {self.node[1]} is not the one that was committed to", code="false_leaf"
            )

    def path_of(self, index: int) -> bytes:
        """The path of any leaf up to `found`, or of any leaf at all where the trees are equal.

        What lies left of the first difference is equal in both trees, and what lies right
        of the way down was given beside it.
        """
        path = []
        end = self.count if self.same else self.node[1]
        for level, size in enumerate(self._sizes[:-1]):
            sibling = index ^ 1
            if sibling < size:
                equal = self.same or (sibling + 1) << level <= end
                path.append(self._own[level][sibling] if equal else self._known[level, sibling])
            index //= 2
        return b"".join(path)

    def state(self) -> tuple[tuple[int, int], tuple[tuple[int, int, bytes], ...]]:
        """What `restore` needs: the node, and all digests that are known."""
        return self.node, tuple((*key, digest) for key, digest in self._known.items())

    def restore(self, node: tuple[int, int], known: Sequence[tuple[int, int, bytes]]) -> None:
        """Go on where a search with the same arguments was."""
        self.node = node
        self._known = {(level, index): digest for level, index, digest in known}
