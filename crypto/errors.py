"""The root of every error that shoal raises on purpose, and this layer's own.

Each error carries a stable ``code`` for programs, a sentence for a person, and
a ``hint`` with the next thing to do. Higher layers add their families beside
their code: ``protocol.errors``, ``compute.errors``, ``node.errors``.
"""

from __future__ import annotations

from typing import ClassVar


class ShoalError(Exception):
    """Something shoal refuses or could not do, said so that a person can act.

    Args:
        message: One sentence that names the cause.
        hint: The next thing to do, or "" where there is none.
        code: A stable snake_case name; the class's own when not given.
    """

    code: ClassVar[str] = "shoal_error"

    def __init__(self, message: str, *, hint: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code  # type: ignore[misc]  # an instance may be more specific

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class IdentityError(ShoalError):
    """A key file that is missing, malformed, unreadable or already there."""

    code = "identity"


class VerificationError(ShoalError):
    """Bytes that do not prove what they claim: a signature, an id, a receipt."""

    code = "verification"
