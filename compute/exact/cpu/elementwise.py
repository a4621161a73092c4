"""One function of every element: the loops, cut into blocks that stay in the cache.

Part of *execute*. A loop checks what it makes as it makes it: no NaN, no stray infinity.
Functions of SPEC are tried as `approximations` first, and computed by their specified
sequence in blocks that those leave in doubt, which also finds a block's error. Operands of
unequal shape are brought to rows by numpy, which broadcasts their offsets alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, get_args

import numpy as np
from numba.types import boolean, float32, int64

from shoal.compute.exact import spec
from shoal.compute.exact.cpu import approximations
from shoal.compute.exact.cpu import functions as f
from shoal.compute.exact.cpu.compiled import inline, kernel, reads, writes
from shoal.compute.exact.cpu.floats import INFINITY_BITS, flushed, magnitude, status_of
from shoal.compute.exact.kernels import BinaryName, UnaryName
from shoal.compute.exact.statuses import FINE, INFINITE, MASKED, OUT_OF_RANGE, check

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from shoal.compute.exact.cpu.threads import Threads
    from shoal.compute.exact.kernels import Floats

_BLOCK: Final = 2048
_SMALLEST_NORMAL: Final = np.float32(spec.SMALLEST_NORMAL)
_SMALLEST_NORMAL_BITS: Final = int(_SMALLEST_NORMAL.view(np.int32))
_ANGLE_LIMIT_BITS: Final = int(np.float32(spec.ANGLE_LIMIT).view(np.int32))
_GELU_NEAR_BITS: Final = int(np.float32(approximations.GELU_NEAR).view(np.int32))

_UNARY: Final = {name: code for code, name in enumerate(get_args(UnaryName))}
_ABS, _CEIL, _COS, _ERF, _EXP, _FLOOR, _GELU, _GELU_TANH, _LOG, _NEG = (
    _UNARY[name]
    for name in (
        "abs", "ceil", "cos", "erf", "exp", "floor", "gelu", "gelu_tanh", "log", "neg",
    )
)  # fmt: skip
_RECIPROCAL, _RELU, _ROUND, _SIGMOID, _SIGN, _SIN, _SOFTPLUS, _SQRT, _TANH = (
    _UNARY[name]
    for name in (
        "reciprocal", "relu", "round", "sigmoid", "sign", "sin", "softplus", "sqrt", "tanh",
    )
)  # fmt: skip
_BINARY: Final = {name: code for code, name in enumerate(get_args(BinaryName))}
_ADD, _DIV, _FMOD, _MAX, _MIN, _MUL, _POW = (
    _BINARY[name] for name in ("add", "div", "fmod", "max", "min", "mul", "pow")
)

_FINITE_OF_FINITE: Final = (_ABS, _CEIL, _FLOOR, _NEG, _RELU, _ROUND, _SIGN)

_COST: Final = {"add": 1, "sub": 1, "mul": 1, "max": 1, "min": 1, "relu": 1, "abs": 1, "neg": 1}
"""Of an element, in nanoseconds, where it is not the 4 of a polynomial."""


@inline
def _bits(v):
    """A float32's bits."""
    return np.float32(v).view(np.int32)


@inline
def _peak(x):
    """The bits of the largest magnitude."""
    peak = np.int32(0)
    for i in range(x.size):
        peak = max(peak, magnitude(_bits(x[i])))
    return peak


@inline
def _mapped(function, x, out):
    """A function from float32 to float32; gives the peak of x."""
    peak = np.int32(0)
    for i in range(x.size):
        out[i] = function(x[i])
        peak = max(peak, magnitude(_bits(x[i])))
    return peak


@inline
def _absolute(x):
    return abs(x)


@inline
def _negative(x):
    return -x


@inline
def _rectified(x):
    return x if x > 0.0 else np.float32(0.0)


@inline
def _sign(x):
    return np.float32(x > 0.0) - np.float32(x < 0.0)


@inline
def _ceiling(x):
    return np.ceil(x)


@inline
def _floor(x):
    return np.floor(x)


@inline
def _rounded(x):
    return np.rint(x)


@inline
def _square_root(x):
    return np.sqrt(x)


@inline
def _reciprocal(x):
    return 1.0 / x


@inline
def _specified(function, x, out):
    """A function of SPEC, by its own sequence; gives the peak of x."""
    for i in range(x.size):
        out[i] = flushed(function(np.float64(x[i])))
    return _peak(x)


