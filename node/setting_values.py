"""How the values of settings are read: from TOML, or from text of flags and variables.

Each function takes what any source gave, and gives the checked value or raises
ValueError with the end of a sentence that begins with the value: "… is not a
path". `node.settings` says which setting uses which.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path

from shoal.crypto.errors import VerificationError
from shoal.crypto.peer_id import check_peer_id
from shoal.node.addresses import parse_bootstrap
from shoal.node.errors import ConfigError
from shoal.node.schedule import WINDOWS_LIMIT, Schedule, Window, parse_window
from shoal.protocol.limits import AT_ONCE_LIMIT

BOOTSTRAP_LIMIT = 64
"""Addresses to join through: each is dialled for ever, and told of when it fails."""

_UNIT_BYTES = {
    "": 1,
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", start=1)},
    **{f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", start=1)},
}


def read_size_bytes(value: object) -> int:
    """Read ``20GB``, ``512 MiB`` or a number of bytes; raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(value).strip())
    factor = _UNIT_BYTES.get(match[2].upper()) if match else None
    size_bytes = int(float(match[1]) * factor) if match and factor else 0
    if size_bytes < 1:
        message = "is not a size; write one as 20GB, 512MiB or a number of bytes"
        raise ValueError(message)
    return size_bytes


_UNIT_S = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
_DURATION_LIMIT_S = 10 * 366 * _UNIT_S["d"]


def read_duration_s(value: object) -> float:
    """Read ``2h``, ``90 min``, ``1h30m``, or a number of seconds; raises ValueError."""
    text = "".join(str(value).lower().split())
    parts = re.findall(r"(\d+(?:\.\d+)?)(min|[smhd])", text)
    if re.fullmatch(r"\d+(\.\d+)?", text):
        parts, text = [(text, "s")], f"{text}s"
    duration_s = sum(float(number) * _UNIT_S[unit] for number, unit in parts)
    if text != "".join(map("".join, parts)) or not 0 < duration_s <= _DURATION_LIMIT_S:
        message = "is no time; write one as 45s, 90m, 2h, 1h30m or 3d"
        raise ValueError(message)
    return duration_s


def read_path(value: object) -> Path:
    """Read a path; ``~`` is the user's home."""
    if not isinstance(value, str | Path):
        message = "is not a path"
        raise ValueError(message)  # noqa: TRY004  # what `read` raises
    return Path(value).expanduser().absolute()


def read_group(value: object) -> str:
    """Read the name of a group of users; whether there is one is seen where it is used."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", value):
        message = "is no name of a group"
        raise ValueError(message)
    return value


def read_metrics_place(value: object) -> tuple[str, int]:
    """Read ``9464``, ``127.0.0.1:9464`` or ``[::1]:9464``: an address and a port to listen on.

    A port alone is one of the loopback. Names are refused: they may come to mean
    another address than the operator thought of.
    """
    text = str(value).strip()
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    try:
        ip_address(host)
        usable = port.isdecimal() and 1 <= int(port) <= 65535 and not isinstance(value, bool)
    except ValueError:
        usable = False
    if not usable:
        message = "is neither a port nor an address with one, such as 127.0.0.1:9464"
        raise ValueError(message)
    return host, int(port)


def read_bulk(value: object) -> str | int:
    """Read ``auto``, ``off`` or a port."""
    text = str(value).strip().lower()
    if text in ("auto", "off") and not isinstance(value, bool):
        return text
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        message = "is neither auto nor off nor a port from 1 to 65535"
        raise ValueError(message)
    return int(text)


def read_host_and_port(value: object) -> tuple[str, int]:
    """Read ``shoal.example:5711``, ``192.0.2.7:5711`` or ``[2001:db8::7]:5711``."""
    host, _, port = str(value).strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    fits = 1 <= len(host) <= 253 and host.isascii() and host.isprintable() and " " not in host
    if not fits or not port.isdecimal() or not 1 <= int(port) <= 65535:
        message = "is not a host with a port, such as shoal.example:5711"
        raise ValueError(message)
    return host, int(port)


def read_text(value: object) -> str:
    """Read a short line of text."""
    if not isinstance(value, str) or len(value) > 64 or not value.isprintable():
        message = "is not a text of at most 64 printable characters"
        raise ValueError(message)
    return value


def read_yes_or_no(value: object) -> bool:
    """Read a truth value."""
    if isinstance(value, bool):
        return value
    match str(value).strip().lower():
        case "1" | "true" | "yes" | "on":
            return True
        case "0" | "false" | "no" | "off":
            return False
    message = "is neither true nor false"
    raise ValueError(message)


def read_cores(value: object) -> int:
    """Read a number of cores."""
    text = str(value).strip()
    if isinstance(value, bool) or not text.isdecimal() or not 1 <= int(text) <= 4096:
        message = "is not a number of cores from 1 to 4096"
        raise ValueError(message)
    return int(text)


def read_units_at_once(value: object) -> int:
    """Read how many units a card runs at once."""
    text = str(value).strip()
    if isinstance(value, bool) or not text.isdecimal() or not 1 <= int(text) <= AT_ONCE_LIMIT:
        message = f"is not a number of units from 1 to {AT_ONCE_LIMIT}"
        raise ValueError(message)
    return int(text)


def read_schedule(value: object) -> Schedule:
    """Read windows: a TOML list, a repeated flag, or one text with semicolons."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(t, str) for t in texts):
        message = "is not a list of texts"
        raise ValueError(message)
    parts = [part.strip() for text in texts for part in text.split(";")]
    windows = tuple(dict.fromkeys(_window(part) for part in parts if part))
    if len(windows) > WINDOWS_LIMIT:
        message = f"has more than {WINDOWS_LIMIT} windows"
        raise ValueError(message)
    return windows


