"""`Kernels` on a card: one class over the modules of this package.

Part of *execute*. Numpy arrays or `CardArray`s go in, and `CardArray`s come out: what one
kernel gives another stays on the card, and elementwise operations wait to be run together.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from shoal.compute.exact.cpu.threads import Threads
from shoal.compute.exact.gpu import draw, elementwise, products, rows, scatter
from shoal.compute.exact.gpu.arrays import CardArray

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from numpy.typing import NDArray

    from shoal.compute.exact.gpu.card import Card
    from shoal.compute.exact.gpu.variants import Variant
    from shoal.compute.exact.kernels import (
        BinaryName,
        Floats,
        Integers,
        Kernels,
        Prepared,
        ReduceName,
        ScaleAxis,
        UnaryName,
    )
    from shoal.compute.exact.spec import Precision


def variants() -> Iterator[Variant]:
    """Every kernel as it is ever compiled."""
    for module in (draw, elementwise, products, rows, scatter):
        yield from module.variants()


class CardKernels:
    """`Kernels` on one card. One thread at a time.

    Args:
        card: The card.
        way: How integers are multiplied.
        threads: How many hash what comes off the card, in a challenge.
    """

    def __init__(self, card: Card, way: products.Way = "digits", threads: int = 1) -> None:
        self._card = card
        self._way = way
        self._threads = threads

    @cached_property
    def threads(self) -> Threads:
        """The threads that do on the host what no card does."""
        return Threads(self._threads)

    def empty(self, rows: int, size: int) -> Floats:
        """See `shoal.compute.challenge_work.Arithmetic`."""
        return self._give(self._card.empty(rows, size))

    def draw(self, key: int, stream: int, first: int, out: Floats) -> None:
        """See `shoal.compute.challenge_work.Arithmetic`; ``out`` lies on the card."""
        assert isinstance(out, CardArray)
        draw.numbers(self._card, key, stream, first, out.tensor)

    def enter(self, node: str, operator: str) -> None:
        """See `Kernels.enter`."""
        self._card.enter(node, operator)

    def settle(self) -> None:
        """See `Kernels.settle`."""
        self._card.settle()

    def forget(self) -> None:
        """See `Kernels.forget`."""
        self._card.forget()

    def admit(self, x: Floats) -> Floats:
        """See `Kernels.admit`."""
        return self._give(elementwise.admit(self._card, self._take(x)))

    def prepare(self, b: Floats, precision: Precision, axis: ScaleAxis) -> products.Quantised:
        """See `Kernels.prepare`."""
        matrices = self._take(b)[None]
        return products.prepare_batch(self._card, matrices, precision, axis, self._way)

    def product(
        self, a: Floats, b: Floats | Prepared, precision: Precision, axis: ScaleAxis
    ) -> Floats:
        """See `Kernels.product`."""
        if isinstance(b, np.ndarray | CardArray):
            b = self.prepare(b, precision, axis)
        assert isinstance(b, products.Quantised), "prepared by another backend"
        return self._give(products.product_batch(self._card, self._take(a)[None], b)[0])

    def products(self, a: Floats, b: Floats, precision: Precision, axis: ScaleAxis) -> Floats:
        """See `Kernels.products`."""
        matrices = self._take(b)
        right = products.prepare_batch(self._card, matrices, precision, axis, self._way)
        return self._give(products.product_batch(self._card, self._take(a), right))

    def integer_product(self, a: NDArray[np.int32], b: NDArray[np.int32]) -> NDArray[np.int32]:
        """See `Kernels.integer_product`."""
        return self._card.give(products.integer_product(self._take(a), self._take(b)))

    def unary(self, name: UnaryName, x: Floats) -> Floats:
        """See `Kernels.unary`."""
        return self._give(elementwise.Step(self._card, name, self._operand(x)))

    def binary(self, name: BinaryName, x: Floats, y: Floats) -> Floats:
        """See `Kernels.binary`."""
        return self._give(
            elementwise.Step(self._card, name, self._operand(x), self._operand(y))
        )

    def reduce_rows(self, name: ReduceName, x: Floats) -> Floats:
        """See `Kernels.reduce_rows`."""
        return self._give(rows.reduce_rows(self._card, name, self._take(x)))

    def average_rows(self, x: Floats, counts: Integers) -> Floats:
        """See `Kernels.average_rows`."""
        return self._give(rows.average_rows(self._card, self._take(x), self._take(counts)))

    def cumsum_rows(self, x: Floats, *, exclusive: bool, reverse: bool) -> Floats:
        """See `Kernels.cumsum_rows`."""
        return self._give(rows.cumsum_rows(self._card, self._take(x), exclusive, reverse))

    def softmax_rows(self, x: Floats) -> Floats:
        """See `Kernels.softmax_rows`."""
        return self._give(rows.softmax_rows(self._card, self._take(x), logarithm=False))

    def log_softmax_rows(self, x: Floats) -> Floats:
        """See `Kernels.log_softmax_rows`."""
        return self._give(rows.softmax_rows(self._card, self._take(x), logarithm=True))

    def layer_norm_rows(
        self, x: Floats, w: Floats | None, b: Floats | None, eps: float
    ) -> Floats:
        """See `Kernels.layer_norm_rows`."""
        return self._norm(x, w, b, eps, centred=True)

    def rms_norm_rows(self, x: Floats, w: Floats | None, eps: float) -> Floats:
        """See `Kernels.rms_norm_rows`."""
        return self._norm(x, w, None, eps, centred=False)

    def batch_norm(
        self, x: Floats, scale: Floats, b: Floats, mean: Floats, var: Floats, eps: float
    ) -> Floats:
        """See `Kernels.batch_norm`."""
        given = map(self._take, (x, scale, b, mean, var))
        return self._give(scatter.batch_norm(self._card, *given, eps))

    def scatter_add(self, data: Floats, indices: Integers, updates: Floats) -> Floats:
        """See `Kernels.scatter_add`."""
        given = map(self._take, (data, indices, updates))
        return self._give(scatter.scatter_add(self._card, *given))

    def _norm(
        self, x: Floats, w: Floats | None, b: Floats | None, eps: float, *, centred: bool
    ) -> Floats:
        gain, offset = (None if v is None else self._take(v) for v in (w, b))
        taken = self._take(x)
        given = rows.norm_rows(self._card, taken, gain, offset, eps, centred=centred)
        return self._give(given)

    def _take(self, array: NDArray[Any] | CardArray) -> torch.Tensor:
        if isinstance(array, CardArray):
            return array.tensor.contiguous()
        return self._card.take(array)

    def _operand(self, array: NDArray[Any] | CardArray) -> elementwise.Operand:
        if isinstance(array, CardArray) and array.waits:
            return array.held
        return self._take(array)

    def _give(self, held: elementwise.Operand) -> Any:
        return CardArray(held, self._card)


if TYPE_CHECKING:

    def _is_a_backend(kernels: CardKernels) -> Kernels:
        return kernels
