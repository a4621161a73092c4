"""The inputs of the vectors, drawn so that any language can draw them again.

Philox4x32-10 of SPEC.md; the seed is the crc32 of the tensor's name in UTF-8, the stream
is 0. A tensor takes its words in C order:

* ``unit``: (word >> 8) · 2⁻²³ − 1, in [−1, 1);
* ``wide``: the same, times 2^(w mod 41 − 20) by the words w that follow those of the tensor;
* ``awkward``: ``wide``, where an element whose word is 0 to 7 modulo 32 becomes, in
  this order: 0, −0, 2⁻¹²⁷, −2⁻¹⁴⁹, 2⁻¹²⁶, 1, −1, 2²⁰;
* ``below(n)``: word mod n, an integer.
"""

import zlib

import numpy as np

from shoal.compute.exact import philox

_AWKWARD = np.array(
    [0.0, -0.0, 2.0**-127, -(2.0**-149), 2.0**-126, 1.0, -1.0, 2.0**20], np.float32
)


def words(name, count):
    """The first ``count`` words under a name."""
    return philox.words(zlib.crc32(name.encode()), 0, count)


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
