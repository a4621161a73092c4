"""libp2p signed envelopes: the one form in which anything is signed here.

An envelope holds a public key, a payload type, a payload and a signature over
(domain string, payload type, payload), each prefixed by its length. Any
libp2p in go, rust or js checks one with its own library. One domain string per
kind of statement: a signature never fits two kinds. What is checked are the
stored bytes; nothing is re-encoded first.

Statements that are made together can be *signed together*: one signature over the root of
a Merkle tree (`crypto.merkle`) whose leaves are their payloads. Each is an envelope that
says everything by itself: it has the payload's *place* beside it, which is its index, how
many leaves there are, and the path to the root. The signature is over the root and that
count, under a domain string of its own, so that no payload passes for a root. The number
of leaves is signed because a root does not tell it.

Source: libp2p RFC 0002, signed envelopes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING

from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from shoal.crypto.content import DIGEST_SIZE_BYTES
from shoal.crypto.errors import VerificationError
from shoal.crypto.merkle import leaf_of, levels_of, path_in, root_by
from shoal.crypto.peer_id import PUBLIC_KEY_PROTOBUF_PREFIX, PeerId, peer_id_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ENVELOPE_LIMIT_BYTES = 192 * 1024
"""The largest envelope accepted: a receipt of a few hundred ids fits with room."""

SIGNATURE_SIZE_BYTES = 64

TOGETHER_LIMIT = 1024
"""Statements under one signature; a path has 10 digests at most."""

_ROOT_SUFFIX = b"-root"
"""Behind a kind's domain string where what is signed is a root."""

_CHECKED_ROOTS = 256
"""Signatures over roots that are remembered as good, each in some 300 bytes: a message's
receipts are opened one after another, and again when they are judged."""

_DRAWN_BY = b"shoal-signed-together"


class Statement(Enum):
    """The kinds of things that nodes sign. The value is the domain string."""

    ADVERT = "shoal-advert-v1"
    AWARD = "shoal-award-v1"
    RECEIPT = "shoal-receipt-v1"
    COMMITMENT = "shoal-commitment-v1"
    CAPABILITY = "shoal-capability-v1"
    RENEWAL = "shoal-renewal-v1"
    ACKNOWLEDGEMENT = "shoal-acknowledgement-v1"
    TRACE_ROOT = "shoal-trace-root-v1"

    @property
    def payload_type(self) -> bytes:
        """The envelope's payload type for this kind."""
        return b"/shoal/" + self.name.lower().replace("_", "-").encode("ascii")

    @property
    def words(self) -> str:
        """This kind in words, as in a sentence for a person."""
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True, slots=True)
class Opened:
    """What a checked envelope says, and who said it."""

    signer: PeerId
    payload: bytes


# Field tags of message Envelope, in the order in which they are written. libp2p's has no
# field 4: a library that does not know it finds no signature over the payload alone.
_PUBLIC_KEY, _PAYLOAD_TYPE, _PAYLOAD, _PLACE, _SIGNATURE = 0x0A, 0x12, 0x1A, 0x22, 0x2A


def seal(kind: Statement, payload: bytes, key: Ed25519PrivateKey) -> bytes:
    """Sign ``payload`` as a statement of ``kind`` and wrap it into an envelope.

    Raises:
        VerificationError: The envelope would be over the size that others accept.
    """
    public_key = PUBLIC_KEY_PROTOBUF_PREFIX + key.public_key().public_bytes_raw()
    return _wrap(kind, public_key, payload, None, key.sign(_signed_bytes(kind, payload)))


def seal_many(
    kind: Statement, payloads: Sequence[bytes], key: Ed25519PrivateKey
) -> list[bytes]:
    """Sign statements of one kind together; one alone is signed as by `seal`.

    Args:
        kind: Of all of them.
        payloads: At most `TOGETHER_LIMIT`.
        key: Of their signer.

    Returns:
        An envelope for each, in order; none needs the others.

    Raises:
        VerificationError: There are too many, or an envelope would be over the size that
            others accept.
    """
    if len(payloads) <= 1:
        return [seal(kind, payload, key) for payload in payloads]
    if len(payloads) > TOGETHER_LIMIT:
        message = f"{len(payloads)} statements, and {TOGETHER_LIMIT} are signed together"
        raise VerificationError(message, code="too_many_statements")
    public_key = PUBLIC_KEY_PROTOBUF_PREFIX + key.public_key().public_bytes_raw()
    levels, count = levels_of([leaf_of(payload) for payload in payloads]), len(payloads)
    signature = key.sign(_signed_root(kind, levels[-1][0], count))
    return [
        _wrap(
            kind,
            public_key,
            payload,
            _varint(index) + _varint(count) + path_in(levels, index),
            signature,
        )
        for index, payload in enumerate(payloads)
    ]


def open_envelope(envelope: bytes, kind: Statement) -> Opened:
    """Check an envelope, of one statement or of one signed with others.

    Only the canonical encoding is accepted, so no two byte strings are the same
    envelope.

    Raises:
        VerificationError: Too large, malformed, of another kind, or not signed
            by the key it names.
    """
    read = _read(envelope)
    if read.payload_type != kind.payload_type:
        message = (
            f"this envelope is a {read.payload_type[:64]!r}, "
            f"and a {kind.payload_type!r} is wanted"
        )
        raise VerificationError(message, code="wrong_statement")
    if not read.public_key.startswith(PUBLIC_KEY_PROTOBUF_PREFIX):
        raise VerificationError("the envelope's key is not Ed25519", code="bad_public_key")
    raw_key = read.public_key[len(PUBLIC_KEY_PROTOBUF_PREFIX) :]
    signer = peer_id_of(raw_key)
    try:
        if read.place is None:
            _check_signature(raw_key, read.signature, _signed_bytes(kind, read.payload))
        else:
            signed = _signed_root(kind, _root_by(read.place, read.payload), read.place.count)
            _check_root(raw_key, read.signature, signed)
    except (InvalidSignature, ValueError):
        message = f"the signature on this {kind.words} is not {signer}'s"
        raise VerificationError(message, code="bad_signature") from None
    return Opened(signer, read.payload)


