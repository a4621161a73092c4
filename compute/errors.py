"""What can go wrong with a program, and with computing one: two families.

A `ProgramError` is the program's or its inputs' own fault: every node would say
the same, so the sentence can be signed into a receipt. A `ComputeError` is about
this node and this attempt: a limit, a worker that died, a library that is not
there. Another node may well succeed.
"""

from __future__ import annotations

from shoal.crypto.errors import ShoalError


class _PlacedError(ShoalError):
    """An error that knows where in the graph it happened, where that is known.

    Args:
        message: One sentence that names the cause.
        hint: The next thing to do, or "".
        code: A stable snake_case name.
        node: The name of the node, or "".
        operator: The node's operator, such as ``Reshape``, or "".
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        code: str | None = None,
        node: str = "",
        operator: str = "",
    ) -> None:
        super().__init__(message, hint=hint, code=code)
        self.node = node
        self.operator = operator


class ProgramError(_PlacedError):
    """A program, tensor or input that is at fault itself: every node would say the same."""

    code = "program"


class ComputeError(_PlacedError):
    """This node could not finish the unit: a limit was met, or its worker failed."""

    code = "compute"
