"""Floats: rounded once, to nearest even, as numpy and libm do; subnormals are kept.

A NaN's bits are numpy's, which PTX leaves open. What is not said to be rounded (``add.f64``
and the like, which the assembler may fuse) is not known here: such code has no one result.
"""

import ctypes

import numpy as np
from ptx_integers import DTYPES, Lanewise, lanewise
from ptx_machine import Family, Step
from ptx_program import Instruction

_LIBM = ctypes.CDLL(None)
_FMA = {}
for _kind, _symbol, _type in (
    ("f64", "fma", ctypes.c_double),
    ("f32", "fmaf", ctypes.c_float),
):
    _function = getattr(_LIBM, _symbol)
    _function.restype, _function.argtypes = _type, [_type] * 3
    _FMA[_kind] = np.frompyfunc(_function, 3, 1)

_SIGN = {"f32": np.uint32(1 << 31), "f64": np.uint64(1 << 63)}
_BITS = {"f32": np.uint32, "f64": np.uint64}


def _larger(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The number, if the other is none; +0 is above -0."""
    return np.where(a == b, np.where(np.signbit(a), b, a), np.fmax(a, b))


def _smaller(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The number, if the other is none; -0 is below +0."""
    return np.where(a == b, np.where(np.signbit(a), a, b), np.fmin(a, b))


_TWO: dict[str, Lanewise] = {
    "add.rn": np.add,
    "sub.rn": np.subtract,
    "mul.rn": np.multiply,
    "div.rn": np.divide,
    "max": _larger,
    "min": _smaller,
}
_ORDERED: dict[str, Lanewise] = {
    "eq": np.equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "ne": lambda a, b: (a < b) | (a > b),
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
}
_OPPOSITE = {
    "equ": "ne",
    "ltu": "ge",
    "leu": "gt",
    "gtu": "le",
    "geu": "lt",
    "neu": "eq",
    "nan": "num",
}
"""Comparisons that are true of what is no number: what they are the opposite of."""


def _two(instruction: Instruction, name: str, kind: str) -> Step:
    return lanewise(instruction, _TWO[name], kind, kind)


def _root(instruction: Instruction, kind: str) -> Step:
    return lanewise(instruction, np.sqrt, kind)


def _fused(instruction: Instruction, kind: str) -> Step:
    """A product and a sum, rounded once."""
    dtype = DTYPES[kind]
    return lanewise(
        instruction, lambda a, b, c: _FMA[kind](a, b, c).astype(dtype), kind, kind, kind
    )


def _compare(instruction: Instruction, how: str, kind: str) -> Step:
    if how in _OPPOSITE:
        opposite = _ORDERED[_OPPOSITE[how]]
        return lanewise(instruction, lambda a, b: ~opposite(a, b), kind, kind)
    return lanewise(instruction, _ORDERED[how], kind, kind)


def _sign(instruction: Instruction, name: str, kind: str) -> Step:
    """Of a float's bits alone: NaN has a sign too."""
    sign, bits = _SIGN[kind], _BITS[kind]
    if name == "abs":
        return lanewise(instruction, lambda a: (a.view(bits) & ~sign).view(a.dtype), kind)
    return lanewise(instruction, lambda a: (a.view(bits) ^ sign).view(a.dtype), kind)


def _copied_sign(instruction: Instruction, kind: str) -> Step:
    """The sign of the first on the second."""
    return lanewise(instruction, lambda a, b: np.copysign(b, a), kind, kind)


# -- conversions -----------------------------------------------------------------------


def _to_nearest(instruction: Instruction, target: str, source: str) -> Step:
    return lanewise(instruction, lambda a: a.astype(DTYPES[target]), source)


def _directed(instruction: Instruction, way: str) -> Step:
    """float64 to float32, towards zero or an infinity."""

    def rounded(a: np.ndarray) -> np.ndarray:
        near = a.astype(np.float32)
        back = near.astype(np.float64)
        above, below = np.float32(np.inf), np.float32(-np.inf)
        down = np.where(back > a, np.nextafter(near, below), near)
        up = np.where(back < a, np.nextafter(near, above), near)
        if way == "rz":
            return np.where(np.signbit(a), up, down)
        return down if way == "rm" else up

    return lanewise(instruction, rounded, "f64")


_TO_WHOLE: dict[str, Lanewise] = {
    "rni": np.rint,
    "rzi": np.trunc,
    "rmi": np.floor,
    "rpi": np.ceil,
}


def _to_integer(instruction: Instruction, way: str, target: str, source: str) -> Step:
    """Beyond the integers, the last of them; of NaN 0, or with 64 bits the highest alone."""
    dtype, bits = DTYPES[target], int(target[1:])
    first, last = np.iinfo(dtype).min, np.iinfo(dtype).max
    wide = bits == 64
    highest = first if target[0] == "s" else 1 << (bits - 1)
    nothing = highest if wide or source == "f64" else 0

    def converted(a: np.ndarray) -> np.ndarray:
        whole = _TO_WHOLE[way](a.astype(np.float64))
        inside = (whole >= first) & (whole < float(last) + (0 if wide else 1))
        given = np.where(inside, whole, 0.0).astype(dtype)
        given = np.where(inside, given, np.where(whole < 0, dtype(first), dtype(last)))
        return np.where(np.isnan(a), dtype(nothing), given)

    return lanewise(instruction, converted, source)


def _to_whole(instruction: Instruction, way: str, kind: str) -> Step:
    return lanewise(instruction, _TO_WHOLE[way], kind)


FAMILY: Family = (
    (r"((?:add|sub|mul|div)\.rn|max|min)\.(f32|f64)", _two),
    (r"sqrt\.rn\.(f32|f64)", _root),
    (r"fma\.rn\.(f32|f64)", _fused),
    (r"setp\.((?:eq|ne|lt|le|gt|ge)u?|num|nan)\.(f32|f64)", _compare),
    (r"(abs|neg)\.(f32|f64)", _sign),
    (r"copysign\.(f32|f64)", _copied_sign),
    (r"cvt\.(f64)\.(f32)", _to_nearest),
    (r"cvt\.rn\.(f32|f64)\.(f64|[su](?:32|64))", _to_nearest),
    (r"cvt\.(r[zmp])\.f32\.f64", _directed),
    (r"cvt\.(r[nzmp]i)\.([su](?:32|64))\.(f32|f64)", _to_integer),
    (r"cvt\.(r[nzmp]i)\.(f32|f64)\.\2", _to_whole),
)
