"""libp2p signed envelopes: the one form in which anything is signed here.

An envelope holds a public key, a payload type, a payload and a signature over
(domain string, payload type, payload), each prefixed by its length. Any
libp2p in go, rust or js checks one with its own library. One domain string per
kind of statement: a signature never fits two kinds. What is checked are the
stored bytes; nothing is re-encoded first.

Source: libp2p RFC 0002, signed envelopes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from shoal.crypto.errors import VerificationError
from shoal.crypto.peer_id import PUBLIC_KEY_PROTOBUF_PREFIX, PeerId, peer_id_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ENVELOPE_LIMIT_BYTES = 192 * 1024
"""The largest envelope accepted: a receipt of a few hundred ids fits with room."""

SIGNATURE_SIZE_BYTES = 64


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


# Field tags of message Envelope, in the order in which they are written.
_PUBLIC_KEY, _PAYLOAD_TYPE, _PAYLOAD, _SIGNATURE = 0x0A, 0x12, 0x1A, 0x2A


def seal(kind: Statement, payload: bytes, key: Ed25519PrivateKey) -> bytes:
    """Sign ``payload`` as a statement of ``kind`` and wrap it into an envelope.

    Raises:
        VerificationError: The envelope would be over the size that others accept.
    """
    public_key = PUBLIC_KEY_PROTOBUF_PREFIX + key.public_key().public_bytes_raw()
    signature = key.sign(_signed_bytes(kind, payload))
    envelope = b"".join(
        bytes([tag]) + _varint(len(value)) + value
        for tag, value in (
            (_PUBLIC_KEY, public_key),
            (_PAYLOAD_TYPE, kind.payload_type),
            (_PAYLOAD, payload),
            (_SIGNATURE, signature),
        )
    )
    _check_size(envelope)
    return envelope


def open_envelope(envelope: bytes, kind: Statement) -> Opened:
    """Check an envelope and give its signer and payload.

    Only the canonical encoding is accepted, so no two byte strings are the same
    envelope.

    Raises:
        VerificationError: Too large, malformed, of another kind, or not signed
            by the key it names.
    """
    _check_size(envelope)
    reader = _Reader(envelope)
    public_key = reader.field(_PUBLIC_KEY)
    payload_type = reader.field(_PAYLOAD_TYPE)
    payload = reader.field(_PAYLOAD)
    signature = reader.field(_SIGNATURE)
    reader.end()
    if payload_type != kind.payload_type:
        message = (
            f"this envelope is a {payload_type[:64]!r}, and a {kind.payload_type!r} is wanted"
        )
        raise VerificationError(message, code="wrong_statement")
    if not public_key.startswith(PUBLIC_KEY_PROTOBUF_PREFIX):
        raise VerificationError("the envelope's key is not Ed25519", code="bad_public_key")
    raw_key = public_key[len(PUBLIC_KEY_PROTOBUF_PREFIX) :]
    signer = peer_id_of(raw_key)
    try:
        Ed25519PublicKey.from_public_bytes(raw_key).verify(
            signature, _signed_bytes(kind, payload)
        )
    except (InvalidSignature, ValueError):
        message = f"the signature on this {kind.words} is not {signer}'s"
        raise VerificationError(message, code="bad_signature") from None
    return Opened(signer, payload)


def signature_of(envelope: bytes) -> bytes:
    """The signature in an envelope, which is not checked here: `open_envelope` does that.

    Raises:
        VerificationError: ``bad_envelope``: it does not end as an envelope does.
    """
    tail = envelope[-SIGNATURE_SIZE_BYTES - 2 :]
    if len(tail) < SIGNATURE_SIZE_BYTES + 2 or tail[:2] != bytes(
        (_SIGNATURE, SIGNATURE_SIZE_BYTES)
    ):
        raise _malformed()
    return tail[2:]


def _check_size(envelope: bytes) -> None:
    if len(envelope) > ENVELOPE_LIMIT_BYTES:
        message = f"an envelope of {len(envelope)} bytes is over {ENVELOPE_LIMIT_BYTES}"
        raise VerificationError(message, code="envelope_too_large")


def _signed_bytes(kind: Statement, payload: bytes) -> bytes:
    domain = kind.value.encode("ascii")
    return b"".join(_varint(len(part)) + part for part in (domain, kind.payload_type, payload))


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
        size = self._length()
        value = self._data[self._at : self._at + size]
        if len(value) != size:
            raise _malformed()
        self._at += size
        return value

    def end(self) -> None:
        if self._at != len(self._data):
            raise _malformed()

    def _length(self) -> int:
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
