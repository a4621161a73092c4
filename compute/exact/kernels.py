"""What a backend of the exact class provides: its arithmetic, and nothing of ONNX.

Part of *execute*: ``operators`` turns ONNX nodes into calls of these methods, and
holds all shapes, attributes and data types; a backend holds the arithmetic that
``SPEC.md`` defines. Any two backends give the same bits, or one of them is wrong.

Float arrays are C-contiguous float32 in and out. Program inputs and constants have
been flushed and checked when they entered, so a kernel meets normal numbers, zeros
and, behind a mask, -inf. Every kernel

* flushes its result (SPEC, "Rounding to float32"),
* checks the whole call in this order, so that the code of an error does not depend on
  the order of work: ``k_limit``; -inf among the inputs where its text does not allow
  it, ``infinity``; ``out_of_range``; any result not a number, ``nan``; any result
  infinite, ``infinity``.

A backend may raise an error later than in the call that met it, since a card would have to
be waited for: at the latest when ``settle`` is called or the host takes a value that was
computed since. The error that it raises then is the one that came first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, Self, TypeAlias

from shoal.compute.errors import ProgramError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from shoal.compute.exact.spec import Precision

    Floats: TypeAlias = NDArray[np.float32]
    Integers: TypeAlias = NDArray[np.int64]

ScaleAxis = Literal["column", "k"]
UnaryName = Literal[
    "abs", "ceil", "cos", "erf", "exp", "floor", "gelu", "gelu_tanh", "log", "neg",
    "reciprocal", "relu", "round", "sigmoid", "sign", "sin", "softplus", "sqrt", "tanh",
]  # fmt: skip
BinaryName = Literal["add", "div", "fmod", "max", "min", "mul", "pow", "sub"]
ReduceName = Literal[
    "l1", "l2", "log_sum", "log_sum_exp", "max", "mean", "min", "sum", "sum_square"
]
ErrorCode = Literal[
    "nan", "infinity", "k_limit", "out_of_range", "shape_mismatch", "wrong_dtype",
    "too_large", "unsupported_operator",
]  # fmt: skip

_SENTENCES: dict[ErrorCode, str] = {
    "nan": "{kernel} met or gave a value that is not a number",
    "infinity": "{kernel} met or gave an infinite value that is no mask",
    "k_limit": "{kernel} was asked to sum more than 4194304 terms",
    "out_of_range": "{kernel} was given a value outside its range",
    "shape_mismatch": "{kernel} was given shapes that do not fit",
    "wrong_dtype": "{kernel} was given another data type than it takes",
    "too_large": "{kernel} would make a tensor over the size limit",
    "unsupported_operator": "{kernel} is not part of the exact class",
}


class ExactError(ProgramError):
    """A program or its inputs left the exact class: every node says the same.

    The error is signed into a receipt, so its code, node and operator are as
    deterministic as a result.

    Args:
        message: One sentence that names the cause.
        code: What happened.
        hint: The next thing to do, or "".
        node: The name of the node, or "" until the operator's caller adds it.
        operator: The node's ONNX operator, or "" likewise.
    """

    code = "exact"

    def __init__(
        self,
        message: str,
        *,
        code: ErrorCode,
        hint: str = "",
        node: str = "",
        operator: str = "",
    ) -> None:
        super().__init__(message, hint=hint, code=code, node=node, operator=operator)

    @classmethod
    def in_kernel(cls, code: ErrorCode, kernel: str) -> Self:
        """The error with the sentence that all backends share.

        Args:
            code: What happened.
            kernel: The kernel's name, such as ``exp`` or ``product``.
        """
        return cls(_SENTENCES[code].format(kernel=kernel), code=code)

    def at(self, node: str, operator: str) -> Self:
        """This error, placed in the graph: where it was met, if it knows that already.

        Args:
            node: The name of the node.
            operator: The node's ONNX operator.
        """
        if not self.operator:
            self.node = node
            self.operator = operator
        return self


class Prepared(Protocol):
    """The right operand of a product, quantised once: opaque, valid for one backend."""

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N) of the operand."""

    @property
    def precision(self) -> Precision:
        """The precision it was quantised to."""

    @property
    def axis(self) -> ScaleAxis:
        """The axis that carries its scales."""


