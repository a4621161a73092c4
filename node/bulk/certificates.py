"""The certificates of bulk channels, and TLS that takes exactly one of another peer.

Who a peer is was proved by libp2p before, and its certificate came over that connection:
so a certificate only has to be the one that was told. It is the sole trust anchor of its
TLS context, and is compared byte by byte after the handshake; that way nothing depends on
what a chain builder makes of names, constraints or dates. One is made at each start of
the daemon and never stored.

Python's `ssl` refuses libp2p's critical certificate extension, which is why that
specification is not used here.
"""

from __future__ import annotations

import datetime as dt
import os
import ssl
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from shoal.node.errors import NetworkError

_BEGIN = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
_END = dt.datetime(9999, 12, 31, tzinfo=dt.UTC)
"""Any clock is between these: who is meant is told over the control stream."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """This node's own.

    Attributes:
        der: What peers are told.
        pem: The same, and its private key, as OpenSSL reads them.
    """

    der: bytes
    pem: bytes


def make_certificate() -> Certificate:
    """Make a certificate, with a key that nothing else is signed by."""
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "shoal")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_BEGIN)
        .not_valid_after(_END)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, None)
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Certificate(
        certificate.public_bytes(Encoding.DER), certificate.public_bytes(Encoding.PEM) + private
    )


def context(own: Certificate, theirs: bytes, *, server: bool) -> ssl.SSLContext:
    """TLS with the one peer whose certificate is ``theirs``, as DER.

    Raises:
        NetworkError: ``bad_certificate``: it is none.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    if server:
        made.num_tickets = 0  # nothing is resumed, and nothing comes unasked to an idle asker
    try:
        made.load_verify_locations(cadata=theirs)
    except ssl.SSLError as error:
        raise NetworkError(
            f"a peer's certificate cannot be read: {error.reason or error}",
            code="bad_certificate",
        ) from None
    _load_own(made, own)
    return made


def check_same(sock: ssl.SSLSocket, theirs: bytes) -> None:
    """Check after the handshake that the other side is the one that was meant.

    Raises:
        NetworkError: ``bad_certificate``.
    """
    if sock.getpeercert(binary_form=True) != theirs:
        raise NetworkError(
            "the other end of a bulk channel showed another certificate",
            code="bad_certificate",
        )


def _load_own(made: ssl.SSLContext, own: Certificate) -> None:
    """Give OpenSSL the key by a file that has no name: it reads nothing from memory."""
    handle = os.memfd_create("shoal-bulk", os.MFD_CLOEXEC)
    try:
        os.write(handle, own.pem)
        made.load_cert_chain(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)
