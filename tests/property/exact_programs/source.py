"""Shapes and values for operators, drawn by Hypothesis.

Values come from drawn bytes, five to a float, so that drawing is one step an array and
the share of zeros, subnormals and masks is known. They shrink toward zeros.
"""

from __future__ import annotations

import math

import numpy as np
import onnx.defs
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from onnx import helper

from shoal.compute.exact.operators import OPERATORS
from shoal.compute.exact.operators.node import ANY

AWKWARD = np.array([0.0, -0.0, 2.0**-127, -(2.0**-149), 2.0**-126, 1.0, -1.0, 0.5], np.float32)
"""Zeros, subnormals (which are flushed), the least normal number, and round ones."""

LARGEST = np.finfo(np.float32).max


class Source:
    """Hypothesis's ``draw`` in the words of one operator of one opset."""

    def __init__(self, draw, operator: str, opset: int) -> None:
        self.draw = draw
        self.operator = operator
        self.opset = opset

    # -- choices ----------------------------------------------------------------------------

    def pick(self, *options):
        """One of the options; the first is the simplest."""
        return self.draw(st.sampled_from(options))

    def flag(self) -> int:
        """An attribute that is 0 or 1."""
        return self.pick(0, 1)

    def integer(self, low: int, high: int) -> int:
        """From low to high, both included."""
        return self.draw(st.integers(low, high))

    def rarely(self) -> bool:
        """One time in sixteen: for what makes an error of the call."""
        return self.draw(st.integers(0, 15)) == 11

    def dtype(self, *among: str) -> str:
        """A dtype that the operator claims for its first input, float32 first."""
        schema = onnx.defs.get_schema(self.operator, self.opset)
        named = {f"tensor({'float' if d == 'float32' else d})": d for d in ANY}
        known = {named[text] for text in schema.inputs[0].types if text in named}
        claimed = sorted(known & OPERATORS[self.operator].dtypes)
        return self.pick(*(d for d in claimed if not among or d in among))

    # -- shapes -----------------------------------------------------------------------------

    def side(self) -> int:
        """A size, now and then 0."""
        return self.pick(2, 1, 3, 4, 2, 3, 5, 1, 3, 2, 4, 0)

    def shape(self, least: int = 0, most: int = 4) -> tuple[int, ...]:
        """Of ``least`` to ``most`` axes."""
        return tuple(self.side() for _ in range(self.integer(least, most)))

    def shapes(self, count: int) -> tuple[tuple[int, ...], ...]:
        """Shapes that broadcast; rarely ones that do not."""
        if count > 1 and self.rarely():
            return tuple(self.shape() for _ in range(count))
        together = npst.mutually_broadcastable_shapes(
            num_shapes=count, max_dims=4, max_side=4, min_side=self.pick(1, 1, 1, 0)
        )
        return self.draw(together).input_shapes

    def part_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A shape that broadcasts to this one."""
        start = self.integer(0, len(shape))
        return tuple(self.pick(size, 1) for size in shape[start:])

    def axis(self, rank: int) -> int:
        """An axis, counted from either end; rarely one that is not there."""
        if not rank or self.rarely():
            return self.pick(rank, -rank - 1)
        return self.integer(-rank, rank - 1)

    def axes(self, rank: int) -> list[int]:
        """Several axes, each from either end, in any order; rarely one of them twice."""
        chosen = self.draw(st.lists(st.integers(0, max(rank - 1, 0)), unique=True))
        chosen = [axis - self.pick(0, rank) for axis in chosen[:rank]]
        return chosen + chosen[:1] if self.rarely() else chosen

    # -- values -----------------------------------------------------------------------------

    def _bytes(self, count: int, width: int) -> np.ndarray:
        size = count * width
        drawn = self.draw(st.binary(min_size=size, max_size=size))
        return np.frombuffer(drawn, np.uint8).reshape(count, width)

    def floats(
        self,
        shape: tuple[int, ...],
        high: int = 2,
        *,
        masks: bool = False,
        positive: bool = False,
    ) -> np.ndarray:
        """Float32: calm, of channels far apart, of any exponent, masked, or with NaN.

        Args:
            shape: Any.
            high: Most values are below 2^(high + 1), and channels far apart are so
                upward only where it is more than 1.
            masks: Whether -inf is usual.
            positive: Whether most arrays have no zero and no sign.
        """
        profile = self.pick(
            *("calm", "calm", "channels", "small", "calm", "channels"),
            *(("mask",) * 4 if masks else ()),
            *("calm", "channels", "mask", "any"),
            *(("poison",) if self.rarely() else ()),
        )
        low = -126 if profile in {"any", "small"} else -8
        high = 127 if profile == "any" else high
        words = self._bytes(math.prod(shape), 5).astype(np.int64)
        kinds, powers, bits = words[:, 0], words[:, 1], words[:, 2:] @ [1, 1 << 8, 1 << 16]
        signs = np.where(bits & 1, -1.0, 1.0)
        numbers = np.ldexp(
            signs * (1 + (bits >> 1) * 2.0**-23), low + powers % (high + 1 - low)
        )
        numbers = np.where(kinds < 96, (powers % 17 - 8) / 2, numbers)
        numbers = np.where(kinds < 48, AWKWARD[kinds % 8], numbers)
        if positive and not self.rarely():
            numbers = np.maximum(np.abs(numbers), 2.0**-126)
        if profile == "mask":
            numbers = np.where(kinds % 4 == 3, -np.inf, numbers)
        if profile == "poison" and numbers.size:
            numbers[self.integer(0, numbers.size - 1)] = self.pick(np.nan, np.inf)
        numbers = numbers.reshape(shape)
        if profile == "channels" and shape:
            numbers = np.ldexp(numbers, self._far_apart(shape, 60 if high > 1 else 0))
        largest = np.inf if profile == "poison" else LARGEST
        return np.asarray(np.clip(numbers, -np.inf, largest), np.float32)

    def _far_apart(self, shape: tuple[int, ...], highest: int) -> np.ndarray:
        """A power of two for each channel of one axis; some leave nothing but zeros."""
        axis = self.integer(0, len(shape) - 1)
        drawn = self._bytes(shape[axis], 1).astype(np.int64)
        powers = np.where(drawn >= 192, -400, drawn % (highest + 61) - 60)
        return powers.reshape([-1 if i == axis else 1 for i in range(len(shape))])

    def integers(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Integers: small, at the dtype's limits, or any."""
        bounds, count = np.iinfo(dtype), math.prod(shape)
        words = self._bytes(count, 9)
        kinds = words[:, 0]
        whole = np.ascontiguousarray(words[:, 1:]).view(np.uint64).reshape(count)
        limits = np.array([bounds.min, bounds.max, 0, 1, bounds.max - 1, bounds.min + 1], dtype)
        small = (whole % 9).astype(dtype) - np.array(4 if bounds.min else 0, dtype)
        numbers = np.where(kinds < 160, small, whole.astype(dtype))
        return np.where(kinds < 48, limits[kinds % 6], numbers).reshape(shape)

    def below(self, limit: int, shape: tuple[int, ...], dtype: str = "int64") -> np.ndarray:
        """Indices of an axis, counted from either end; rarely one that is out of range."""
        words = self._bytes(math.prod(shape), 1).astype(dtype).reshape(shape)
        indices = words % (2 * limit) - limit if limit else words * 0
        if indices.size and self.rarely():
            indices.reshape(-1)[-1] = self.pick(limit, -limit - 1, np.iinfo(dtype).max)
        return indices.astype(dtype)

    def array(self, shape: tuple[int, ...], dtype: str, **options) -> np.ndarray:
        """Of any dtype; the options are those of `floats`."""
        if dtype == "float32":
            return self.floats(shape, **options)
        if dtype == "bool":
            return (self._bytes(math.prod(shape), 1) % 2 == 1).reshape(shape)
        return self.integers(shape, dtype)


def int64s(values) -> np.ndarray:
    """A small integer tensor, such as a shape."""
    return np.array(list(values), np.int64)


def code_of(dtype: str) -> int:
    """ONNX's number of a dtype."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
