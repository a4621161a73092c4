"""What an operator can set: one table, from which file, environment and flags derive.

A setting is looked for in this order: command-line flag, ``SHOAL_*`` variable,
``HOME/config.toml``, default. In the file an unknown key is refused with a
suggestion. In the environment it is not, because container runtimes put
variables such as ``SHOAL_PORT`` there by themselves; it is a warning of the
`Config`, which the daemon logs at its start.

A setting that is ``live`` applies to a running daemon when its settings are read
again (`node.reload`); another one takes a restart.

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
from shoal.node.setting_values import (
    read_bootstrap,
    read_bulk,
    read_credits,
    read_duration_s,
    read_group,
    read_host_and_port,
    read_level,
    read_listen_addresses,
    read_metrics_place,
    read_niceness,
    read_path,
    read_peers,
    read_schedule,
    read_serve,
    read_size_bytes,
    read_text,
    read_units_at_once,
    read_yes_or_no,
)
from shoal.node.settings_file import read_settings_file, toml
from shoal.node.shares import (
    is_share,
    read_cores_or_share,
    read_memory_or_share,
    read_share_or_off,
    usable_cores,
    usable_memory_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shoal.crypto.peer_id import PeerId

SOCKET_PATH_LIMIT_BYTES = 107
"""Of a Unix socket's path on Linux: ``sun_path`` without its final zero."""

_ENVIRONMENT_PREFIX = "SHOAL_"
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


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table.

    Attributes:
        name: Key in the file; flag and variable are spelled after it.
        metavar: What stands for the value in help texts.
        read: Checks a value from any source, text or TOML; raises ValueError.
        default: Gives the value where no source has one.
        help: One sentence for the operator, with the unit.
        in_file: The default as the file shows it, `""` where the setting is not set by
            default; "" itself for a setting that the file cannot hold.
        example: Another value as it would stand in the file.
        field: Its name in `Config`, where that is not ``name``.
        many: Whether the flag may be repeated.
        live: Whether a change of it applies to a daemon that runs.
    """

    name: str
    metavar: str
    read: Callable[[object], object]
    default: Callable[[], object]
    help: str
    in_file: str
    example: str = ""
    field: str = ""
    many: bool = False
    live: bool = False

    @property
    def attribute(self) -> str:
        """Its field in `Config`."""
        return self.field or self.name

    @property
    def flag(self) -> str:
        """Its command-line flag."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return _ENVIRONMENT_PREFIX + self.name.upper()


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
    socket, source = _first_of(_SOCKET, flags, environment, {}, home)
    if socket is None:
        try:
            from_file = read_settings_file(_file_path(home))
            socket, source = _first_of(_SOCKET, {}, {}, from_file, home)
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
        sorted(n for n in environment if n.startswith(_ENVIRONMENT_PREFIX) and n not in known)
    )


def _unknown_variable(variable: str) -> str:
    name = variable.removeprefix(_ENVIRONMENT_PREFIX).lower()
    close = difflib.get_close_matches(name, [s.name for s in SETTINGS], n=1, cutoff=0.75)
    meant = f"; did you mean {_ENVIRONMENT_PREFIX}{close[0].upper()}?" if close else ""
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
    home, source = _first_of(_HOME, flags, environment, {}, Path())
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


def _default_home() -> Path:
    from platformdirs import user_data_path

    return user_data_path("shoal", appauthor=False)


def _half_of_memory_bytes() -> int:
    return usable_memory_bytes() // 2


_HOME = Setting(
    "home",
    "DIR",
    read_path,
    _default_home,
    "Directory of the key, the state and the blobs.",
    in_file="",  # which lies in it
)

_SOCKET = Setting(
    "socket",
    "PATH",
    read_path,
    lambda: None,  # depends on the home; see _default_socket
    "Unix socket of the local API; not set, it is in $XDG_RUNTIME_DIR/shoal, or in the home.",
    in_file='""',
    example='"/run/user/1000/shoal/shoal.sock"',
)

