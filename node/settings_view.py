"""The settings that a daemon runs with, and where each came from, as values for others.

They may be others than the files say now: by flags of its start, by its environment,
or because a file was edited since. ``shoal doctor`` compares. No setting is a secret:
those are files of their own (`config.Config.key_path`, ``swarm_key_path``).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from shoal.node.settings import SETTINGS

if TYPE_CHECKING:
    from shoal.node.config import Config


class SettingView(msgspec.Struct, frozen=True):
    """One setting as it is in force.

    Attributes:
        value: As JSON has it; sizes are in bytes, times in seconds, and what is
            switched off is null.
        source: ``flag``, ``environment``, ``file`` or ``default``.
    """

    name: str
    value: Any
    source: str


def settings_view(config: Config) -> tuple[SettingView, ...]:
    """Every setting of ``config``, in the order of the table."""
    return tuple(
        SettingView(
            setting.name,
            _plain(getattr(config, setting.field or setting.name)),
            config.sources[setting.name],
        )
        for setting in SETTINGS
    )


def _plain(value: object) -> Any:
    match value:
        case tuple():
            return [str(item) for item in value]
        case Path():
            return str(value)
    return value
