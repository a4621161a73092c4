"""The settings of a running daemon, and what reading them again changes.

`Config` is frozen and whole; `LiveConfig` holds the one that counts now, and whoever
acts on a setting asks it at that moment. Reading again is all or nothing: settings
in which anything is wrong change nothing, and what is wrong is kept for
``shoal status``. Of good ones those rows of the table that are live (`node.settings`)
count at once, and the others are named, because they take a restart. Flags and
variables that the daemon was started with go before the file as they did then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog
import trio

from shoal.node.errors import ConfigError
from shoal.node.settings import SETTINGS
from shoal.node.status_views import ReloadView

if TYPE_CHECKING:
    from shoal.node.config import Config

log = structlog.get_logger(__name__)


# --- decisions: pure -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """What settings that were read again mean to a daemon that runs.

    Attributes:
        config: The settings that count from now on.
        changed: Names of live settings that are others now.
        needs_restart: Names of those that are others and count after a restart only.
    """

    config: Config
    changed: tuple[str, ...]
    needs_restart: tuple[str, ...]


def change(running: Config, found: Config) -> Change:
    """Compare the settings that count with those that were read again."""
    differing = [
        setting
        for setting in SETTINGS
        if getattr(running, setting.attribute) != getattr(found, setting.attribute)
    ]
    live = [setting for setting in differing if setting.live]
    return Change(
        config=replace(
            running,
            **{setting.attribute: getattr(found, setting.attribute) for setting in live},
            sources={**running.sources, **{s.name: found.sources[s.name] for s in live}},
            warnings=found.warnings,
        ),
        changed=tuple(setting.name for setting in live),
        needs_restart=tuple(
            setting.name
            for setting in differing
            # A default may be of the machine: memory that was taken away since the
            # start is nothing that the operator has asked for.
            if not setting.live
            and {running.sources[setting.name], found.sources[setting.name]} != {"default"}
        ),
    )


def view(result: Change) -> ReloadView:
    """What a client is told of a change."""
    return ReloadView(
        changed=result.changed,
        needs_restart=result.needs_restart,
        unchanged=len(SETTINGS) - len(result.changed) - len(result.needs_restart),
        warnings=result.config.warnings,
    )


# --- effects -----------------------------------------------------------------------


class LiveConfig:
    """The settings that count now; call it to have them.

    Args:
        config: Those of the start.
        reread: Reads them again from where they came from; may raise ConfigError.
        apply: Makes whatever keeps a setting of its own follow: given the change.
    """

    def __init__(
        self,
        config: Config,
        reread: Callable[[], Config],
        apply: Callable[[Change], None] = lambda _change: None,
    ) -> None:
        self._config = config
        self._reread = reread
        self.apply = apply
        self._one_at_a_time = trio.Lock()
        self.complaint: ConfigError | None = None
        """What was wrong when they were read last."""
        self.needs_restart: tuple[str, ...] = ()
        """What has been set since the start and does not count yet."""

    def __call__(self) -> Config:
        """The settings at this moment."""
        return self._config

    async def reload(self) -> Change:
        """Read the settings again.

        Raises:
            ConfigError: Something is wrong with them; then nothing has changed.
        """
        async with self._one_at_a_time:
            try:
                found = await trio.to_thread.run_sync(self._reread)
            except ConfigError as error:
                self.complaint = error
                log.error("the settings stay as they are", error=error.message, next=error.hint)
                raise
            news = [text for text in found.warnings if text not in self._config.warnings]
            result = change(self._config, found)
            self._config, self.complaint = result.config, None
            self.needs_restart = result.needs_restart
            self.apply(result)
            log.info(
                "the settings were read again",
                changed=result.changed,
                needs_restart=result.needs_restart,
            )
            for warning in news:
                log.warning("a setting does not hold as it stands", warning=warning)
            return result
