"""Philox4x32-10 on a card: the numbers of capability challenges.

Part of *execute*. The same float32 values as `compute.exact.cpu.draw`, which says what they
are: the high 21 bits of each word as a multiple of 2^-20 in [-1, 1). What tells one drawing
from another lies in memory and not in arguments, of which Triton compiles for some values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import triton
import triton.language as tl

from shoal.compute.exact.gpu.variants import Variant

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from shoal.compute.exact.gpu.card import Card

_M0 = tl.constexpr(0xD2511F53)
_M1 = tl.constexpr(0xCD9E8D57)
_W0 = tl.constexpr(0x9E3779B9)
_W1 = tl.constexpr(0xBB67AE85)
_LOW = tl.constexpr(0xFFFF_FFFF)
_BLOCKS: Final = 512


@triton.jit
def _value(word):
    """The high 21 bits of a word in [-1, 1), float32: exact."""
    return ((word >> 11).to(tl.int64) - 1048576).to(tl.float32) * (1.0 / 1048576.0)


@triton.jit
def draw_kernel(out, seed, blocks: tl.int64, BLOCK: tl.constexpr):
    """Blocks of four numbers into ``out``; ``seed`` is key, stream (two words each), first."""
    block = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    counter = (tl.load(seed + 4) + block).to(tl.uint64)
    k0, k1 = tl.load(seed).to(tl.uint64), tl.load(seed + 1).to(tl.uint64)
    c0, c1 = counter & _LOW, counter >> 32
    c2 = tl.zeros_like(c0) + tl.load(seed + 2).to(tl.uint64)
    c3 = tl.zeros_like(c0) + tl.load(seed + 3).to(tl.uint64)
    for _ in tl.static_range(10):
        p0, p1 = c0 * _M0, c2 * _M1  # 32 x 32 bits fit 64
        c0, c2 = (p1 >> 32) ^ c1 ^ k0, (p0 >> 32) ^ c3 ^ k1
        c1, c3 = p1 & _LOW, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    place, inside = out + 4 * block, block < blocks
    tl.store(place, _value(c0), inside)
    tl.store(place + 1, _value(c1), inside)
    tl.store(place + 2, _value(c2), inside)
    tl.store(place + 3, _value(c3), inside)


_DRAW: Final = Variant(
    draw_kernel,
    {"out": "*fp32", "seed": "*i64", "blocks": "i64"},
    {"BLOCK": _BLOCKS},
)


def variants() -> Iterator[Variant]:
    """All that this module launches."""
    yield _DRAW


def numbers(card: Card, key: int, stream: int, first: int, out: torch.Tensor) -> None:
    """Fill ``out`` with the numbers of blocks ``first``.. of a stream.

    Args:
        card: Where ``out`` lies.
        key: 64 bits.
        stream: 64 bits.
        first: Which block of four words comes first.
        out: float32, C-contiguous; its size is a multiple of 4.
    """
    assert out.is_contiguous()
    assert out.numel() % 4 == 0
    words = [key % 2**32, key >> 32, stream % 2**32, stream >> 32, first]
    blocks = out.numel() // 4
    seed = card.take(np.array(words, np.int64))
    card.launch(_DRAW, (-(-blocks // _BLOCKS),), out, seed, blocks)
