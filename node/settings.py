"""What an operator can set: one table, from which file, environment and flags derive.

What a value may be is `node.setting_values`'; where one is looked for, and what comes of
them all, `node.config`'s.

A setting that is ``live`` applies to a running daemon when its settings are read again
(`node.reload`); another one takes a restart.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
from shoal.node.shares import (
    read_cores_or_share,
    read_memory_or_share,
    read_share_or_off,
    usable_cores,
    usable_memory_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable

ENVIRONMENT_PREFIX = "SHOAL_"


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
        return ENVIRONMENT_PREFIX + self.name.upper()


def _default_home() -> Path:
    from platformdirs import user_data_path

    return user_data_path("shoal", appauthor=False)


def _half_of_memory_bytes() -> int:
    return usable_memory_bytes() // 2


HOME = Setting(
    "home",
    "DIR",
    read_path,
    _default_home,
    "Directory of the key, the state and the blobs.",
    in_file="",  # which lies in it
)

SOCKET = Setting(
    "socket",
    "PATH",
    read_path,
    lambda: None,  # depends on the home; see `node.config`
    "Unix socket of the local API; not set, it is in $XDG_RUNTIME_DIR/shoal, or in the home.",
    in_file='""',
    example='"/run/user/1000/shoal/shoal.sock"',
)

SETTINGS = (
    HOME,
    SOCKET,
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
