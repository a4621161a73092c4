"""A node's Ed25519 key: made once, kept in one file, never overwritten.

The file holds libp2p's protobuf of the private key (36 bytes, as py-libp2p's
``save_identity`` writes it) with mode 0600. For other programs the key goes out
and comes in as PKCS #8 PEM, under a passphrase if one is given.
"""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from shoal.crypto.envelope import Statement, seal, seal_many
from shoal.crypto.errors import IdentityError
from shoal.crypto.peer_id import PeerId, peer_id_of

if TYPE_CHECKING:
    from collections.abc import Sequence

_PRIVATE_KEY_PROTOBUF_PREFIX = bytes([0x08, 0x01, 0x12, 0x20])
_SEED_SIZE_BYTES = 32
_FILE_SIZE_BYTES = len(_PRIVATE_KEY_PROTOBUF_PREFIX) + _SEED_SIZE_BYTES


@dataclass(frozen=True, slots=True)
class Identity:
    """The private key of a node, and the peer id that follows from it."""

    key: Ed25519PrivateKey
    peer_id: PeerId = field(init=False, compare=False)
    """The libp2p peer id of this key."""

    def __post_init__(self) -> None:
        """Work out the peer id once: it is asked for with every message."""
        peer_id = peer_id_of(self.key.public_key().public_bytes_raw())
        object.__setattr__(self, "peer_id", peer_id)

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes that the key is made of."""
        return self.key.private_bytes_raw()

    def sign(self, kind: Statement, payload: bytes) -> bytes:
        """Sign ``payload`` as a statement of ``kind``; gives the envelope's bytes."""
        return seal(kind, payload, self.key)

    def sign_many(self, kind: Statement, payloads: Sequence[bytes]) -> list[bytes]:
        """Sign statements of one kind together; gives the envelope of each."""
        return seal_many(kind, payloads, self.key)

    def export_pem(self, passphrase: str | None = None) -> bytes:
        """The key as PKCS #8 PEM, encrypted when a passphrase is given.

        Raises:
            IdentityError: The passphrase is over 1023 bytes, or no Unicode text.
        """
        try:
            encryption = (
                BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
            )
            return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
        except ValueError as error:
            message = f"the passphrase cannot be used: {error}"
            raise IdentityError(message, code="bad_passphrase") from None

    def __repr__(self) -> str:
        return f"Identity({self.peer_id})"  # a log line must never hold the key


def generate() -> Identity:
    """Make a new identity from the operating system's randomness."""
    return Identity(Ed25519PrivateKey.generate())


def import_pem(pem: bytes, passphrase: str | None = None) -> Identity:
    """Read an identity that `Identity.export_pem` wrote.

    Raises:
        IdentityError: Not PEM, another kind of key, or the passphrase is wrong.
    """
    try:
        key = load_pem_private_key(pem, passphrase.encode() if passphrase else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        message = f"the key cannot be read: {error}"
        raise IdentityError(
            message, code="key_unreadable", hint="check the passphrase and that the file is PEM"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise IdentityError("the key is not Ed25519", code="key_not_ed25519")
    return Identity(key)


def load(path: Path) -> Identity:
    """Read the identity kept in ``path``.

    Raises:
        IdentityError: The file is missing, unreadable, readable by others, or
            not a key.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(_FILE_SIZE_BYTES + 1)
    except FileNotFoundError:
        message = f"there is no key at {path}"
        raise IdentityError(message, code="key_missing", hint="run `shoal init`") from None
    except OSError as error:
        message = f"the key at {path} cannot be read: {error.strerror}"
        raise IdentityError(
            message, code="key_unreadable", hint=f"make it readable: chmod 600 {path}"
        ) from None
    if mode & 0o077:
        message = f"the key at {path} is open to other users (mode {mode:04o})"
        raise IdentityError(message, code="key_exposed", hint=f"chmod 600 {path}")
    if len(data) != _FILE_SIZE_BYTES or not data.startswith(_PRIVATE_KEY_PROTOBUF_PREFIX):
        message = f"{path} does not hold an Ed25519 key of libp2p's form"
        raise IdentityError(
            message, code="key_malformed", hint="restore it with `shoal identity import`"
        )
    seed = data[len(_PRIVATE_KEY_PROTOBUF_PREFIX) :]
    return Identity(Ed25519PrivateKey.from_private_bytes(seed))


def save(identity: Identity, path: Path) -> None:
    """Write the key to ``path`` with mode 0600, all of it or nothing.

    Raises:
        IdentityError: A file is there already (it is never overwritten), or the
            place cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".identity-")
    except OSError as error:
        raise _cannot_write(path, error) from None
    try:
        with os.fdopen(handle, "wb") as file:  # mkstemp gives mode 0600
            file.write(_PRIVATE_KEY_PROTOBUF_PREFIX + identity.seed)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # fails where a file is, unlike rename
    except FileExistsError:
        message = f"there is a key at {path} already, and it is never overwritten"
        raise IdentityError(
            message, code="key_exists", hint="move it away first if you mean to replace it"
        ) from None
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        with suppress(OSError):
            Path(temporary).unlink()


def _cannot_write(path: Path, error: OSError) -> IdentityError:
    return IdentityError(
        f"the key cannot be written to {path}: {error.strerror}",
        code="key_unwritable",
        hint="choose a writable directory with --home or SHOAL_HOME",
    )
