"""Options that commands share: where the daemon is, JSON, and the settings as flags."""

from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from shoal.node.cli.output import note
from shoal.node.config import locate
from shoal.node.errors import ConfigError
from shoal.node.settings import SETTINGS

if TYPE_CHECKING:
    from shoal.node.client import Client

_TALK = "Daemon and output"


@Parameter(name="*", group=_TALK)
@dataclass(frozen=True, kw_only=True)
class Here:
    """Options of every command."""

    home: Annotated[Path | None, Parameter(help="The daemon's home directory.")] = None
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", show_default=False, help="Print JSON.")
    ] = False

    def key_path(self) -> Path:
        """Where the node's key is; a settings file with errors does not matter here."""
        return locate({"home": self.home}).key_path


@Parameter(name="*", group=_TALK)
@dataclass(frozen=True, kw_only=True)
class Daemon(Here):
    """Options of the commands that talk to a daemon."""

    socket: Annotated[Path | None, Parameter(help="The daemon's socket.")] = None

    def client(self) -> "Client":
        """A client of that daemon."""
        client = self.quiet_client()
        complaint = client.place.complaint
        if complaint is not None:
            note(f"warning: no daemon starts with these settings: {complaint.message}")
            note(f"  next: {complaint.hint}")
        return client

    def quiet_client(self) -> "Client":
        """The same without a warning about the settings file."""
        from shoal.node.client import Client

        return Client(self.socket, home=self.home)


def read_time_s(
    flag: str, text: str, *, limit_s: float | None = None, zero: bool = False
) -> float:
    """Read a time as a setting has it, such as 45s or 2h; a number alone is of seconds.

    Raises:
        ConfigError: ``usage``.
    """
    from shoal.node.setting_values import read_duration_s

    try:
        time_s = 0.0 if zero and text.strip() in ("0", "0s") else read_duration_s(text)
        if limit_s is not None and time_s > limit_s:
            raise ValueError(f"is over {limit_s:.0f} s")
    except ValueError as error:
        raise ConfigError(
            f"{flag}: {text!r} {error}", code="usage", hint=f"for example {flag} 60s"
        ) from None
    return time_s


@dataclass(frozen=True, kw_only=True)
class SettingFlags:
    """Every setting as a flag, except the home, which `Here` has."""

    def given(self) -> dict[str, Any]:
        """The values given, by setting name."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def _flag(setting: Any) -> tuple[str, Any, Any]:
    kind = list[str] | None if setting.many else str | None
    parameter = Parameter(
        name=setting.flag,
        help=f"{setting.help} [{setting.variable}]",
        negative="",
        group="Settings",
    )
    return setting.name, Annotated[kind, parameter], field(default=None)


if not TYPE_CHECKING:  # its fields come from the table of settings
    SettingFlags = make_dataclass(
        "SettingFlags",
        [_flag(setting) for setting in SETTINGS if setting.name != "home"],
        bases=(SettingFlags,),
        frozen=True,
        kw_only=True,
    )
    SettingFlags.__module__ = __name__  # cyclopts looks into no class of the module "types"
    SettingFlags = Parameter(name="*")(SettingFlags)
