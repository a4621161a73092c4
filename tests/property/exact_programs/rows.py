"""Calls of the operators of ``reductions``, ``normalisation`` and ``pooling``."""

from __future__ import annotations

import numpy as np

from exact_programs.program import Call
from exact_programs.source import Source, int64s


def reduction(source: Source) -> Call:
    """Over some axes, all of them, or, with noop_with_empty_axes, none."""
    shape = source.shape()
    x = source.array(shape, source.dtype(), positive=source.operator == "ReduceLogSum")
    axes = source.pick(None, source.axes(len(shape)))
    attributes = {"keepdims": source.flag(), "noop_with_empty_axes": source.pick(0, 0, 0, 1)}
    return Call((x, None if axes is None else int64s(axes)), attributes)


def running_sum(source: Source) -> Call:
    shape = source.shape(1)
    axis = np.array(source.axis(len(shape)), source.pick("int64", "int32"))
    axis = source.pick(axis, axis.reshape(1))
    attributes = {"exclusive": source.flag(), "reverse": source.flag()}
    return Call((source.array(shape, source.dtype()), axis), attributes)


def softmax(source: Source) -> Call:
    shape = source.shape(1)
    x = source.floats(shape, masks=source.operator == "Softmax")
    return Call((x,), source.pick({}, {"axis": source.axis(len(shape))}))


def _image(source: Source, most: int = 4) -> tuple[int, ...]:
    """(N, C, *spatial)."""
    return (source.side(), source.side(), *source.shape(most=most - 2))


def global_pool(source: Source) -> Call:
    return Call((source.floats(_image(source)),))


def _epsilon(source: Source) -> dict:
    return source.pick({}, {"epsilon": source.pick(0.0, 1e-12, 0.1)})


def layer_norm(source: Source) -> Call:
    """Factors of the normalised axes, or any that broadcast; the outputs asked for."""
    shape = source.shape(1)
    axis = source.axis(len(shape))
    whole = shape[axis:] if axis < 0 else shape[axis % len(shape) :]
    factors = [source.pick(whole, source.part_of(shape)) for _ in range(2)]
    factors[0] = (*whole, 7) if source.rarely() else factors[0]
    scale, bias = (source.floats(factor) for factor in factors)
    attributes = {**({} if axis == -1 else {"axis": axis}), **_epsilon(source)}
    x = source.floats(shape)
    if source.operator == "RMSNormalization":
        return Call((x, scale), attributes)
    wanted = source.pick((True,), (True, True), (True, True, True), (True, False, True))
    return Call((x, scale, source.pick(None, bias)), attributes, wanted)


def _factors(source: Source, shape: tuple[int, ...], count: int) -> list[np.ndarray]:
    channels = shape[1] + source.rarely()
    return [source.floats((channels,)) for _ in range(count)]


def batch_norm(source: Source) -> Call:
    shape = _image(source)
    *factors, variance = _factors(source, shape, 4)
    variance = variance if source.rarely() else np.abs(variance)
    return Call((source.floats(shape), *factors, variance), _epsilon(source))


def instance_norm(source: Source) -> Call:
    shape = (*_image(source, 3), source.side())
    return Call((source.floats(shape), *_factors(source, shape, 2)), _epsilon(source))


def group_norm(source: Source) -> Call:
    groups = source.integer(1, 3)
    shape = (source.side(), groups * source.side() + source.rarely(), source.side())
    shape = (*shape, *source.shape(most=1))
    attributes = {"num_groups": groups, **_epsilon(source)}
    return Call((source.floats(shape), *_factors(source, shape, 2)), attributes)


# -- windows --------------------------------------------------------------------------------


def windows(source: Source, rank: int) -> dict:
    """Strides, dilations and padding, each given or not."""
    attributes = {}
    if source.flag():
        attributes["strides"] = [source.integer(1, 3) for _ in range(rank)]
    if source.flag():
        attributes["dilations"] = [source.pick(1, 1, 2) for _ in range(rank)]
    padding = source.pick("", "pads", "pads", "VALID", "SAME_UPPER", "SAME_LOWER")
    if padding == "pads":
        attributes["pads"] = [source.pick(0, 1, 2) for _ in range(2 * rank)]
    elif padding:
        attributes["auto_pad"] = padding
    return attributes


def pool(source: Source) -> Call:
    rank = source.pick(1, 2, 2, 3)
    sizes = tuple(source.integer(1, 6) for _ in range(rank))
    attributes = {
        "kernel_shape": [source.pick(2, 1, 3) for _ in range(rank)],
        "ceil_mode": source.flag(),
        **windows(source, rank),
    }
    if source.operator == "AveragePool":
        if source.opset < 19:
            attributes.pop("dilations", None)
        attributes["count_include_pad"] = source.flag()
    else:
        attributes["storage_order"] = source.flag()
    x = source.array((source.side(), source.side(), *sizes), source.dtype())
    both = source.operator == "MaxPool" and source.flag()
    return Call((x,), attributes, (True, True) if both else (True,))


_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip

CALLS = {
    **dict.fromkeys(_REDUCTIONS, reduction),
    "AveragePool": pool,
    "BatchNormalization": batch_norm,
    "CumSum": running_sum,
    "GlobalAveragePool": global_pool,
    "GlobalMaxPool": global_pool,
    "GroupNormalization": group_norm,
    "InstanceNormalization": instance_norm,
    "LayerNormalization": layer_norm,
    "LogSoftmax": softmax,
    "MaxPool": pool,
    "RMSNormalization": layer_norm,
    "Softmax": softmax,
}
