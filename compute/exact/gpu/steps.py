"""Elementwise kernels of the exact class on a card: SPEC, "Elementwise" and "Functions".

Part of *execute*. A chain of operations runs in one kernel, from registers to registers; each
is rounded to float32 and judged as if it were alone. float64 has over twice float32's bits and
two more, so that + - * / and sqrt in float64, rounded again to float32, are those operations
rounded once. `elementwise` decides which operations make a chain.

A chain is told to the compiler as text. READS says of each input how it is broadcast
(`_met_by`), such as ``all; tail``. STEPS are operations and the places of what they take: the
inputs come first, then each step's result, such as ``add 0 1; gelu 2``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from shoal.compute.exact import spec, statuses
from shoal.compute.exact.gpu.functions import (
    cos64,
    erf64,
    exp64,
    fmod64,
    gelu64,
    gelu_tanh64,
    log64,
    maximum,
    minimum,
    pow64,
    sigmoid64,
    sin64,
    softplus64,
    tanh64,
)
from shoal.compute.exact.gpu.numbers import (
    FINE,
    MASKED,
    OUT_OF_RANGE,
    absolute,
    is_masked,
    nearest,
    negated,
    report,
    round32,
    status_of,
    with_sign,
)

_ANGLE_LIMIT = tl.constexpr(spec.ANGLE_LIMIT)
_STATUSES = tl.constexpr(1 << statuses.STATUS_BITS)


@triton.jit
def _function(NAME: tl.constexpr, v):  # noqa: C901  # a table of functions
    """One function of float64 values, unrounded."""
    if NAME == "abs":
        y = absolute(v)
    elif NAME == "ceil":
        n = nearest(v)
        y = with_sign(absolute(tl.where(n < v, n + 1.0, n)), v)
    elif NAME == "cos":
        y = cos64(v)
    elif NAME == "erf":
        y = erf64(v)
    elif NAME == "exp":
        y = exp64(v)
    elif NAME == "floor":
        n = nearest(v)
        y = with_sign(absolute(tl.where(n > v, n - 1.0, n)), v)
    elif NAME == "gelu":
        y = gelu64(v)
    elif NAME == "gelu_tanh":
        y = gelu_tanh64(v)
    elif NAME == "log":
        y = log64(v)
    elif NAME == "neg":
        y = negated(v)
    elif NAME == "reciprocal":
        y = 1.0 / v
    elif NAME == "relu":
        y = tl.where(v > 0.0, v, 0.0)
    elif NAME == "round":
        y = nearest(v)
    elif NAME == "sigmoid":
        y = sigmoid64(v)
    elif NAME == "sign":
        y = tl.where(v > 0.0, 1.0, tl.where(v < 0.0, -1.0, v * 0.0 + 0.0))
    elif NAME == "sin":
        y = sin64(v)
    elif NAME == "softplus":
        y = softplus64(v)
    elif NAME == "sqrt":
        y = tl.sqrt(v)
    else:
        tl.static_assert(NAME == "tanh")
        y = tanh64(v)
    return y


@triton.jit
def _operation(NAME: tl.constexpr, x, y):
    """One operation on float64 values, unrounded."""
    if NAME == "add":
        z = x + y
    elif NAME == "div":
        z = x / y
    elif NAME == "fmod":
        z = fmod64(x, y)
    elif NAME == "max":
        z = maximum(x, y)
    elif NAME == "min":
        z = minimum(x, y)
    elif NAME == "mul":
        z = x * y
    elif NAME == "pow":
        z = pow64(x, y)
    else:
        tl.static_assert(NAME == "sub")
        z = x - y
    return z


@triton.jit
def _one(NAME: tl.constexpr, given):
    """A function of float32 values, rounded, and what it met."""
    v = given.to(tl.float64)
    result = round32(_function(NAME, tl.where(is_masked(given), 1.0, v)))
    met = status_of(result)
    if NAME == "sin" or NAME == "cos":
        met = tl.where(absolute(v) > _ANGLE_LIMIT, OUT_OF_RANGE, met)
    return result, tl.where(is_masked(given), MASKED, met)


@triton.jit
def _two(NAME: tl.constexpr, left, right):
    """An operation on float32 values, rounded, and what it met."""
    result = round32(_operation(NAME, left.to(tl.float64), right.to(tl.float64)))
    masked = is_masked(left) | is_masked(right)
    if NAME == "add" or NAME == "max":
        met = tl.where(masked, FINE, status_of(result))
    else:
        met = tl.where(masked, MASKED, status_of(result))
    return result, met


@triton.constexpr_function
def _count(text):
    """How many parts a text has, of READS or STEPS."""
    return len(text.split("; "))


@triton.constexpr_function
def _name(text, part):
    """The first word of a part."""
    return text.split("; ")[part].split()[0]


@triton.constexpr_function
def _operands(text, part):
    """How many operands a step has."""
    return len(text.split("; ")[part].split()) - 1


@triton.constexpr_function
def _operand(text, part, number):
    """The place of a step's operand."""
    return int(text.split("; ")[part].split()[number + 1])