class Kernels(Protocol):
    """The arithmetic of the exact class. See the module's text for what all share."""

    # -- errors that are raised late -------------------------------------------------

    def enter(self, node: str, operator: str) -> None:
        """Say whose work the next calls are, for the errors that they meet.

        Args:
            node: The name of the node.
            operator: The node's ONNX operator.
        """

    def settle(self) -> None:
        """Raise the first error that was met and not raised yet, and forget the others.

        Raises:
            ExactError: With its node and operator, where `enter` said them.
        """

    def forget(self) -> None:
        """Forget what was asked for: the run is over, and nobody needs it."""

    def admit(self, x: Floats) -> Floats:
        """A program input or constant as it enters: subnormals become zeros of their sign.

        Raises:
            ExactError: ``nan``; ``infinity`` for +inf (-inf may be a mask and stays).
        """

    # -- products ------------------------------------------------------------------

    def prepare(self, b: Floats, precision: Precision, axis: ScaleAxis) -> Prepared:
        """Quantise the right operand of a product, (K, N), for use in many products.

        Raises:
            ExactError: ``k_limit``, ``nan`` or ``infinity``.
        """

    def product(
        self, a: Floats, b: Floats | Prepared, precision: Precision, axis: ScaleAxis
    ) -> Floats:
        """The matrix product (M, K) x (K, N) -> (M, N) of SPEC, "Products".

        Args:
            a: (M, K); every row carries its own scale.
            b: (K, N), or what ``prepare`` made of it with the same precision and axis.
            precision: One of ``spec.PRECISIONS``.
            axis: "column": each column of b carries a scale; "k": each row of b, whose
                power of two moves into a's column (a zero row drops out: the column
                counts as zeros).

        Raises:
            ExactError: ``k_limit``, ``nan`` or ``infinity``.
        """

    def products(self, a: Floats, b: Floats, precision: Precision, axis: ScaleAxis) -> Floats:
        """A product for each matrix of a batch, (batch, M, K) x (batch, K, N), each by itself.

        The same bits as ``product`` matrix by matrix; one call, so that a backend can
        spread the batch (heads of attention, groups of a convolution) over threads.

        Raises:
            ExactError: ``k_limit``, ``nan`` or ``infinity``.
        """

    def integer_product(self, a: NDArray[np.int32], b: NDArray[np.int32]) -> NDArray[np.int32]:
        """(M, K) x (K, N) of integers, |values| <= 2^9, modulo 2^32 into int32.

        Raises:
            ExactError: ``k_limit``.
        """

    # -- elementwise ---------------------------------------------------------------

    def unary(self, name: UnaryName, x: Floats) -> Floats:
        """One function of every element, of any shape. Refuses -inf.

        Raises:
            ExactError: ``nan``, ``infinity``; ``out_of_range`` for sin and cos beyond 2^20.
        """

    def binary(self, name: BinaryName, x: Floats, y: Floats) -> Floats:
        """One operation on every pair of elements, broadcast as numpy does.

        ``add`` and ``max`` allow -inf on either side; the others refuse it.

        Raises:
            ExactError: ``nan`` or ``infinity``.
        """

    # -- rows: x is (rows, n), n <= 2^22 ---------------------------------------------

    def reduce_rows(self, name: ReduceName, x: Floats) -> Floats:
        """One number of every row, (rows, n) -> (rows,). Refuses -inf.

        Raises:
            ExactError: ``k_limit``, ``infinity``; ``nan``, also for mean, max and min of
                nothing.
        """

    def average_rows(self, x: Floats, counts: Integers) -> Floats:
        """The fixed-point sum of every row over its count: pooling, where padding is zero.

        Args:
            x: (rows, n).
            counts: (rows,). A row of count 0, a window of nothing but padding, is zeros.

        Raises:
            ExactError: ``k_limit``, ``infinity``; ``nan``, also for a count of 0.
        """

    def cumsum_rows(self, x: Floats, *, exclusive: bool, reverse: bool) -> Floats:
        """Running sums along every row, (rows, n) -> (rows, n).

        Raises:
            ExactError: ``k_limit``, ``nan`` or ``infinity``.
        """

    def softmax_rows(self, x: Floats) -> Floats:
        """Softmax of every row; -inf gives 0, a row of nothing but -inf is ``nan``.

        Raises:
            ExactError: ``k_limit``, ``nan`` or ``infinity``.
        """

    def log_softmax_rows(self, x: Floats) -> Floats:
        """Logarithm of softmax of every row. Refuses -inf.

        Raises:
            ExactError: ``k_limit``, ``nan`` or ``infinity``.
        """

    def layer_norm_rows(
        self, x: Floats, w: Floats | None, b: Floats | None, eps: float
    ) -> Floats:
        """Every row less its mean, over its deviation, times w, plus b.

        Args:
            x: (rows, n).
            w: (groups, n), where row i takes w[i % groups]; groups divides rows. None: no
                multiplication.
            b: Likewise. None: no addition.
            eps: The float32 attribute, widened.

        Raises:
            ExactError: ``k_limit``, ``nan`` or ``infinity``.
        """

    def rms_norm_rows(self, x: Floats, w: Floats | None, eps: float) -> Floats:
        """Every row over its root mean square, times w, as in ``layer_norm_rows``.

        Raises:
            ExactError: ``k_limit``, ``nan`` or ``infinity``.
        """

    def batch_norm(
        self, x: Floats, scale: Floats, b: Floats, mean: Floats, var: Floats, eps: float
    ) -> Floats:
        """Inference batch normalisation of x, (N, C, S), by per-channel (C,) statistics.

        Raises:
            ExactError: ``nan`` or ``infinity``.
        """

    # -- scatter ---------------------------------------------------------------------

    def scatter_add(self, data: Floats, indices: Integers, updates: Floats) -> Floats:
        """A copy of data with the updates added at their targets, in no order.

        Args:
            data: (size,).
            indices: (count,), each in [0, size): checked by the caller.
            updates: (count,).

        Raises:
            ExactError: ``k_limit``, ``nan`` or ``infinity``.
        """


class AtOnce:
    """A backend that raises every error in the call that meets it."""

    def enter(self, node: str, operator: str) -> None:
        """See `Kernels.enter`."""

    def settle(self) -> None:
        """See `Kernels.settle`."""

    def forget(self) -> None:
        """See `Kernels.forget`."""
