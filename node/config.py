"""The settings that count: read from flags, environment and file, or their defaults.

Which there are is the table of `node.settings`. Each is looked for in this order:
command-line flag, ``SHOAL_*`` variable, ``HOME/config.toml``, default. In the file an
unknown key is refused with a suggestion. In the environment it is not, because container
runtimes put variables such as ``SHOAL_PORT`` there by themselves; it is a warning of the
`Config`, which the daemon logs at its start.

Where the local socket is:

- where ``--socket``, ``SHOAL_SOCKET`` or the file says;
- ``HOME/shoal.sock`` where the home was given (``--home`` or ``SHOAL_HOME``),
  so that several daemons on one machine never collide;
- ``$XDG_RUNTIME_DIR/shoal/shoal.sock``, or ``HOME/shoal.sock`` without one.

Where a client looks for it is `node.daemon_place`'s.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from shoal.node.errors import ConfigError
from shoal.node.schedule import Schedule
from shoal.node.settings import ENVIRONMENT_PREFIX, HOME, SETTINGS, SOCKET, Setting
from shoal.node.settings_file import read_settings_file, toml
from shoal.node.shares import is_share, usable_cores

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shoal.crypto.peer_id import PeerId

SOCKET_PATH_LIMIT_BYTES = 107
"""Of a Unix socket's path on Linux: ``sun_path`` without its final zero."""

_FILE_HEAD = """\
# Settings of the shoal daemon.
#
# A line `#NAME = VALUE`, with no space after its #, is a setting with its default, which is
# in force. To set another value, take that # away and change the value; `shoal reload` then
# has a running daemon read this file again. Lines with a space after the # only explain.
#
# A command-line flag goes before a SHOAL_* variable, and that before this file. "" stands
# for not set. Times are written 45s, 90m, 2h, 1h30m or 3d, and a number alone is of seconds;
# sizes 512MiB or 20GB, and a number alone is of bytes."""
_WHEN = {True: "", False: " Takes a restart."}

_READ_ELSEWHERE = {"SHOAL_DEVICES_ROOT"}  # by the processes that look for cards


@dataclass(frozen=True, slots=True)
class Config:
    """Everything an operator can set, checked.

    Attributes:
        home: Directory of the key, the state and the blobs.
        socket: Where the daemon serves its local API.
        listen: Multiaddrs that the network listens on.
        bulk: The port of bulk channels, ``auto`` or ``off``: see `node.bulk.listener`.
        bulk_announce: Where peers are told to dial it, as host and port; None for where
            this node is connected.
        bootstrap: Where to join: multiaddrs of nodes, each with its peer id, and
            ``/dnsaddr`` names.
        lan: Whether this node is announced, and others are looked for, by mDNS.
        allow: Friends, whose work is accepted like the node's own.
        deny: Peers whose work is never accepted.
        serve: Whose else: ``anyone``'s, where a sandbox is to be had, ``friends`` only,
            or ``those-who-serve``: see `node.ledger`.
        min_price: Credits that a unit must be worth to be taken of a peer.
        time_limit_s: Time that a peer's unit may ask for.
        schedule: The hours in which peers' work is taken; always where it is empty.
        step_back: From which share of the machine on, used by the owner's own
            processes, peers' work is not taken; None for never.
        name: What the operator calls this machine, in logs only.
        provide: Whether units are taken from peers at all.
        cores: Processor cores that units may use.
        memory_bytes: Memory that units may use.
        units_per_card: How many units a card runs at once, where its memory allows.
        niceness: How far units yield to other processes.
        blob_quota_bytes: Disk space that blobs may take.
        results_quota_bytes: What jobs may take in the journal before those that were
            fetched are forgotten.
        results_keep_s: How long results that nobody fetched are kept in any case.
        log_level: ``debug``, ``info``, ``warning`` or ``error``.
        log_file: Where the log goes; None for stderr.
        drain_s: What running units get to end when the daemon is told to end.
        socket_group: The group that may use the socket too; "" for none.
        metrics: Where metrics are served beside the socket, as host and port; None
            for nowhere.
        sources: For each setting where it came from: ``flag``, ``environment``,
            ``file`` or ``default``.
        warnings: What is set and does not hold as it stands, each a sentence.
    """

    home: Path
    socket: Path
    listen: tuple[str, ...]
    bulk: str | int
    bulk_announce: tuple[str, int] | None
    bootstrap: tuple[str, ...]
    lan: bool
    allow: tuple[PeerId, ...]
    deny: tuple[PeerId, ...]
    serve: str
    min_price: float
    time_limit_s: float
    schedule: Schedule
    step_back: float | None
    name: str
    provide: bool
    cores: int
    memory_bytes: int
    units_per_card: int
    niceness: int
    blob_quota_bytes: int
    results_quota_bytes: int
    results_keep_s: float
    log_level: str
    log_file: Path | None
    drain_s: float
    socket_group: str
    metrics: tuple[str, int] | None
    sources: Mapping[str, str]
    warnings: tuple[str, ...] = ()

    @property
    def file_path(self) -> Path:
        """Where the settings file is, or would be."""
        return _file_path(self.home)

    @property
    def key_path(self) -> Path:
        """Where the node's Ed25519 key is."""
        return _key_path(self.home)

    @property
    def swarm_key_path(self) -> Path:
        """Where the secret of the node's private network is, if it is in one."""
        return _swarm_key_path(self.home)