@triton.jit
def _met_by(x, i, inside, inner, size, HOW: tl.constexpr, BLOCK: tl.constexpr):
    """The elements of an input that meet those of the result at i."""
    if HOW == "all":  # it has the result's shape
        v = tl.load(x + i, inside, 1.0)
    elif HOW == "one":
        v = tl.full((BLOCK,), tl.load(x), tl.float32)
    elif HOW == "tail":  # the last axes
        v = tl.load(x + i % size.to(i.dtype), inside, 1.0)
    elif HOW == "head":  # the first axes
        v = tl.load(x + i // inner.to(i.dtype), inside, 1.0)
    elif HOW == "middle":
        v = tl.load(x + (i // inner.to(i.dtype)) % size.to(i.dtype), inside, 1.0)
    else:
        tl.static_assert(HOW == "ends")  # first axes and last ones, which have `size` elements
        tail = size.to(i.dtype)
        v = tl.load(x + (i // inner.to(i.dtype)) * tail + i % tail, inside, 1.0)
    return v


@triton.jit
def _read(
    values, READS: tl.constexpr, place: tl.constexpr, x, i, inside, inner, size,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The values, and those of one more input if there is one at this place."""
    if place < _count(READS):
        met = _met_by(x, i, inside, inner, size, _name(READS, place), BLOCK)
        values = values + (met,)  # noqa: RUF005  # Triton's Python
    return values


_SIZES = ("size", *(f"{what}{place}" for place in range(8) for what in ("inner", "size")))


@triton.jit(do_not_specialize=_SIZES)
def chain_kernel(
    x0, x1, x2, x3, x4, x5, x6, x7, out, status, size: tl.int64,
    inner0: tl.int64, size0: tl.int64, inner1: tl.int64, size1: tl.int64,
    inner2: tl.int64, size2: tl.int64, inner3: tl.int64, size3: tl.int64,
    inner4: tl.int64, size4: tl.int64, inner5: tl.int64, size5: tl.int64,
    inner6: tl.int64, size6: tl.int64, inner7: tl.int64, size7: tl.int64,
    READS: tl.constexpr, STEPS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Out = the last step's result, (size,) float32. What is beyond READS is not read.

    The status is `statuses.first_met`'s. Places are int64 where WIDE.
    """
    i = tl.program_id(0)
    if WIDE:
        i = i.to(tl.int64)
    i = i * BLOCK + tl.arange(0, BLOCK)
    inside = i < size.to(i.dtype)
    values = ()
    values = _read(values, READS, 0, x0, i, inside, inner0, size0, BLOCK)
    values = _read(values, READS, 1, x1, i, inside, inner1, size1, BLOCK)
    values = _read(values, READS, 2, x2, i, inside, inner2, size2, BLOCK)
    values = _read(values, READS, 3, x3, i, inside, inner3, size3, BLOCK)
    values = _read(values, READS, 4, x4, i, inside, inner4, size4, BLOCK)
    values = _read(values, READS, 5, x5, i, inside, inner5, size5, BLOCK)
    values = _read(values, READS, 6, x6, i, inside, inner6, size6, BLOCK)
    values = _read(values, READS, 7, x7, i, inside, inner7, size7, BLOCK)
    first = tl.zeros((BLOCK,), tl.int32)
    for step in tl.static_range(_count(STEPS)):
        given = values[_operand(STEPS, step, 0)]
        if _operands(STEPS, step) == 1:
            result, met = _one(_name(STEPS, step), given)
        else:
            other = values[_operand(STEPS, step, 1)]
            result, met = _two(_name(STEPS, step), given, other)
        values = values + (result,)  # noqa: RUF005  # Triton's Python
        code = met.to(tl.int32) + (_count(STEPS) - 1 - step) * _STATUSES
        first = tl.maximum(first, tl.where(met == FINE, FINE, code))
    report(status, tl.where(inside, first, FINE))
    tl.store(out + i, values[len(values) - 1], inside)


@triton.jit
def admit_kernel(x, out, status, size: tl.int64, BLOCK: tl.constexpr):
    """Out = x, (size,) float32, with subnormals flushed; refuses +inf and what is no number."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    given = tl.load(x + i, inside, 1.0)
    bits = given.to(tl.int32, bitcast=True)
    small = (bits & 0x7F80_0000) == 0
    met = tl.where(is_masked(given) & (bits < 0), FINE, status_of(given))
    report(status, tl.where(inside, met, FINE))
    kept = tl.where(small, bits & -0x8000_0000, bits).to(tl.float32, bitcast=True)
    tl.store(out + i, kept, inside)