SETTINGS = (
    _HOME,
    _SOCKET,
    Setting(
        "listen",
        "ADDR",
        read_listen_addresses,
        lambda: ("/ip4/0.0.0.0/tcp/4711",),
        "Addresses on which other nodes reach this one.",
        in_file='["/ip4/0.0.0.0/tcp/4711"]',
        example='["/ip4/192.0.2.7/tcp/4712"]',
        many=True,
    ),
    Setting(
        "bulk",
        "PORT",
        read_bulk,
        lambda: "auto",
        "Port for large blobs: auto for that of listen + 1000, off to send them as small ones.",
        in_file='"auto"',
        example="5711",
    ),
    Setting(
        "bulk_announce",
        "HOST:PORT",
        read_host_and_port,
        lambda: None,
        "Where peers reach the bulk port, where a router forwards another one to it.",
        in_file='""',
        example='"shoal.example:5711"',
    ),
    Setting(
        "bootstrap",
        "ADDR",
        read_bootstrap,
        tuple,
        "Nodes to join through, as /ip4/1.2.3.4/tcp/4711/p2p/PEER_ID or /dnsaddr/NAME.",
        in_file="[]",
        example='["/dnsaddr/shoal.example"]',
        many=True,
        live=True,
    ),
    Setting(
        "lan",
        "BOOL",
        read_yes_or_no,
        lambda: True,
        "Whether nodes on the same local network find this one, and it them, by mDNS.",
        in_file="true",
        example="false",
    ),
    Setting(
        "allow",
        "PEER_ID",
        read_peers,
        tuple,
        "Friends: peers whose work this node accepts, beside its own, sandbox or not.",
        in_file="[]",
        example='["PEER_ID"]',
        many=True,
        live=True,
    ),
    Setting(
        "deny",
        "PEER_ID",
        read_peers,
        tuple,
        "Peers whose work this node never accepts, whatever else is set.",
        in_file="[]",
        example='["PEER_ID"]',
        many=True,
        live=True,
    ),
    Setting(
        "serve",
        "WHO",
        read_serve,
        lambda: "anyone",
        "Whom this node serves: anyone (strangers in a sandbox only), friends (`allow`), or "
        "those-who-serve: friends, and who is not too far in debt with it.",
        in_file='"anyone"',
        example='"friends"',
        live=True,
    ),
    Setting(
        "min_price",
        "CREDITS",
        read_credits,
        lambda: 0.0,
        "Credits that a peer's unit must be worth: 1, and 1 more for each 100 MB it needs.",
        in_file="0.0",
        example="1.5",
        live=True,
    ),
    Setting(
        "time_limit",
        "TIME",
        read_duration_s,
        lambda: 3600.0,
        "The longest time that a unit of a peer may ask for.",
        in_file='"1h"',
        example='"10m"',
        field="time_limit_s",
        live=True,
    ),
    Setting(
        "schedule",
        "HOURS",
        read_schedule,
        tuple,
        "Hours of local time in which peers' work is taken; always where not set.",
        in_file="[]",
        example='["mon-fri 18:00-08:00", "sat,sun 00:00-24:00"]',
        many=True,
        live=True,
    ),
    Setting(
        "step_back",
        "PERCENT",
        read_share_or_off,
        lambda: 0.25,
        "Take no peer's work while your own processes use more of the CPU than this, or off.",
        in_file='"25%"',
        example='"off"',
        live=True,
    ),
    Setting(
        "provide",
        "BOOL",
        read_yes_or_no,
        lambda: True,
        "Whether this node takes units from peers at all.",
        in_file="true",
        example="false",
        live=True,
    ),
    Setting(
        "cores",
        "N",
        read_cores_or_share,
        usable_cores,
        "Processor cores that units may use, such as 4 or 50%; all of them where not set.",
        in_file='"100%"',
        example="4",
    ),
    Setting(
        "memory",
        "SIZE",
        read_memory_or_share,
        _half_of_memory_bytes,
        "Memory that units may use, such as 8GB or 25%; half of it where not set.",
        in_file='"50%"',
        example='"8GB"',
        field="memory_bytes",
    ),
    Setting(
        "units_per_card",
        "N",
        read_units_at_once,
        lambda: 2,
        "Units that a card runs at once where its memory allows, each in a process of its own.",
        in_file="2",
        example="1",
    ),
    Setting(
        "niceness",
        "N",
        read_niceness,
        lambda: 19,
        "How far units yield to other processes: from 5, a little, to 19, all they can.",
        in_file="19",
        example="5",
    ),
    Setting(
        "blob_quota",
        "SIZE",
        read_size_bytes,
        lambda: 20 * 1000**3,
        "Disk space that blobs (programs, inputs, outputs) may take, such as 20GB.",
        in_file='"20GB"',
        example='"100GB"',
        field="blob_quota_bytes",
        live=True,
    ),
    Setting(
        "results_quota",
        "SIZE",
        read_size_bytes,
        lambda: 4 * 1000**3,
        "Disk space of jobs and small results; beyond it, the oldest that were fetched go.",
        in_file='"4GB"',
        example='"10GB"',
        field="results_quota_bytes",
        live=True,
    ),
    Setting(
        "results_keep",
        "TIME",
        read_duration_s,
        lambda: 30 * 86_400.0,
        "Time for which results that nobody fetched are kept, whatever room they take.",
        in_file='"30d"',
        example='"7d"',
        field="results_keep_s",
        live=True,
    ),
    Setting(
        "log_level",
        "LEVEL",
        read_level,
        lambda: "info",
        "How much the log tells: debug, info, warning or error.",
        in_file='"info"',
        example='"debug"',
        live=True,
    ),
    Setting(
        "log_file",
        "PATH",
        read_path,
        lambda: None,
        "File for the log, kept within 64 MB with the one before it; stderr where not set.",
        in_file='""',
        example='"/var/log/shoal/daemon.log"',
    ),
    Setting(
        "drain",
        "TIME",
        read_duration_s,
        lambda: 10.0,
        "Time that running units get to end when the daemon is told to end.",
        in_file='"10s"',
        example='"1m"',
        field="drain_s",
        live=True,
    ),
    Setting(
        "socket_group",
        "GROUP",
        read_group,
        str,
        "Group whose members may use the socket too, and so command the daemon.",
        in_file='""',
        example='"shoal"',
    ),
    Setting(
        "metrics",
        "PLACE",
        read_metrics_place,
        lambda: None,
        "Port, or address:port, where Prometheus may fetch metrics; the socket has them too.",
        in_file='""',
        example='"127.0.0.1:9464"',
    ),
    Setting(
        "name",
        "TEXT",
        read_text,
        str,
        "What you call this machine; it appears in its own logs only.",
        in_file='""',
        example='"attic"',
    ),
)
