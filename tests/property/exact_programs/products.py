"""Calls of the operators of ``products``, ``convolution`` and ``quantisation``."""

from __future__ import annotations

from exact_programs.program import Call
from exact_programs.rows import windows
from exact_programs.source import Source, code_of


def _matrices(source: Source) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes to be multiplied: vectors, matrices, and batches that broadcast."""
    m, n = source.side(), source.side()
    k = source.pick(3, 1, 2, 5, 8, 17, 0)
    inner = k + 1 if source.rarely() else k
    a, b = (shape[:2] for shape in source.pick(((), ()), source.shapes(2)))
    left = source.pick((*a, m, k), (*a, m, k), (*a, m, k), (k,))
    right = source.pick((*b, inner, n), (*b, inner, n), (*b, inner, n), (inner,))
    return left, right


def matmul(source: Source) -> Call:
    dtype = source.pick("float32", "float32", source.dtype())
    left, right = _matrices(source)
    return Call((source.array(left, dtype), source.array(right, dtype)))


def matmul_integer(source: Source) -> Call:
    """Zero points for everything, or for each row and column."""
    left, right = _matrices(source)
    a, b = (source.integers(s, source.pick("uint8", "int8")) for s in (left, right))
    rows, columns = (left[-2:-1] or (1,)), (right[-1:] if len(right) > 1 else (1,))
    zeros = [
        source.pick(None, source.integers(source.pick((), shape), array.dtype.name))
        for array, shape in ((a, rows), (b, columns))
    ]
    return Call((a, b, *zeros))


def gemm(source: Source) -> Call:
    m, n = source.side(), source.side()
    k = source.pick(3, 1, 2, 5, 8, 17, 0)
    turns = {name: source.flag() for name in ("transA", "transB")}
    a = source.floats((k, m) if turns["transA"] else (m, k))
    b = source.floats((n, k) if turns["transB"] else (k + source.rarely(), n))
    c = source.pick(None, source.floats(source.part_of((m, n))))
    factors = {name: source.pick(1.0, 0.3, 0.0, -2.0) for name in ("alpha", "beta")}
    return Call((a, b, c), {**turns, **factors})


def _convolved(source: Source) -> tuple[tuple[int, ...], tuple[int, ...], dict]:
    """Shapes of images and filters that fit, and the attributes."""
    rank, groups = source.pick(2, 1, 2, 3), source.pick(1, 1, 2, 3)
    depth, width = source.integer(1, 2), source.integer(1, 2)
    kernel = tuple(source.pick(2, 1, 3) for _ in range(rank))
    sizes = tuple(source.integer(0 if source.rarely() else 1, 5) for _ in range(rank))
    attributes = {"group": groups, **windows(source, rank)}
    if source.flag():
        attributes["kernel_shape"] = list(kernel)
    channels = depth * groups + source.rarely()
    x = (source.pick(1, 2, 0, 1, 2), channels, *sizes)
    return x, (width * groups, depth, *kernel), attributes


def convolution(source: Source) -> Call:
    image, filters, attributes = _convolved(source)
    bias = source.pick(None, source.floats(filters[:1]))
    return Call((source.floats(image), source.floats(filters), bias), attributes)


def convolution_of_integers(source: Source) -> Call:
    image, filters, attributes = _convolved(source)
    x, w = (source.integers(s, source.pick("uint8", "int8")) for s in (image, filters))
    zeros = (
        source.pick(None, source.integers((), x.dtype.name)),
        source.pick(None, source.integers(source.pick((), filters[:1]), w.dtype.name)),
    )
    return Call((x, w, *zeros), attributes)


# -- quantisation ---------------------------------------------------------------------------


def _factors(source: Source, shape: tuple[int, ...]) -> tuple[tuple[int, ...], dict]:
    """The shape of scales: one for all, per axis, or (opset 21) per block of an axis."""
    axis = source.axis(len(shape))
    place = axis % max(len(shape), 1)
    kinds = ["all", "axis", "blocks"] if source.opset >= 21 else ["all", "axis"]
    kind = source.pick(*kinds) if shape else "all"
    if kind == "all":
        return (), {}
    if kind == "axis":
        return (shape[place] + source.rarely(),), {"axis": axis}
    block = source.integer(1, 3)
    blocks = (*shape[:place], -(-shape[place] // block), *shape[place + 1 :])
    return blocks, {"axis": axis, "block_size": block}


def quantised(source: Source) -> Call:
    shape = source.shape()
    factors, attributes = _factors(source, shape)
    small = ("uint8", "int8", "uint16", "int16") if source.opset >= 21 else ("uint8", "int8")
    dtype = source.pick(*small)
    zero = source.pick(None, source.integers(factors, dtype))
    if zero is None and source.opset >= 21:
        attributes["output_dtype"] = code_of(dtype)
    scale = source.floats(factors, positive=True)
    return Call((source.floats(shape), scale, zero), attributes)


def dequantised(source: Source) -> Call:
    shape, dtype = source.shape(), source.dtype()
    factors, attributes = _factors(source, shape)
    zero = source.pick(None, source.integers(factors, dtype))
    return Call((source.integers(shape, dtype), source.floats(factors), zero), attributes)


def dynamically_quantised(source: Source) -> Call:
    wanted = source.pick((True, True, True), (True, False, True), (False, True, False))
    return Call((source.floats(source.shape()),), outputs=wanted)


CALLS = {
    "Conv": convolution,
    "ConvInteger": convolution_of_integers,
    "DequantizeLinear": dequantised,
    "DynamicQuantizeLinear": dynamically_quantised,
    "Gemm": gemm,
    "MatMul": matmul,
    "MatMulInteger": matmul_integer,
    "QuantizeLinear": quantised,
}
