"""`Kernels` on CPUs: one class over the modules of this package.

Part of *execute*. Importing this compiles every kernel, or loads it from the disk
(`compiled`): nothing compiles later. A worker makes its `CpuKernels`, calls `warm_up`
and can then lock itself in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from shoal.compute.exact.cpu import draw, elementwise, product, sums
from shoal.compute.exact.cpu.threads import Threads
from shoal.compute.exact.kernels import AtOnce
from shoal.compute.exact.spec import X20

if TYPE_CHECKING:
    from numpy.typing import NDArray

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

__all__ = ["CpuKernels"]


class CpuKernels(AtOnce):
    """`Kernels` on this machine's processor cores. Thread-safe, one call at a time is fastest.

    Args:
        threads: How many threads compute; None: as many as the process may use cores.
            The process's BLAS is held to one thread of its own.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._threads = Threads(threads)

    def warm_up(self) -> None:
        """Start the threads, and BLAS in each: what a locked-in process may be refused."""
        self._threads.start()
        square = np.ones((64, 64), np.float32)
        self.product(square, square, X20, "column")

    @property
    def threads(self) -> Threads:
        """The threads that compute."""
        return self._threads

    def empty(self, rows: int, size: int) -> Floats:
        """See `shoal.compute.challenge_work.Arithmetic`."""
        return np.empty((rows, size), np.float32)

    def draw(self, key: int, stream: int, first: int, out: Floats) -> None:
        """Fill ``out`` with numbers for a capability challenge; see `draw.numbers`."""
        draw.numbers(key, stream, first, out, self._threads)

    def admit(self, x: Floats) -> Floats:
        """See `Kernels.admit`."""
        return elementwise.admit(x, self._threads)

    def prepare(self, b: Floats, precision: Precision, axis: ScaleAxis) -> product.Quantised:
        """See `Kernels.prepare`."""
        return product.prepare(b, precision, axis, self._threads)

    def product(
        self, a: Floats, b: Floats | Prepared, precision: Precision, axis: ScaleAxis
    ) -> Floats:
        """See `Kernels.product`."""
        if isinstance(b, np.ndarray):
            b = self.prepare(b, precision, axis)
        assert isinstance(b, product.Quantised), "prepared by another backend"
        return product.product(a, b, self._threads)

    def products(self, a: Floats, b: Floats, precision: Precision, axis: ScaleAxis) -> Floats:
        """See `Kernels.products`."""
        return product.product_batch(a, b, precision, axis, self._threads)

    def integer_product(self, a: NDArray[np.int32], b: NDArray[np.int32]) -> NDArray[np.int32]:
        """See `Kernels.integer_product`."""
        return product.integer_product(a, b)

    def unary(self, name: UnaryName, x: Floats) -> Floats:
        """See `Kernels.unary`."""
        return elementwise.unary(name, x, self._threads)

    def binary(self, name: BinaryName, x: Floats, y: Floats) -> Floats:
        """See `Kernels.binary`."""
        return elementwise.binary(name, x, y, self._threads)

    def reduce_rows(self, name: ReduceName, x: Floats) -> Floats:
        """See `Kernels.reduce_rows`."""
        return sums.reduce_rows(name, x, self._threads)

    def average_rows(self, x: Floats, counts: Integers) -> Floats:
        """See `Kernels.average_rows`."""
        return sums.average_rows(x, counts, self._threads)

    def cumsum_rows(self, x: Floats, *, exclusive: bool, reverse: bool) -> Floats:
        """See `Kernels.cumsum_rows`."""
        return sums.cumsum_rows(x, exclusive, reverse, self._threads)

    def softmax_rows(self, x: Floats) -> Floats:
        """See `Kernels.softmax_rows`."""
        return sums.softmax_rows(x, self._threads, logarithm=False)

    def log_softmax_rows(self, x: Floats) -> Floats:
        """See `Kernels.log_softmax_rows`."""
        return sums.softmax_rows(x, self._threads, logarithm=True)

    def layer_norm_rows(
        self, x: Floats, w: Floats | None, b: Floats | None, eps: float
    ) -> Floats:
        """See `Kernels.layer_norm_rows`."""
        return sums.layer_norm_rows(x, w, b, eps, self._threads)

    def rms_norm_rows(self, x: Floats, w: Floats | None, eps: float) -> Floats:
        """See `Kernels.rms_norm_rows`."""
        return sums.rms_norm_rows(x, w, eps, self._threads)

    def batch_norm(
        self, x: Floats, scale: Floats, b: Floats, mean: Floats, var: Floats, eps: float
    ) -> Floats:
        """See `Kernels.batch_norm`."""
        return sums.batch_norm(x, scale, b, mean, var, eps, self._threads)

    def scatter_add(self, data: Floats, indices: Integers, updates: Floats) -> Floats:
        """See `Kernels.scatter_add`."""
        return sums.scatter_add(data, indices, updates)


if TYPE_CHECKING:
    _: Kernels = CpuKernels()