@inline
def _approximated(function, x, out):
    """Try the approximation of a function; say whether every float32 is the specified one."""
    doubts = np.int64(0)
    for i in range(x.size):
        v, doubt = function(np.float64(x[i]))
        out[i] = flushed(v)
        doubts |= doubt
    return doubts >= 0


@inline
def _try_approximation(name, x, out):  # noqa: C901  # a table of loops
    """Fill out if it can be done without the specified sequence; say whether it was."""
    if name == _COS:
        return _approximated(approximations.cos, x, out)
    if name == _ERF:
        return _approximated(approximations.erf, x, out)
    if name == _EXP:
        return _approximated(approximations.exp, x, out)
    if name == _GELU:
        if _peak(x) <= _GELU_NEAR_BITS and _approximated(approximations.gelu_near, x, out):
            return True
        return _approximated(approximations.gelu, x, out)
    if name == _GELU_TANH:
        return _approximated(approximations.gelu_tanh, x, out)
    if name == _LOG:
        return _approximated(approximations.log, x, out)
    if name == _SIGMOID:
        return _approximated(approximations.sigmoid, x, out)
    if name == _SIN:
        return _approximated(approximations.sin, x, out)
    if name == _SOFTPLUS:
        return _approximated(approximations.softplus, x, out)
    if name == _TANH:
        return _approximated(approximations.tanh, x, out)
    return False


@kernel(int64(int64, boolean, reads(float32, 1), int64, int64, writes(float32, 1)))
def _unary(name, as_specified, values, start, stop, results):  # noqa: C901  # a table of loops
    """The function of values start..stop; as_specified: without trying an approximation."""
    worst = FINE
    for left in range(start, stop, _BLOCK):
        x = values[left : min(left + _BLOCK, stop)]
        out = results[left : min(left + _BLOCK, stop)]
        if not as_specified and _try_approximation(name, x, out):
            continue
        peak = np.int32(0)
        if name == _ABS:
            peak = _mapped(_absolute, x, out)
        elif name == _CEIL:
            peak = _mapped(_ceiling, x, out)
        elif name == _COS:
            peak = _specified(f.cos64, x, out)
        elif name == _ERF:
            peak = _specified(f.erf64, x, out)
        elif name == _EXP:
            peak = _specified(f.exp64, x, out)
        elif name == _FLOOR:
            peak = _mapped(_floor, x, out)
        elif name == _GELU:
            peak = _specified(f.gelu64, x, out)
        elif name == _GELU_TANH:
            peak = _specified(f.gelu_tanh64, x, out)
        elif name == _LOG:
            peak = _specified(f.log64, x, out)
        elif name == _NEG:
            peak = _mapped(_negative, x, out)
        elif name == _RECIPROCAL:
            peak = _specified(_reciprocal, x, out)
        elif name == _RELU:
            peak = _mapped(_rectified, x, out)
        elif name == _ROUND:
            peak = _mapped(_rounded, x, out)
        elif name == _SIGMOID:
            peak = _specified(f.sigmoid64, x, out)
        elif name == _SIGN:
            peak = _mapped(_sign, x, out)
        elif name == _SIN:
            peak = _specified(f.sin64, x, out)
        elif name == _SOFTPLUS:
            peak = _specified(f.softplus64, x, out)
        elif name == _SQRT:
            peak = _mapped(_square_root, x, out)
        elif name == _TANH:
            peak = _specified(f.tanh64, x, out)
        if peak >= INFINITY_BITS:
            worst = MASKED
        if name in (_SIN, _COS) and peak > _ANGLE_LIMIT_BITS:
            worst = max(worst, OUT_OF_RANGE)
        if name not in _FINITE_OF_FINITE:
            worst = max(worst, status_of(_peak(out)))
    return worst


@kernel(int64(reads(float32, 1), int64, int64, writes(float32, 1)))
def _admit(values, start, stop, results):
    worst = FINE
    for left in range(start, stop, _BLOCK):
        x = values[left : min(left + _BLOCK, stop)]
        out = results[left : min(left + _BLOCK, stop)]
        largest = np.float32(-np.inf)
        for i in range(x.size):
            out[i] = flushed(np.float64(x[i]))
            largest = max(largest, x[i])
        status = status_of(_peak(x))
        if status != INFINITE or largest == np.inf:
            worst = max(worst, status)
    return worst