@dataclass(frozen=True, slots=True)
class Location:
    """Where a daemon is, as far as the settings tell.

    Attributes:
        home: As in `Config`, with where that came from.
        socket: As in `Config`, with where that came from.
        complaint: What is wrong with the settings file, where it was looked into.
    """

    home: Path
    home_source: str
    socket: Path
    socket_source: str
    complaint: ConfigError | None

    @property
    def key_path(self) -> Path:
        """Where the node's Ed25519 key is."""
        return _key_path(self.home)

    @property
    def swarm_key_path(self) -> Path:
        """Where the secret of the node's private network is, if it is in one."""
        return _swarm_key_path(self.home)


def load(
    flags: Mapping[str, object] | None = None, environment: Mapping[str, str] | None = None
) -> Config:
    """Read the settings from all their sources.

    Args:
        flags: Values given on the command line, by setting name; None counts as
            not given.
        environment: In place of the process's own.

    Raises:
        ConfigError: A value or the file cannot be used; the sentence names both
            the setting and where it was set.
    """
    flags, environment = _given(flags), os.environ if environment is None else environment
    home, home_source = _home(flags, environment)
    from_file = read_settings_file(_file_path(home))
    _refuse_unknown(from_file, str(_file_path(home)))
    values: dict[str, object] = {"home": home}
    sources = {"home": home_source}
    for setting in SETTINGS[1:]:
        value, sources[setting.name] = _first_of(setting, flags, environment, from_file, home)
        values[setting.attribute] = value
    if values["socket"] is None:
        values["socket"] = _default_socket(home, home_source, environment)
    _check_socket_path(Path(str(values["socket"])))
    warnings = [_unknown_variable(name) for name in unknown_variables(environment)]
    cores, usable = int(str(values["cores"])), usable_cores()
    if cores > usable:  # a file from a larger machine, or a smaller container, still works
        warnings.append(f"cores is {cores}, and this process may use {usable}: {usable} it is")
        values["cores"] = usable
    if values["provide"] and values["serve"] == "friends" and not _friends(values):
        warnings.append(
            'serve is "friends" and no peer is allowed, so nobody but this node\'s own user is '
            "served: `shoal allow PEER_ID` lets one in"
        )
    return Config(
        **values,  # type: ignore[arg-type]  # each was read by its row of the table
        sources=MappingProxyType(sources),
        warnings=tuple(warnings),
    )


def locate(
    flags: Mapping[str, object] | None = None, environment: Mapping[str, str] | None = None
) -> Location:
    """Find home and socket alone, for who needs no more: whatever else the file says.

    Raises:
        ConfigError: A flag cannot be used, or the socket's path is too long.
    """
    flags, environment = _given(flags), os.environ if environment is None else environment
    home, home_source = _home(flags, environment)
    complaint = None
    socket, source = _first_of(SOCKET, flags, environment, {}, home)
    if socket is None:
        try:
            from_file = read_settings_file(_file_path(home))
            socket, source = _first_of(SOCKET, {}, {}, from_file, home)
            _refuse_unknown(from_file, str(_file_path(home)))
        except ConfigError as error:
            complaint = error
    if socket is None:
        socket = _default_socket(home, home_source, environment)
    path = Path(str(socket))
    _check_socket_path(path)
    return Location(home, home_source, path, source, complaint)


