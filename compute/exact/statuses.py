"""What a loop over numbers met, as the backends of the exact class count it.

Part of *execute*. A loop gives one number for all that it met; the greatest decides,
which is the order that `shoal.compute.exact.kernels` states.
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

_CODES: Final[dict[int, ErrorCode]] = {
    INFINITE: "infinity",
    NAN: "nan",
    OUT_OF_RANGE: "out_of_range",
    MASKED: "infinity",
}


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
