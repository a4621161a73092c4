"""The settings file as TOML: read within a bound, its errors said so that one can mend it.

Part of every start. Which settings there are and what they may be is
`node.settings`'s.
"""

from __future__ import annotations

import json
import re
import tomllib
from typing import TYPE_CHECKING

from shoal.node.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_FILE_LIMIT_BYTES = 1 << 20

_UNQUOTED = re.compile(r"\s*([A-Za-z_]+)\s*=\s*([^\s\"'\[\]{}#=]+)\s*(#.*)?")
"""A line such as ``memory = 8GB``, whose value is no TOML for want of quotes."""


def read_settings_file(path: Path) -> dict[str, object]:
    """Read the file's keys and values; none where there is no file.

    Raises:
        ConfigError: ``config_unreadable`` or ``config_malformed``.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_LIMIT_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return {}  # a home that is no directory is refused where it is opened
    except OSError as error:
        raise ConfigError(
            f"the settings file {path} cannot be read: {error.strerror}",
            code="config_unreadable",
            hint="make it readable, or choose another directory with --home",
        ) from None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ConfigError(
            f"the settings file {path} is not text in UTF-8",
            code="config_malformed",
            hint="write it anew; `shoal init` writes one into a home that has none",
        ) from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"the settings file {path} is not TOML: {error}",
            code="config_malformed",
            hint=_how_to_mend(text, str(error)),
        ) from None


def toml(value: object) -> str:
    """A value as it stands in the file."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return json.dumps(str(value), ensure_ascii=False)


def _how_to_mend(text: str, complaint: str) -> str:
    at = re.search(r"at line (\d+)", complaint)
    lines = text.splitlines()
    number = int(at[1]) if at else len(lines)
    unquoted = _UNQUOTED.fullmatch(lines[number - 1]) if number <= len(lines) else None
    if unquoted:
        return f"quote it: {unquoted[1]} = {toml(unquoted[2])}"
    return f"mend line {number}; a line reads NAME = VALUE, with texts in quotes"