def unknown_variables(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """``SHOAL_*`` variables that nothing reads."""
    environment = os.environ if environment is None else environment
    known = {setting.variable for setting in SETTINGS} | _READ_ELSEWHERE
    return tuple(
        sorted(n for n in environment if n.startswith(ENVIRONMENT_PREFIX) and n not in known)
    )


def _unknown_variable(variable: str) -> str:
    name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
    close = difflib.get_close_matches(name, [s.name for s in SETTINGS], n=1, cutoff=0.75)
    meant = f"; did you mean {ENVIRONMENT_PREFIX}{close[0].upper()}?" if close else ""
    return f"no setting reads the variable {variable}{meant}"


def file_text(values: Mapping[str, object] | None = None) -> str:
    """A commented settings file; ``values`` are set in it, the rest only shown."""
    values = {name: value for name, value in (values or {}).items() if value not in (None, "")}
    lines = [_FILE_HEAD]
    for setting in SETTINGS:
        if not setting.in_file:
            continue
        name = setting.name
        lines += ["", f"# {setting.help}"]
        lines.append(f"# Example: {name} = {setting.example}")
        lines.append(f"# Also {setting.flag} or {setting.variable}.{_WHEN[setting.live]}")
        if name in values:
            value = values[name]
            read = setting.read(value)
            lines.append(f"# Default: {name} = {setting.in_file}")
            lines.append(f"{name} = {toml(value if is_share(value) else read)}")
        else:
            lines.append(f"#{name} = {setting.in_file}")
    return "\n".join(lines) + "\n"


def _friends(values: Mapping[str, object]) -> set[str]:
    allow, deny = values["allow"], values["deny"]
    assert isinstance(allow, tuple)
    assert isinstance(deny, tuple)
    return set(allow) - set(deny)


def _given(flags: Mapping[str, object] | None) -> dict[str, object]:
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    _refuse_unknown(given, "the command line")
    return given


def _home(flags: Mapping[str, object], environment: Mapping[str, str]) -> tuple[Path, str]:
    home, source = _first_of(HOME, flags, environment, {}, Path())
    return Path(str(home)), source


def _file_path(home: Path) -> Path:
    return home / "config.toml"


def _key_path(home: Path) -> Path:
    return home / "identity.key"


def _swarm_key_path(home: Path) -> Path:
    return home / "swarm.key"


def _first_of(
    setting: Setting,
    flags: Mapping[str, object],
    environment: Mapping[str, str],
    from_file: Mapping[str, object],
    home: Path,
) -> tuple[object, str]:
    name, example = setting.name, setting.example
    bare = example.strip("[]").split('", "')[0].strip('"')
    for source, held, key, where, sample in (
        ("flag", flags, name, setting.flag, f"{setting.flag} {bare}"),
        (
            "environment",
            environment,
            setting.variable,
            setting.variable,
            f"{setting.variable}={bare}",
        ),
        ("file", from_file, name, f"{name} in {_file_path(home)}", f"{name} = {example}"),
    ):
        if key in held and held[key] != "":
            try:
                return setting.read(held[key]), source
            except ValueError as error:
                raise ConfigError(
                    f"{where}: {toml(held[key])[:100]} {error}",
                    code="bad_setting",
                    hint=f"write it as in `{sample}`",
                ) from None
    return setting.default(), "default"


def _refuse_unknown(values: Mapping[str, object], where: str) -> None:
    known = [setting.name for setting in SETTINGS if setting.in_file or where[:1] != "/"]
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f"{where}: there is no setting {name!r}",
                code="unknown_setting",
                hint=f"did you mean {close[0]!r}?"
                if close
                else f"there are {', '.join(known)}",
            )


def _default_socket(home: Path, home_source: str, environment: Mapping[str, str]) -> Path:
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    if runtime and home_source == "default":
        return Path(runtime) / "shoal" / "shoal.sock"
    return home / "shoal.sock"


def _check_socket_path(path: Path) -> None:
    if len(os.fsencode(path)) > SOCKET_PATH_LIMIT_BYTES:
        raise ConfigError(
            f"the socket's path {path} is over {SOCKET_PATH_LIMIT_BYTES} bytes, which is "
            "all that the system allows",
            code="socket_path_too_long",
            hint="give a shorter one with --socket or SHOAL_SOCKET",
        )
