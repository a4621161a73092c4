"""XSalsa20: the stream cipher of libp2p's private networks.

Salsa20 takes a nonce of 8 bytes, too few to draw at random; XSalsa20 takes 24: its
first 16 and the key go through HSalsa20, which gives the key for Salsa20 under the
last 8 (D. J. Bernstein, "Extending the Salsa20 nonce", 2011; NaCl's
``crypto_stream``). Salsa20 itself is pycryptodome's, in C.

A stream cipher hides and does not authenticate: whoever can change the bytes on
their way can flip bits in what comes out. What it is used for here carries Noise
inside, and that notices.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from Crypto.Cipher import Salsa20

KEY_SIZE_BYTES = 32
NONCE_SIZE_BYTES = 24

_SIGMA = struct.unpack("<4I", b"expand 32-byte k")
_DOUBLE_ROUNDS = 10
_QUARTER_ROUNDS = (
    *((0, 4, 8, 12), (5, 9, 13, 1), (10, 14, 2, 6), (15, 3, 7, 11)),  # columns
    *((0, 1, 2, 3), (5, 6, 7, 4), (10, 11, 8, 9), (15, 12, 13, 14)),  # rows
)
_OUTPUT_WORDS = (0, 5, 10, 15, 6, 7, 8, 9)
"""The diagonal and the input words: what the plain Salsa20 block would give away."""


def xsalsa20(key: bytes, nonce: bytes) -> Callable[[bytes], bytes]:
    """Begin a key stream; each call adds it, where the last one ended, to the bytes given.

    Args:
        key: `KEY_SIZE_BYTES` secret bytes.
        nonce: `NONCE_SIZE_BYTES` bytes, never used with this key before.
    """
    if len(nonce) != NONCE_SIZE_BYTES:
        message = f"a nonce has {NONCE_SIZE_BYTES} bytes, and not {len(nonce)}"
        raise ValueError(message)
    return Salsa20.new(key=hsalsa20(key, nonce[:16]), nonce=nonce[16:]).encrypt


def hsalsa20(key: bytes, block: bytes) -> bytes:
    """Derive 32 bytes from a key of 32 and a block of 16: NaCl's ``crypto_core_hsalsa20``."""
    k, n = struct.unpack("<8I", key), struct.unpack("<4I", block)
    x = [
        *(_SIGMA[0], *k[:4]),
        *(_SIGMA[1], *n),
        *(_SIGMA[2], *k[4:]),
        _SIGMA[3],
    ]
    for _ in range(_DOUBLE_ROUNDS):
        for a, b, c, d in _QUARTER_ROUNDS:
            x[b] ^= _rotated(x[a] + x[d], 7)
            x[c] ^= _rotated(x[b] + x[a], 9)
            x[d] ^= _rotated(x[c] + x[b], 13)
            x[a] ^= _rotated(x[d] + x[c], 18)
    return struct.pack("<8I", *(x[word] for word in _OUTPUT_WORDS))


def _rotated(word: int, bits: int) -> int:
    word &= 0xFFFFFFFF
    return (word << bits | word >> (32 - bits)) & 0xFFFFFFFF
