"""The secret of a private network: made once, kept in one file of the home.

The file is the ``swarm.key`` that go-libp2p made common, three lines that go-, js-
and rust-libp2p read as well and that can be handed to such a program as they are:

    /key/swarm/psk/1.0.0/
    /base16/
    64 hexadecimal digits

Those programs read no further. What shoal adds stands below: the network's name,
and addresses of members to join through. It has mode 0600, is written whole or not
at all, and a secret that is in it is never lost: another one goes into its place
only after this one was put aside.

How a connection is protected by it is `private_network`'s, how it travels to
another machine is `invitation`'s.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from blake3 import blake3

from shoal.node.addresses import parse_peer_address
from shoal.node.errors import ConfigError

PUBLIC = "public"
"""What the network is called of a node that is in no private one."""

SECRET_SIZE_BYTES = 32
NAME_LIMIT = 48
"""Characters of a network's name: it stands in one line of `shoal status`."""

BOOTSTRAP_LIMIT = 64
"""Addresses kept: as many as there are peers that a node remembers."""

FORCE_VARIABLE = "LIBP2P_FORCE_PNET"
"""With "1" in it no libp2p program may start outside a private network."""

_HEADER = ("/key/swarm/psk/1.0.0/", "/base16/")
_NAME_PREFIX = "name "
_BOOTSTRAP_PREFIX = "bootstrap "
_FILE_LIMIT_BYTES = 64 * 1024
_FINGERPRINT_DOMAIN = b"shoal private network fingerprint 1\n"