def _window(text: str) -> Window:
    try:
        return parse_window(text)
    except ValueError as error:
        raise ValueError(f"has the window {text[:40]!r}, which {error}") from None


def read_serve(value: object) -> str:
    """Read who is served."""
    who = str(value).strip().lower()
    if who not in ("anyone", "friends", "those-who-serve"):
        message = "is neither anyone nor friends nor those-who-serve"
        raise ValueError(message)
    return who


def read_credits(value: object) -> float:
    """Read a price in credits."""
    try:
        found = float(str(value)) if not isinstance(value, bool) else -1.0
    except ValueError:
        found = -1.0
    if not 0.0 <= found <= 1e12:
        message = "is not a number of credits, 0 or more"
        raise ValueError(message)
    return found


def read_niceness(value: object) -> int:
    """Read a niceness as nice(1) has it, within what a worker may have."""
    text = str(value).strip()
    if isinstance(value, bool) or not text.isdecimal() or not 5 <= int(text) <= 19:
        message = "is not a number from 5 to 19"
        raise ValueError(message)
    return int(text)


def read_level(value: object) -> str:
    """Read a log level."""
    level = str(value).strip().lower()
    if level not in ("debug", "info", "warning", "error"):
        message = "is none of debug, info, warning, error"
        raise ValueError(message)
    return level


def _read_list(value: object) -> tuple[str, ...]:
    """A TOML list, a repeated flag, or one text with commas."""
    texts = value.split(",") if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(t, str) for t in texts):
        message = "is not a list of texts"
        raise ValueError(message)
    parts = [part.strip() for text in texts for part in text.split(",")]
    return tuple(dict.fromkeys(part for part in parts if part))


def read_listen_addresses(value: object) -> tuple[str, ...]:
    """Read multiaddrs to listen on."""
    addresses = _read_list(value)
    for address in addresses:
        if not re.fullmatch(r"/(ip4|ip6)/[^/]+/tcp/\d{1,5}", address):
            message = "does not consist of addresses such as /ip4/0.0.0.0/tcp/4711"
            raise ValueError(message)
    return addresses


def read_bootstrap(value: object) -> tuple[str, ...]:
    """Read places to join through: addresses with peer ids, and ``/dnsaddr`` names."""
    addresses = _read_list(value)
    if len(addresses) > BOOTSTRAP_LIMIT:
        message = f"has more than {BOOTSTRAP_LIMIT} addresses"
        raise ValueError(message)
    for address in addresses:
        try:
            parse_bootstrap(address)
        except ConfigError as error:
            raise ValueError(
                "does not consist of addresses such as /ip4/1.2.3.4/tcp/4711/p2p/12D3KooW… "
                f"or /dnsaddr/shoal.example: {error.message}"
            ) from None
    return addresses


def read_peers(value: object) -> tuple[str, ...]:
    """Read peer ids."""
    peers = _read_list(value)
    for peer in peers:
        if not _is_peer(peer):
            message = "does not consist of peer ids, which begin with 12D3KooW"
            raise ValueError(message)
    return peers


def _is_peer(text: str) -> bool:
    try:
        check_peer_id(text)
    except VerificationError:
        return False
    return True
