"""What a check finds: a verdict, a sentence, the next step; and how many sum up. Pure."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.crypto.errors import ShoalError

_CIRCULAR = re.compile(r"[^;,]*`shoal doctor`[^;,]*[;,]?\s*")
"""A clause that sends the reader here, where the reader is."""


class Verdict(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


class Finding(msgspec.Struct, frozen=True):
    """What one check found, and the next step where there is one."""

    check: str
    verdict: Verdict
    message: str
    hint: str = ""


def ok(check: str, message: str) -> Finding:
    """All is well."""
    return Finding(check, Verdict.OK, message)


def warning(check: str, message: str, hint: str = "") -> Finding:
    """Something that may be meant, or that will hurt later."""
    return Finding(check, Verdict.WARNING, message, hint)


def failure(check: str, message: str, hint: str = "") -> Finding:
    """Something that does not work."""
    return Finding(check, Verdict.FAILURE, message, hint)


def failure_of(check: str, error: ShoalError) -> Finding:
    """The finding for an error; a hint that only sends the reader here is left out."""
    return failure(check, error.message, without_circle(error.hint))


def without_circle(hint: str) -> str:
    """``hint`` without the clauses that recommend `shoal doctor`."""
    return _CIRCULAR.sub("", hint).rstrip("; ,")


def summary(findings: Sequence[Finding]) -> str:
    """One line for the end: how many of each, and which to begin with."""
    failures, warnings = (
        [each for each in findings if each.verdict is verdict]
        for verdict in (Verdict.FAILURE, Verdict.WARNING)
    )
    counted = [
        f"{len(found)} {word}{'s' if len(found) > 1 else ''}"
        for found, word in ((failures, "failure"), (warnings, "warning"))
        if found
    ]
    if not counted:
        return "all is well"
    first = (failures or warnings)[0]
    begin = f"begin with {first.check}"
    if first.hint:
        begin += f": {first.hint}"
    return f"{', '.join(counted)}: {begin}"