@dataclass(frozen=True, slots=True)
class SwarmKey:
    """A private network as its members know it.

    Attributes:
        name: What people call it; nothing depends on it.
        secret: What makes a member; in no log and in no output but an invitation.
        bootstrap: Multiaddrs, each with its peer id, of members to join through.
    """

    name: str
    secret: bytes = field(repr=False)
    bootstrap: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that tell two networks apart and give nothing away."""
        return blake3(_FINGERPRINT_DOMAIN + self.secret).hexdigest()[:16]

    def with_bootstrap(self, addresses: tuple[str, ...]) -> SwarmKey:
        """The same network with more addresses; the new ones come first."""
        together = tuple(dict.fromkeys([*addresses, *self.bootstrap]))
        return replace(self, bootstrap=together[:BOOTSTRAP_LIMIT])


def make_key(name: str | None = None) -> SwarmKey:
    """Draw the secret of a new network; without a name it gets one from its fingerprint.

    Raises:
        ConfigError: ``bad_network_name``.
    """
    secret = secrets.token_bytes(SECRET_SIZE_BYTES)
    return SwarmKey(_plain_name(secret) if name is None else check_name(name), secret)


def check_name(name: str) -> str:
    """Refuse what is no name for a private network.

    Raises:
        ConfigError: ``bad_network_name``.
    """
    if not (0 < len(name) <= NAME_LIMIT and name.isprintable() and name == name.strip()):
        why = f"is not a name of 1 to {NAME_LIMIT} printable characters"
    elif name.casefold() == PUBLIC:
        why = "is what a node in no private network is said to be in"
    else:
        return name
    raise ConfigError(
        f"{name[:NAME_LIMIT]!r} {why}",
        code="bad_network_name",
        hint="choose a short one such as `lab`",
    )


# --- the file's text: pure --------------------------------------------------------


def to_text(key: SwarmKey) -> str:
    """What stands in the file."""
    return "\n".join(
        [
            *_HEADER,
            key.secret.hex(),
            _NAME_PREFIX + key.name,
            *(_BOOTSTRAP_PREFIX + address for address in key.bootstrap),
            "",
        ]
    )


def from_text(text: str) -> SwarmKey:
    """Read what `to_text` wrote, or another program's ``swarm.key``.

    Raises:
        ValueError: The end of a sentence that begins with the file's name; it tells
            nothing of the secret.
    """
    lines = [line.strip() for line in text.splitlines()]
    if lines[:1] != [_HEADER[0]]:
        message = f"does not begin with the line {_HEADER[0]}"
        raise ValueError(message)
    if lines[1:2] != [_HEADER[1]]:
        message = f"has not {_HEADER[1]} in its second line, the one encoding that is read here"
        raise ValueError(message)
    try:
        secret = bytes.fromhex(lines[2])
    except (IndexError, ValueError):
        secret = b""
    if len(secret) != SECRET_SIZE_BYTES:
        message = f"has not {2 * SECRET_SIZE_BYTES} hexadecimal digits in its third line"
        raise ValueError(message)
    name, bootstrap = _plain_name(secret), []
    for number, line in enumerate(lines[3:], start=4):
        try:
            if line.startswith(_NAME_PREFIX):
                name = check_name(line.removeprefix(_NAME_PREFIX))
            elif line.startswith(_BOOTSTRAP_PREFIX):
                address = line.removeprefix(_BOOTSTRAP_PREFIX)
                parse_peer_address(address)
                bootstrap.append(address)
        except ConfigError as error:
            message = f"cannot be used for its line {number}: {error.message}"
            raise ValueError(message) from None
    return SwarmKey(name, secret, tuple(bootstrap[:BOOTSTRAP_LIMIT]))


def _plain_name(secret: bytes) -> str:
    return f"swarm-{SwarmKey('', secret).fingerprint[:4]}"


# --- the file ---------------------------------------------------------------------


def load_key(path: Path, environment: Mapping[str, str] | None = None) -> SwarmKey | None:
    """Read the network that a home is in; None where it is in none.

    Raises:
        ConfigError: The file is there and cannot be used, as ``network_key_exposed``,
            ``network_key_unreadable`` or ``network_key_malformed``; or it is not,
            and `FORCE_VARIABLE` asks for one.
    """
    environment = os.environ if environment is None else environment
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(_FILE_LIMIT_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        if environment.get(FORCE_VARIABLE) == "1":
            raise ConfigError(
                f"{FORCE_VARIABLE} is 1, and there is no secret of a private network at {path}",
                code="network_key_missing",
                hint="`shoal join TOKEN` joins one, `shoal invite` makes one",
            ) from None
        return None
    except OSError as error:
        raise ConfigError(
            f"the network's secret at {path} cannot be read: {error.strerror}",
            code="network_key_unreadable",
            hint=f"make it readable for this user alone: chmod 600 {path}",
        ) from None
    if mode & 0o077:
        raise ConfigError(
            f"the network's secret at {path} is open to other users (mode {mode:04o})",
            code="network_key_exposed",
            hint=f"chmod 600 {path}",
        )
    try:
        return from_text(data.decode())
    except UnicodeDecodeError:
        why = "is not text"
    except ValueError as error:
        why = str(error)
    raise ConfigError(
        f"the network's secret at {path} {why}",
        code="network_key_malformed",
        hint="`shoal leave` puts it aside; then join again with `shoal join TOKEN`",
    )


def save_new_key(key: SwarmKey, path: Path) -> None:
    """Write the file where there is none yet.

    Raises:
        ConfigError: ``network_key_exists``; or the place cannot be written to.
    """
    with _written(key, path) as temporary:
        try:
            os.link(temporary, path)  # fails where a file is, unlike rename
        except FileExistsError:
            raise ConfigError(
                f"there is a network's secret at {path} already",
                code="network_key_exists",
                hint="see `shoal status`; `shoal leave` puts it aside",
            ) from None


def save_key_again(key: SwarmKey, path: Path) -> None:
    """Write more of the same network into its file, at once or not at all."""
    with _written(key, path) as temporary:
        temporary.replace(path)


def replace_key(key: SwarmKey, path: Path) -> Path:
    """Put the file that is there aside and another network into its place.

    Killed at any point there is one of the two: a node never finds itself in the
    public network by this.

    Returns:
        Where the old one is.
    """
    with _written(key, path) as temporary:
        aside = _aside(path)
        _drop(aside)
        os.link(path, aside)
        temporary.replace(path)
    return aside


def put_aside(path: Path) -> Path:
    """Leave the network; gives where its file is now.

    Raises:
        ConfigError: ``no_network``: there is none to leave.
    """
    aside = _aside(path)
    try:
        path.replace(aside)
    except FileNotFoundError:
        raise ConfigError(
            "this node is in no private network", code="no_network", hint="see `shoal status`"
        ) from None
    except OSError as error:
        raise _cannot_write(path, error) from None
    return aside


def _aside(path: Path) -> Path:
    """A name that says whose secret it is; what has it already is that same secret."""
    try:
        mark = from_text(path.read_text(encoding="utf-8")).fingerprint
    except (OSError, ValueError):
        mark = f"unusable-{secrets.token_hex(4)}"
    return path.with_name(f"{path.name}.left-{mark}")


@contextmanager
def _written(key: SwarmKey, path: Path) -> Iterator[Path]:
    """A file beside ``path`` with the key in it, safe on the disk, gone at the end."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".swarm-key-")  # mode 0600
        temporary = Path(name)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(to_text(key))
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        if temporary is not None:
            _drop(temporary)


def _drop(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _cannot_write(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"the network's secret cannot be written to {path}: {error.strerror}",
        code="network_key_unwritable",
        hint="choose a writable directory with --home or SHOAL_HOME",
    )
