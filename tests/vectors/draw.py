"""The inputs of the vectors, drawn so that any language can draw them again.

Philox4x32-10 (Salmon and others, 2011; SPEC.md has its test vector) under the key
(crc32 of the name in UTF-8, 0). Block i of the counter (i, 0, 0, 0) gives words 4i to
4i+3. A tensor takes its words in C order:

* ``unit``: (word >> 8) · 2⁻²³ − 1, in [−1, 1);
* ``wide``: the same, times 2^(w mod 41 − 20) by the words w that follow those of the tensor;
* ``awkward``: ``wide``, where an element whose word is 0 to 7 modulo 32 becomes, in
  this order: 0, −0, 2⁻¹²⁷, −2⁻¹⁴⁹, 2⁻¹²⁶, 1, −1, 2²⁰;
* ``below(n)``: word mod n, an integer.
"""

import zlib

import numpy as np

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_AWKWARD = np.array(
    [0.0, -0.0, 2.0**-127, -(2.0**-149), 2.0**-126, 1.0, -1.0, 2.0**20], np.float32
)


def philox(counter, key):
    """Ten rounds over blocks of four words: (n, 4) uint32 for (n, 4) counters."""
    words = [counter[:, i].astype(np.uint64) for i in range(4)]
    for turn in range(10):
        keys = [np.uint64((key[i] + turn * _KEY_STEPS[i]) & 0xFFFFFFFF) for i in range(2)]
        first, second = _MULTIPLIERS[0] * words[0], _MULTIPLIERS[1] * words[2]
        words = [
            (second >> _HALF) ^ words[1] ^ keys[0],
            second & _LOW,
            (first >> _HALF) ^ words[3] ^ keys[1],
            first & _LOW,
        ]
    return np.stack(words, 1).astype(np.uint32)


def words(name, count):
    """The first ``count`` words under a name."""
    counter = np.zeros((-(-count // 4), 4), np.uint32)
    counter[:, 0] = np.arange(len(counter))
    return philox(counter, (zlib.crc32(name.encode()), 0)).ravel()[:count]


def unit(name, *shape):
    """float32 in [-1, 1)."""
    drawn = words(name, int(np.prod(shape)))
    return ((drawn >> 8) * np.float32(2**-23) - np.float32(1)).astype(np.float32).reshape(shape)


def wide(name, *shape):
    """float32 of both signs, over forty powers of two."""
    count = int(np.prod(shape))
    exponents = (words(name, 2 * count)[count:] % 41).astype(np.int64) - 20
    return np.ldexp(unit(name, *shape), exponents.reshape(shape)).astype(np.float32)


def awkward(name, *shape):
    """`wide`, a quarter of it zeros of both signs, subnormals, and round numbers."""
    kinds = (words(name, int(np.prod(shape))) % 32).reshape(shape)
    return np.where(kinds < 8, _AWKWARD[np.minimum(kinds, 7)], wide(name, *shape))


def below(name, limit, *shape, dtype=np.int64):
    """Integers in [0, limit)."""
    return (words(name, int(np.prod(shape))) % limit).astype(dtype).reshape(shape)