def admit(x: Floats, threads: Threads) -> Floats:
    """See `Kernels.admit`."""
    out = np.empty_like(x)
    values, results = x.reshape(-1), out.reshape(-1)
    check(
        "input",
        threads.split(lambda start, stop: _admit(values, start, stop, results), x.size, cost=1),
    )
    return out


def unary(name: UnaryName, x: Floats, threads: Threads) -> Floats:
    """See `Kernels.unary`."""
    out = np.empty_like(x)
    code, values, results = _UNARY[name], x.reshape(-1), out.reshape(-1)
    check(
        name,
        threads.split(
            lambda start, stop: _unary(code, False, values, start, stop, results),
            x.size,
            cost=_COST.get(name, 4),
        ),
    )
    return out


@inline
def _fill_block(values, offset, step, block):
    """A block of an operand's row: its elements, or one of them repeated."""
    if step == 1:
        return values[offset : offset + block.size]
    block[:] = values[offset]
    return block


@inline
def _flushed_32(v):
    """As `flushed`, of a float32 result: of a sum, which is exact where it is subnormal."""
    return np.copysign(np.float32(0.0), v) if abs(v) < _SMALLEST_NORMAL else v


@inline
def _masks_explain(x, y, out):
    """Whether every infinity in out is -inf from a mask in x or y."""
    explained = True
    for i in range(out.size):
        masked = x[i] == -np.inf or y[i] == -np.inf
        explained &= abs(out[i]) < np.inf or masked
    return explained


@inline
def _sum(x, y):
    return x + y


@inline
def _difference(x, y):
    return x - y


@inline
def _product(x, y):
    return x * y


@inline
def _quotient(x, y):
    return x / y


@inline
def _maximum(x, y):
    """The larger one; the bits of equal ones differ in zeros alone, where + is larger."""
    equal = np.int32(_bits(x) & _bits(y)).view(np.float32)
    return equal if x == y else max(x, y)


@inline
def _minimum(x, y):
    equal = np.int32(_bits(x) | _bits(y)).view(np.float32)
    return equal if x == y else min(x, y)


@inline
def _past_masks(function, x, y, out):
    """A function of pairs that lets masks through; whether they explain every infinity."""
    stray = False
    for i in range(out.size):
        out[i] = _flushed_32(function(x[i], y[i]))
        stray |= (not abs(out[i]) < np.inf) & (x[i] != -np.inf) & (y[i] != -np.inf)
    return not stray


@inline
def _without_masks(function, x, y, out):
    """A function of pairs that is infinite where x or y is; whether none is."""
    peak = np.int32(0)
    for i in range(out.size):
        out[i] = _flushed_32(function(x[i], y[i]))
        peak = max(peak, magnitude(_bits(out[i])))
    return peak < INFINITY_BITS


@inline
def _scaled(function, x, y, out):
    """A product or quotient; whether it and y are finite, which x then is.

    Where float32 gives 2^-126 it may have rounded up to it what 24 bits do not.
    """
    peak, apart = np.int32(0), np.int32(1)
    for i in range(out.size):
        out[i] = _flushed_32(function(x[i], y[i]))
        size = magnitude(_bits(out[i]))
        apart = min(apart, size ^ np.int32(_SMALLEST_NORMAL_BITS))
        peak = max(peak, max(size, magnitude(_bits(y[i]))))  # noqa: PLW3301  # vector code
    if apart == 0:
        for i in range(out.size):
            out[i] = flushed(function(np.float64(x[i]), np.float64(y[i])))
    return peak < INFINITY_BITS


@inline
def _wide(function, x, y, out):
    """A function of pairs of float64 that may hide infinities; whether there are none."""
    for i in range(out.size):
        out[i] = flushed(function(np.float64(x[i]), np.float64(y[i])))
    return max(_peak(out), _peak(x), _peak(y)) < INFINITY_BITS


@inline
def _power(x, y, out):
    """Powers by approximation where it can be, else as specified; as `_wide`."""
    doubts = np.int64(0)
    for i in range(out.size):
        v, doubt = approximations.pow(np.float64(x[i]), np.float64(y[i]))
        out[i] = flushed(v)
        doubts |= doubt
    return doubts >= 0 or _wide(f.pow64, x, y, out)


@inline
def _remainder(x, y):
    return np.fmod(x, y)


