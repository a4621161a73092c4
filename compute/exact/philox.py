"""Philox4x32-10, the counter-based generator of the exact class: integers only.

Part of *execute*, for programs that draw numbers (training): word i of stream s under
seed k is the same on every machine, in any order. ``SPEC.md`` says which word goes
where. Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROUNDS: Final = 10
_MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)
_MASK: Final = np.uint64(0xFFFF_FFFF)
_HALF: Final = np.uint64(32)


def philox4x32(counters: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Ten rounds over every counter.

    Args:
        counters: (blocks, 4), word 0 first.
        key: Two 32-bit words.

    Returns:
        (blocks, 4) uint32.
    """
    c0, c1, c2, c3 = counters.astype(np.uint64).T
    k0, k1 = key
    m0, m1 = (np.uint64(m) for m in _MULTIPLIERS)
    for _ in range(ROUNDS):
        p0, p1 = m0 * c0, m1 * c2  # 32 x 32 bits fit 64
        c0, c1, c2, c3 = (
            (p1 >> _HALF) ^ c1 ^ np.uint64(k0),
            p1 & _MASK,
            (p0 >> _HALF) ^ c3 ^ np.uint64(k1),
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) % 2**32, (k1 + _WEYL[1]) % 2**32
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def words(seed: int, stream: int, count: int) -> NDArray[np.uint32]:
    """The first words of a stream.

    Args:
        seed: 64 bits, from the unit; its low word is key word 0.
        stream: 64 bits: which drawing of the unit this is.
        count: How many words.

    Returns:
        (count,) uint32: block i, with counter (i low, i high, stream low, stream high),
        gives words 4i to 4i + 3.
    """
    block = np.arange(-(-count // 4), dtype=np.uint64)
    counters = np.empty((block.size, 4), np.uint32)
    counters[:, 0] = block & _MASK
    counters[:, 1] = block >> _HALF
    counters[:, 2] = stream % 2**32
    counters[:, 3] = stream >> 32
    return philox4x32(counters, (seed % 2**32, seed >> 32)).reshape(-1)[:count]


def uniform(seed: int, stream: int, count: int) -> NDArray[np.float32]:
    """Multiples of 2^-24 in [0, 1), one from the high 24 bits of each word: (count,)."""
    return (words(seed, stream, count) >> np.uint32(8)).astype(np.float32) * np.float32(
        2.0**-24
    )
