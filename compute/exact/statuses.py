"""What a loop over numbers met, as the backends of the exact class count it.

Part of *execute*. A loop gives one number for all that it met; the greatest decides,
which is the order that `shoal.compute.exact.kernels` states. A loop over several operations
puts above it how many operations follow, so that the first one decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shoal.compute.exact.kernels import ExactError

if TYPE_CHECKING:
    from shoal.compute.exact.kernels import ErrorCode

FINE: Final = 0
INFINITE: Final = 1
NAN: Final = 2
OUT_OF_RANGE: Final = 3
MASKED: Final = 4

STATUS_BITS: Final = 3

_CODES: Final[dict[int, ErrorCode]] = {
    INFINITE: "infinity",
    NAN: "nan",
    OUT_OF_RANGE: "out_of_range",
    MASKED: "infinity",
}


def first_met(code: int, operations: int) -> tuple[int, int]:
    """Which of several operations is the first that met something, and what.

    Args:
        code: The greatest ``(operations - 1 - place) << STATUS_BITS | status``, not FINE.
        operations: How many there are.

    Returns:
        Its place, and its status.
    """
    return operations - 1 - (code >> STATUS_BITS), code & ((1 << STATUS_BITS) - 1)


def check(kernel: str, status: int) -> None:
    """Raise what a status says.

    Args:
        kernel: The kernel's name, such as ``exp`` or ``product``.
        status: The greatest that was met.

    Raises:
        ExactError: Unless it is FINE.
    """
    if status != FINE:
        raise ExactError.in_kernel(_CODES[status], kernel)