@inline
def _status_of_pairs(name, x, y, out):
    """What the block did that is not fine; masks may yet explain it."""
    if max(_peak(x), _peak(y)) < INFINITY_BITS:
        return status_of(_peak(out))
    if name not in (_ADD, _MAX):
        return MASKED
    return FINE if _masks_explain(x, y, out) else status_of(_peak(out))


@kernel(
    int64(
        int64, reads(float32, 1), reads(int64, 1), int64, reads(float32, 1), reads(int64, 1),
        int64, int64, int64, int64, writes(float32, 1),
    )
)  # fmt: skip
def _binary(  # noqa: C901  # a table of loops
    name, xs, x_rows, x_step, ys, y_rows, y_step, width, start, stop, results
):
    """Blocks start..stop of the result, whose rows are width wide.

    x_rows and y_rows say where each row of an operand starts; its step is 0 where one
    element stands for the whole row.
    """
    x_block = np.empty(_BLOCK, np.float32)
    y_block = np.empty(_BLOCK, np.float32)
    blocks_per_row = (width + _BLOCK - 1) // _BLOCK
    worst = FINE
    for block in range(start, stop):
        row, left = block // blocks_per_row, block % blocks_per_row * _BLOCK
        size = min(_BLOCK, width - left)
        x = _fill_block(xs, x_rows[row] + left * x_step, x_step, x_block[:size])
        y = _fill_block(ys, y_rows[row] + left * y_step, y_step, y_block[:size])
        out = results[row * width + left : row * width + left + size]
        if name == _ADD:
            fine = _past_masks(_sum, x, y, out)
        elif name == _DIV:
            fine = _scaled(_quotient, x, y, out)
        elif name == _FMOD:
            fine = _wide(_remainder, x, y, out)
        elif name == _MAX:
            fine = _past_masks(_maximum, x, y, out)
        elif name == _MIN:
            fine = _without_masks(_minimum, x, y, out)
        elif name == _MUL:
            fine = _scaled(_product, x, y, out)
        elif name == _POW and y_step == 0 and y[0] == 2.0:
            fine = _scaled(_product, x, x, out)
        elif name == _POW:
            fine = _power(x, y, out)
        else:
            fine = _without_masks(_difference, x, y, out)
        if not fine:
            worst = max(worst, _status_of_pairs(name, x, y, out))
    return worst


def binary(name: BinaryName, x: Floats, y: Floats, threads: Threads) -> Floats:
    """See `Kernels.binary`."""
    shape = np.broadcast_shapes(x.shape, y.shape)
    out = np.empty(shape, np.float32)
    if out.size == 0:
        _refuse_masks(name, x, y)
        return out
    lead = _leading_axes(x.shape, y.shape, shape)
    width = math.prod(shape[lead:])
    code, results = _BINARY[name], out.reshape(-1)
    operands = *_rows(x, shape, lead), *_rows(y, shape, lead), width
    check(
        name,
        threads.split(
            lambda start, stop: _binary(code, *operands, start, stop, results),
            out.size // width * -(-width // _BLOCK),
            cost=min(width, _BLOCK) * _COST.get(name, 4),
        ),
    )
    return out


def _refuse_masks(name: BinaryName, *operands: Floats) -> None:
    if name not in {"add", "max"} and any(np.isinf(operand).any() for operand in operands):
        check(name, MASKED)


def _leading_axes(x: tuple[int, ...], y: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """How many axes lie before the row: there each operand is whole, or one element."""
    lead = len(shape)
    while lead > 0:
        inner = math.prod(shape[lead - 1 :])
        if any(_inner_size(operand, shape, lead - 1) not in {1, inner} for operand in (x, y)):
            break
        lead -= 1
    return lead


def _inner_size(operand: tuple[int, ...], shape: tuple[int, ...], lead: int) -> int:
    """How many elements of an operand lie within one row."""
    return math.prod(operand[max(0, lead - len(shape) + len(operand)) :])


def _rows(
    operand: Floats, shape: tuple[int, ...], lead: int
) -> tuple[Floats, NDArray[np.int64], int]:
    """The flat operand, where in it each row starts, and the step along a row: 1 or 0."""
    inner = _inner_size(operand.shape, shape, lead)
    aligned = (1,) * (len(shape) - operand.ndim) + operand.shape
    starts = np.arange(0, operand.size, inner).reshape(aligned[:lead])
    rows = np.broadcast_to(starts, shape[:lead]).reshape(-1)
    return operand.reshape(-1), np.ascontiguousarray(rows), int(inner > 1)
