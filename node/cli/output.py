"""What commands print, for people and for programs, and what they exit with."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from contextvars import ContextVar
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec

from shoal.node.errors import ConfigError, DaemonError, DaemonUnreachableError, WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from shoal.crypto.errors import ShoalError

SCHEMA_VERSION = 1
"""As `records.SCHEMA_VERSION`, here so that ``shoal version`` needs no records."""

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_PERMISSION = 4
EXIT_TIMEOUT = 5
EXIT_INTERRUPTED = 130

_EXIT_OF_CODE = {
    "home_unwritable": EXIT_PERMISSION,
    "interrupted": EXIT_INTERRUPTED,
    "key_exposed": EXIT_PERMISSION,
    "key_unreadable": EXIT_PERMISSION,
    "key_unwritable": EXIT_PERMISSION,
    "config_unreadable": EXIT_PERMISSION,
    "network_key_exposed": EXIT_PERMISSION,
    "network_key_unreadable": EXIT_PERMISSION,
    "network_key_unwritable": EXIT_PERMISSION,
    "socket_forbidden": EXIT_PERMISSION,
    "socket_unwritable": EXIT_PERMISSION,
    "bad_setting": EXIT_USAGE,
    "bad_network_name": EXIT_USAGE,
    "config_malformed": EXIT_USAGE,
    "unknown_setting": EXIT_USAGE,
    "usage": EXIT_USAGE,
}


_ID_TAIL = 8
"""Characters of a shortened id: its last, for peer ids all begin alike."""

_QUOTED_COMMAND = re.compile(r"`(shoal ([a-z]+)[^`]*)`")
_ANYWHERE = ("completion", "demo", "version")
"""Commands that mean no particular daemon."""

_HOME_ALONE = ("identity", "init")
"""Commands to which the socket means nothing."""

_place_flags: ContextVar[dict[str, str]] = ContextVar("_place_flags")


def exit_code_of(error: ShoalError) -> int:
    """The exit code that tells of ``error``."""
    if error.code in _EXIT_OF_CODE:
        return _EXIT_OF_CODE[error.code]
    match error:
        case DaemonUnreachableError():
            return EXIT_UNREACHABLE
        case WaitTimeoutError():
            return EXIT_TIMEOUT
        case DaemonError(status=403):
            return EXIT_PERMISSION
        case ConfigError(code="config"):
            return EXIT_USAGE
    return EXIT_FAILED


def print_json(body: dict[str, Any]) -> None:
    """One JSON object on stdout, with the version of its form."""
    data = msgspec.json.encode({"schema_version": SCHEMA_VERSION, **body})
    print(data.decode())


def print_error(code: str, message: str, hint: str, *, as_json: bool) -> None:
    """An error: a sentence and the next step on stderr, an object on stdout."""
    if as_json:
        print_json({"error": {"code": code, "message": message, "hint": runnable(hint)}})
    note(message if code == "interrupted" else f"error: {message}")
    if hint:
        note(f"  next: {hint}")


def remember_place(tokens: Sequence[str]) -> None:
    """Note the --home and --socket of this command line, so that hints carry them."""
    flags = {}
    for token, following in pairwise([*tokens, ""]):
        flag, separator, value = token.partition("=")
        if flag in ("--home", "--socket"):
            flags[flag] = value if separator else following
    _place_flags.set(flags)


def runnable(text: str) -> str:
    """``text`` with each `shoal …` that it quotes meaning the same daemon as this command.

    A command that is to be given on another machine stands in “…” and stays as it is.
    """

    def complete(quoted: re.Match[str]) -> str:
        command, name = quoted.groups()
        if name in _ANYWHERE or re.search("--(help|home|socket)", command):
            return quoted[0]
        flags = [
            f" {flag} {shlex.quote(value)}"
            for flag, value in _place_flags.get({}).items()
            if flag == "--home" or name not in _HOME_ALONE
        ]
        return f"`{command}{''.join(flags)}`"

    return _QUOTED_COMMAND.sub(complete, text)


def printable(text: str) -> str:
    """``text`` without what would move a terminal's cursor: peers write some of it."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def note(text: str) -> None:
    """A line for the person who watches; never data."""
    print(runnable(printable(text)), file=sys.stderr, flush=True)


def print_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    """A name and its value on each line."""
    rows = [(name, runnable(printable(str(value)))) for name, value in pairs]
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], ids: Collection[str] = ()
) -> None:
    """Columns, for people; programs use ``--json``.

    Args:
        headings: One for each column.
        rows: As many cells in each.
        ids: Headings of the columns whose cells are shortened where the table is
            wider than the terminal; not where stdout is none.
    """
    texts = [list(headings), *([_cell(cell) for cell in row] for row in rows)]
    widths = _widths(texts)
    if ids and sys.stdout.isatty() and sum(widths) + 2 * len(widths) > _columns():
        texts[1:] = [
            [
                f"…{cell[-_ID_TAIL:]}" if heading in ids and len(cell) > _ID_TAIL else cell
                for heading, cell in zip(headings, row, strict=True)
            ]
            for row in texts[1:]
        ]
        widths = _widths(texts)
    for row in texts:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _widths(texts: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*texts, strict=True)]


def _columns() -> int:
    return shutil.get_terminal_size().columns


def _cell(value: object) -> str:
    return printable(str(value)).replace("\n", " ")


def network_text(name: str, fingerprint: str) -> str:
    """A network for people: ``lab (private, fingerprint 5f2c…)``."""
    return f"{name} (private, fingerprint {fingerprint})" if fingerprint else name


def size_text(size_bytes: int) -> str:
    """A size for people: ``1.4 GB``."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def duration_text(duration_s: float) -> str:
    """A duration for people: ``2 h 5 min``."""
    if duration_s < 1:
        return f"{duration_s * 1000:.0f} ms"
    if duration_s < 60:
        return f"{duration_s:.1f} s"
    minutes = int(duration_s // 60)
    if minutes < 60:
        return f"{minutes} min {int(duration_s % 60)} s"
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min"
