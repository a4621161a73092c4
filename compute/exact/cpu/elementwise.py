"""One function of every element: the loops, cut into blocks that stay in the cache.

Part of *execute*. A block is computed from float32 to float32 and then, still in the
first-level cache, looked through for infinities and what is not a number. Operands of
unequal shape are brought to rows by numpy, which broadcasts their offsets alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, get_args

import numpy as np
from numba.types import float32, int64

from shoal.compute.exact import spec
from shoal.compute.exact.cpu import functions as f
from shoal.compute.exact.cpu.compiled import inline, kernel, reads, writes
from shoal.compute.exact.cpu.floats import (
    FINE,
    INFINITE,
    INFINITY_BITS,
    MASKED,
    OUT_OF_RANGE,
    check,
    flushed,
    magnitude,
    status_of,
)
from shoal.compute.exact.kernels import BinaryName, UnaryName

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from shoal.compute.exact.cpu.threads import Threads
    from shoal.compute.exact.kernels import Floats

_BLOCK: Final = 2048
_SMALLEST_NORMAL: Final = np.float32(spec.SMALLEST_NORMAL)
_ANGLE_LIMIT_BITS: Final = int(np.float32(spec.ANGLE_LIMIT).view(np.int32))

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
_ADD, _DIV, _FMOD, _MAX, _MIN, _MUL, _POW, _SUB = (
    _BINARY[name] for name in ("add", "div", "fmod", "max", "min", "mul", "pow", "sub")
)

_FINITE_OF_FINITE: Final = (_ABS, _CEIL, _FLOOR, _NEG, _RELU, _ROUND, _SIGN)
_FINITE_HIDES_MASKS: Final = (_DIV, _FMOD, _POW)

_COST: Final = {"add": 1, "sub": 1, "mul": 1, "max": 1, "min": 1, "relu": 1, "abs": 1, "neg": 1}
"""Of an element, in nanoseconds, where it is not the 4 of a polynomial."""


@inline
def _peak(x):
    """The bits of the largest magnitude."""
    bits = x.view(np.int32)
    peak = np.int32(0)
    for i in range(bits.size):
        peak = max(peak, magnitude(bits[i]))
    return peak


@kernel(int64(int64, reads(float32, 1), int64, int64, writes(float32, 1)))
def _unary(name, values, start, stop, results):  # noqa: C901  # a table of loops
    worst = FINE
    for left in range(start, stop, _BLOCK):
        x = values[left : min(left + _BLOCK, stop)]
        out = results[left : min(left + _BLOCK, stop)]
        if name == _ABS:
            for i in range(x.size):
                out[i] = abs(x[i])
        elif name == _CEIL:
            for i in range(x.size):
                out[i] = np.ceil(x[i])
        elif name == _COS:
            for i in range(x.size):
                out[i] = flushed(f.cos64(np.float64(x[i])))
        elif name == _ERF:
            for i in range(x.size):
                out[i] = flushed(f.erf64(np.float64(x[i])))
        elif name == _EXP:
            for i in range(x.size):
                out[i] = flushed(f.exp64(np.float64(x[i])))
        elif name == _FLOOR:
            for i in range(x.size):
                out[i] = np.floor(x[i])
        elif name == _GELU:
            for i in range(x.size):
                out[i] = flushed(f.gelu64(np.float64(x[i])))
        elif name == _GELU_TANH:
            for i in range(x.size):
                out[i] = flushed(f.gelu_tanh64(np.float64(x[i])))
        elif name == _LOG:
            for i in range(x.size):
                out[i] = flushed(f.log64(np.float64(x[i])))
        elif name == _NEG:
            for i in range(x.size):
                out[i] = -x[i]
        elif name == _RECIPROCAL:
            for i in range(x.size):
                out[i] = flushed(1.0 / np.float64(x[i]))
        elif name == _RELU:
            for i in range(x.size):
                out[i] = x[i] if x[i] > 0.0 else np.float32(0.0)
        elif name == _ROUND:
            for i in range(x.size):
                out[i] = np.rint(x[i])
        elif name == _SIGMOID:
            for i in range(x.size):
                out[i] = flushed(f.sigmoid64(np.float64(x[i])))
        elif name == _SIGN:
            for i in range(x.size):
                out[i] = np.float32(x[i] > 0.0) - np.float32(x[i] < 0.0)
        elif name == _SIN:
            for i in range(x.size):
                out[i] = flushed(f.sin64(np.float64(x[i])))
        elif name == _SOFTPLUS:
            for i in range(x.size):
                out[i] = flushed(f.softplus64(np.float64(x[i])))
        elif name == _SQRT:
            for i in range(x.size):
                out[i] = np.sqrt(np.float64(x[i]))
        elif name == _TANH:
            for i in range(x.size):
                out[i] = flushed(f.tanh64(np.float64(x[i])))
        peak = _peak(x)
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
            lambda start, stop: _unary(code, values, start, stop, results),
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
    allows_masks = name in (_ADD, _MAX)
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
            for i in range(size):
                out[i] = _flushed_32(x[i] + y[i])
        elif name == _DIV:
            border = False
            for i in range(size):
                out[i] = _flushed_32(x[i] / y[i])
                border |= abs(out[i]) == _SMALLEST_NORMAL
            if border:  # float32 may have rounded up to it what 24 bits do not
                for i in range(size):
                    out[i] = flushed(np.float64(x[i]) / np.float64(y[i]))
        elif name == _FMOD:
            for i in range(size):
                out[i] = flushed(np.fmod(np.float64(x[i]), np.float64(y[i])))
        elif name == _MAX:
            for i in range(size):
                out[i] = f.maximum(np.float64(x[i]), np.float64(y[i]))
        elif name == _MIN:
            for i in range(size):
                out[i] = f.minimum(np.float64(x[i]), np.float64(y[i]))
        elif name == _MUL:
            border = False
            for i in range(size):
                out[i] = _flushed_32(x[i] * y[i])
                border |= abs(out[i]) == _SMALLEST_NORMAL
            if border:  # float32 may have rounded up to it what 24 bits do not
                for i in range(size):
                    out[i] = flushed(np.float64(x[i]) * np.float64(y[i]))
        elif name == _POW and y_step == 0 and y[0] == 2.0:
            for i in range(size):
                out[i] = flushed(np.float64(x[i]) * np.float64(x[i]))
        elif name == _POW:
            for i in range(size):
                out[i] = flushed(f.pow64(np.float64(x[i]), np.float64(y[i])))
        elif name == _SUB:
            for i in range(size):
                out[i] = _flushed_32(x[i] - y[i])
        status = status_of(_peak(out))
        if status != FINE or name in _FINITE_HIDES_MASKS:
            masked = max(_peak(x), _peak(y)) >= INFINITY_BITS
            if masked and not allows_masks:
                status = MASKED
            elif masked and _masks_explain(x, y, out):
                status = FINE
        worst = max(worst, status)
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
