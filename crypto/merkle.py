"""Merkle trees over digests: one root commits to a list, a short path opens one place.

A leaf is the BLAKE3 of a zero byte and the data, an inner node that of a one byte and
its two children, so that neither passes for the other. A level with an odd number of
nodes hands its last one up as it is (as RFC 6962 does). How many leaves there are is
part of what the signer says and not of the root: whoever checks a path knows the count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blake3 import blake3

from shoal.crypto.content import DIGEST_SIZE_BYTES, Buffer
from shoal.crypto.errors import VerificationError

if TYPE_CHECKING:
    from collections.abc import Sequence

_LEAF, _NODE = b"\x00", b"\x01"


def leaf_of(data: Buffer) -> bytes:
    """The digest of one item."""
    return blake3(_LEAF + data).digest()


def root_of(leaves: Sequence[bytes]) -> bytes:
    """The root over at least one leaf digest, or the node over a part of a level.

    The part has to begin at a multiple of the smallest power of two that holds it.
    """
    assert leaves
    level = list(leaves)
    while len(level) > 1:
        level = _above(level)
    return level[0]


def levels_of(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """The digests of all nodes by level: the leaves first, the root alone in the last."""
    assert leaves
    levels = [list(leaves)]
    while len(levels[-1]) > 1:
        levels.append(_above(levels[-1]))
    return levels


def sizes_of(count: int) -> list[int]:
    """How many nodes each level of a tree over ``count`` leaves has, the leaves first."""
    assert count > 0
    sizes = [count]
    while sizes[-1] > 1:
        sizes.append((sizes[-1] + 1) // 2)
    return sizes


def root_over(items: Sequence[Buffer]) -> bytes:
    """The root over at least one item."""
    return root_of([leaf_of(item) for item in items])


def path_of(leaves: Sequence[bytes], index: int) -> bytes:
    """What, beside the leaf at ``index``, the root is made of: siblings, lowest first."""
    return path_in(levels_of(leaves), index)


def path_in(levels: Sequence[Sequence[bytes]], index: int) -> bytes:
    """As `path_of`, in a tree that `levels_of` made: for whoever wants several paths."""
    assert 0 <= index < len(levels[0])
    path = []
    for level in levels:
        sibling = index ^ 1
        if sibling < len(level):
            path.append(level[sibling])
        index //= 2
    return b"".join(path)


def check_path(root: bytes, leaf: bytes, index: int, count: int, path: bytes) -> None:
    """Check that ``leaf`` is at ``index`` among the ``count`` leaves under ``root``.

    Raises:
        VerificationError: ``bad_path``: it is not, or the path has another length.
    """
    if root_by(leaf, index, count, path) != root:
        raise VerificationError("a Merkle path does not lead to its root", code="bad_path")


def root_by(leaf: bytes, index: int, count: int, path: bytes) -> bytes:
    """The root that a path leads to from ``leaf`` at ``index`` among ``count`` leaves.

    Raises:
        VerificationError: ``bad_path``: there is no such leaf, or its path is longer or
            shorter.
    """
    digest, at = leaf, 0
    if not 0 <= index < count:
        raise VerificationError(f"leaf {index} of {count}", code="bad_path")
    while count > 1:
        sibling = index ^ 1
        if sibling < count:
            other = path[at : at + DIGEST_SIZE_BYTES]
            at += DIGEST_SIZE_BYTES
            digest = _node(other, digest) if index % 2 else _node(digest, other)
        index, count = index // 2, (count + 1) // 2
    if at != len(path):
        raise VerificationError(
            "a Merkle path has another length than its place in the tree", code="bad_path"
        )
    return digest


def _node(left: bytes, right: bytes) -> bytes:
    return blake3(_NODE + left + right).digest()


def _above(level: list[bytes]) -> list[bytes]:
    nodes = [_node(level[at], level[at + 1]) for at in range(0, len(level) - 1, 2)]
    return nodes + level[len(level) - 1 :] if len(level) % 2 else nodes
