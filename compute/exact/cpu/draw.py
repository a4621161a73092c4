"""Philox4x32-10 on the CPU: numbers of full width for capability challenges.

Beside `compute.exact.philox`, which is the definition, this one gives any part of a
stream at once as the float32 values that a challenge multiplies: the high 21 bits of
each word as a multiple of 2^-20 in [-1, 1). So many bits leave no cheaper product than
`x20`'s own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from numba.types import float32, int64, uint64

from shoal.compute.exact.cpu.compiled import inline, kernel, writes
from shoal.compute.exact.statuses import FINE

if TYPE_CHECKING:
    from shoal.compute.exact.cpu.threads import Threads
    from shoal.compute.exact.kernels import Floats

_M0: Final = np.uint64(0xD2511F53)
_M1: Final = np.uint64(0xCD9E8D57)
_W0: Final = np.uint64(0x9E3779B9)
_W1: Final = np.uint64(0xBB67AE85)
_LOW: Final = np.uint64(0xFFFF_FFFF)
_HALF: Final = np.uint64(32)
_DROPPED: Final = np.uint64(11)
_NANOSECONDS_PER_BLOCK: Final = 12


@inline
def _value(word):
    return np.float32((np.int64(word >> _DROPPED) - 1048576) * (1.0 / 1048576.0))


@kernel(int64(uint64, uint64, int64, int64, int64, writes(float32, 1)))
def fill(key, stream, first, start, stop, out):
    """Blocks start..stop of out (four numbers each): blocks first + start.. of the stream."""
    for block in range(start, stop):
        counter = np.uint64(first + block)
        c0, c1 = counter & _LOW, counter >> _HALF
        c2, c3 = stream & _LOW, stream >> _HALF
        k0, k1 = key & _LOW, key >> _HALF
        for _ in range(10):
            p0, p1 = _M0 * c0, _M1 * c2
            c0 = (p1 >> _HALF) ^ c1 ^ k0
            c2 = (p0 >> _HALF) ^ c3 ^ k1
            c1, c3 = p1 & _LOW, p0 & _LOW
            k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
        at = 4 * block
        out[at] = _value(c0)
        out[at + 1] = _value(c1)
        out[at + 2] = _value(c2)
        out[at + 3] = _value(c3)
    return FINE


def numbers(key: int, stream: int, first: int, out: Floats, threads: Threads) -> None:
    """Fill ``out`` with the numbers of blocks ``first``.. of a stream.

    Args:
        key: 64 bits.
        stream: 64 bits.
        first: Which block of four words comes first.
        out: C-contiguous; its size is a multiple of 4.
        threads: Who fills it.
    """
    flat = out.reshape(-1)
    assert flat.size % 4 == 0
    threads.split(
        lambda start, stop: fill(np.uint64(key), np.uint64(stream), first, start, stop, flat),
        flat.size // 4,
        cost=_NANOSECONDS_PER_BLOCK,
    )
