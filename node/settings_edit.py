"""Changing a list in the settings file, and leaving whatever else its owner wrote there.

Pure: text in, text out. A peer is put in or taken out where the list stands, so that
comments keep their places; what came of it is then read and compared with what was
wanted, and a file that is written in some other way is left alone, with the line to write.
"""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING

from shoal.node.errors import ConfigError
from shoal.node.settings_file import toml

if TYPE_CHECKING:
    from collections.abc import Sequence


def with_item(text: str, name: str, item: str) -> str:
    """The file's text with ``item`` in the list ``name``; as it was where it is there already.

    Args:
        text: Valid TOML without tables, as every settings file is.
        name: The setting.
        item: Text without quotes and escapes.

    Raises:
        ConfigError: ``list_not_changed``: the list stands there in no form known here.
    """
    held = _held(text, name)
    if item in held:
        return text
    quoted = toml(item)
    if found := _opening(text, name):
        quoted += ", " if held else ""
        changed = text[: found.end()] + quoted + text[found.end() :]
    elif found := re.search(
        rf"^#({name} = .*)\n?", text, re.MULTILINE
    ):  # as `shoal init` wrote it
        line = f"# Default: {found[1]}\n{name} = [{quoted}]\n"
        changed = text[: found.start()] + line + text[found.end() :]
    else:
        end = "" if text.endswith("\n") or not text else "\n"
        changed = f"{text}{end}{name} = [{quoted}]\n"
    return _checked(text, changed, name, [*held, item])


def without_item(text: str, name: str, item: str) -> str:
    """The file's text with ``item`` no more in the list ``name``.

    Raises:
        ConfigError: ``list_not_changed``, as `with_item`.
    """
    held = _held(text, name)
    if item not in held:
        return text
    changed, wanted = text, [each for each in held if each != item]
    if found := _opening(text, name):
        rest = re.sub(
            rf"""(["']){re.escape(item)}\1[ \t]*,?[ \t]*""", "", text[found.end() :], count=1
        )
        changed = text[: found.end()] + rest
    return _checked(text, changed, name, wanted)


def _opening(text: str, name: str) -> re.Match[str] | None:
    return re.search(rf"^[ \t]*{name}[ \t]*=[ \t]*\[", text, re.MULTILINE)


def _held(text: str, name: str) -> list[str]:
    value = tomllib.loads(text).get(name, [])
    if isinstance(value, str):  # a text with commas means the same
        return [part.strip() for part in value.split(",") if part.strip()]
    return value if isinstance(value, list) else []


def _checked(text: str, changed: str, name: str, wanted: Sequence[str]) -> str:
    """``changed``, where it says what is wanted and all else as before."""
    try:
        found = tomllib.loads(changed)
    except tomllib.TOMLDecodeError:
        found = {}
    before = tomllib.loads(text)
    listed = found.pop(name, None)
    before.pop(name, None)
    if found != before or not isinstance(listed, list) or sorted(listed) != sorted(wanted):
        raise ConfigError(
            f"`{name}` is not written as a list that a command can change",
            code="list_not_changed",
            hint=f"write `{name} = {toml(list(wanted))}` there, then `shoal reload`",
        )
    return changed
