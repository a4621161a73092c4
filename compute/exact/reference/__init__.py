"""The reference of the exact class: SPEC.md in plain numpy, obviously right.

Part of *execute* and, more, of *verify*: what this gives is what convicts. Everything
faster is tested against it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.compute.exact.kernels import AtOnce
from shoal.compute.exact.reference import functions, products, rounding, rows

if TYPE_CHECKING:
    from shoal.compute.exact.kernels import Kernels

__all__ = ["ReferenceKernels"]


class ReferenceKernels(AtOnce):
    """`Kernels` by the reference: each method is the function of that name."""

    admit = staticmethod(rounding.admit)
    prepare = staticmethod(products.prepare)
    product = staticmethod(products.product)
    integer_product = staticmethod(products.integer_product)
    products = staticmethod(products.products)
    unary = staticmethod(functions.unary)
    binary = staticmethod(functions.binary)
    reduce_rows = staticmethod(rows.reduce_rows)
    average_rows = staticmethod(rows.average_rows)
    cumsum_rows = staticmethod(rows.cumsum_rows)
    softmax_rows = staticmethod(rows.softmax_rows)
    log_softmax_rows = staticmethod(rows.log_softmax_rows)
    layer_norm_rows = staticmethod(rows.layer_norm_rows)
    rms_norm_rows = staticmethod(rows.rms_norm_rows)
    batch_norm = staticmethod(rows.batch_norm)
    scatter_add = staticmethod(rows.scatter_add)


if TYPE_CHECKING:
    _: Kernels = ReferenceKernels()