def signature_of(envelope: bytes) -> bytes:
    """64 bytes that an envelope's signature alone decides, and no two statements share.

    Of a statement that is signed alone it is the signature. Of one that is signed with
    others it follows from theirs, the leaf and its index. That the signature is good is
    not checked here: `open_envelope` does that.

    Raises:
        VerificationError: ``bad_envelope``: it is none.
    """
    read = _read(envelope)
    if len(read.signature) != SIGNATURE_SIZE_BYTES:
        raise _malformed()
    if read.place is None:
        return read.signature
    index = read.place.index.to_bytes(8, "big")
    drawn_by = blake3(_DRAWN_BY + read.signature + leaf_of(read.payload) + index)
    return drawn_by.digest(SIGNATURE_SIZE_BYTES)


def is_signed_together(envelope: bytes) -> bool:
    """Whether an envelope, which is not checked here, is of a statement signed with others.

    Raises:
        VerificationError: ``bad_envelope``: it is none.
    """
    return _read(envelope).place is not None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a payload stands among those that are signed with it."""

    index: int
    count: int
    path: bytes


@dataclass(frozen=True, slots=True)
class _Fields:
    """An envelope's fields as they stand there, unchecked."""

    public_key: bytes
    payload_type: bytes
    payload: bytes
    place: _Place | None
    signature: bytes


def _read(envelope: bytes) -> _Fields:
    _check_size(envelope)
    reader = _Reader(envelope)
    public_key = reader.field(_PUBLIC_KEY)
    payload_type = reader.field(_PAYLOAD_TYPE)
    payload = reader.field(_PAYLOAD)
    place = _place(reader.field(_PLACE)) if reader.at(_PLACE) else None
    signature = reader.field(_SIGNATURE)
    reader.end()
    return _Fields(public_key, payload_type, payload, place, signature)


def _place(data: bytes) -> _Place:
    reader = _Reader(data)
    index, count = reader.number(), reader.number()
    # One alone has the plain form and no other: it is no tree.
    if not index < count <= TOGETHER_LIMIT or count == 1:
        raise _malformed()
    return _Place(index, count, reader.rest())


def _root_by(place: _Place, payload: bytes) -> bytes:
    try:
        return root_by(leaf_of(payload), place.index, place.count, place.path)
    except VerificationError:
        raise _malformed() from None


def _wrap(
    kind: Statement, public_key: bytes, payload: bytes, place: bytes | None, signature: bytes
) -> bytes:
    envelope = b"".join(
        bytes([tag]) + _varint(len(value)) + value
        for tag, value in (
            (_PUBLIC_KEY, public_key),
            (_PAYLOAD_TYPE, kind.payload_type),
            (_PAYLOAD, payload),
            (_PLACE, place),
            (_SIGNATURE, signature),
        )
        if value is not None
    )
    _check_size(envelope)
    return envelope


@lru_cache(_CHECKED_ROOTS)
def _check_root(raw_key: bytes, signature: bytes, signed: bytes) -> None:
    """As `_check_signature`, once for all that is signed together: failures are not kept."""
    _check_signature(raw_key, signature, signed)


def _check_signature(raw_key: bytes, signature: bytes, signed: bytes) -> None:
    Ed25519PublicKey.from_public_bytes(raw_key).verify(signature, signed)


def _check_size(envelope: bytes) -> None:
    if len(envelope) > ENVELOPE_LIMIT_BYTES:
        message = f"an envelope of {len(envelope)} bytes is over {ENVELOPE_LIMIT_BYTES}"
        raise VerificationError(message, code="envelope_too_large")


def _signed_bytes(kind: Statement, payload: bytes) -> bytes:
    return _behind_lengths(kind.value.encode("ascii"), kind.payload_type, payload)


def _signed_root(kind: Statement, root: bytes, count: int) -> bytes:
    assert len(root) == DIGEST_SIZE_BYTES
    domain = kind.value.encode("ascii") + _ROOT_SUFFIX
    return _behind_lengths(domain, kind.payload_type, root + _varint(count))


def _behind_lengths(*parts: bytes) -> bytes:
    return b"".join(_varint(len(part)) + part for part in parts)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class _Reader:
    """Reads length-delimited protobuf fields in order, shortest varints only."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def field(self, tag: int) -> bytes:
        if self._at >= len(self._data) or self._data[self._at] != tag:
            raise _malformed()
        self._at += 1
        size = self.number()
        value = self._data[self._at : self._at + size]
        if len(value) != size:
            raise _malformed()
        self._at += size
        return value

    def at(self, tag: int) -> bool:
        return self._at < len(self._data) and self._data[self._at] == tag

    def rest(self) -> bytes:
        return self._data[self._at :]

    def end(self) -> None:
        if self._at != len(self._data):
            raise _malformed()

    def number(self) -> int:
        value = 0
        for shift in range(0, 28, 7):
            if self._at >= len(self._data):
                raise _malformed()
            byte = self._data[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if byte == 0 and shift:
                    raise _malformed()
                return value
        raise _malformed()


def _malformed() -> VerificationError:
    return VerificationError("this is not a canonical signed envelope", code="bad_envelope")
