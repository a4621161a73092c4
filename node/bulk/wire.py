"""A bulk channel's socket, as its two threads use it: frames and bytes, each in time.

Everything here blocks, and runs in a thread of its own. Whoever wants it to end shuts the
socket down from outside (`shut`), and whatever blocks on it fails at once.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from shoal.node.errors import NetworkError, StreamClosedError
from shoal.node.frames import LENGTH_BYTES
from shoal.protocol.channel_messages import MESSAGE_LIMIT_BYTES
from shoal.protocol.codec import decode, encode
from shoal.protocol.errors import RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import msgspec

    from shoal.crypto.peer_id import PeerId

HANDSHAKE_LIMIT_S = 10.0
CHUNK_LIMIT_S = 60.0
"""For a chunk of 1 MiB, or a chunk list: who is slower than 17 KB/s is cut."""

_AT_ONCE = struct.pack("ii", 1, 0)  # struct linger: on, 0 s
_SEND_BYTES = 256 << 10
"""In one call: whether the other side still takes anything is looked at between them."""


class Wire:
    """One end of a channel, of which one thread at a time makes use.

    Args:
        sock: Connected, and its TLS not begun.
        peer: Who is at the other end.
        newer: Whether it speaks a newer version (`protocol.versions`).
    """

    def __init__(self, sock: ssl.SSLSocket, peer: PeerId, *, newer: bool) -> None:
        self.peer = peer
        self.received = self.sent = 0
        self._counted = 0, 0
        self.sock = sock
        self._newer = newer
        self._between = True  # nothing has begun to come that must end
        self._length = bytearray(LENGTH_BYTES)

    def take_counts(self) -> tuple[int, int]:
        """The bytes received and sent since this was last asked; from one thread only."""
        counts = self.received, self.sent
        before, self._counted = self._counted, counts
        return counts[0] - before[0], counts[1] - before[1]

    def shake_hands(self) -> None:
        """Begin TLS.

        Raises:
            NetworkError: It does not come about: ``bad_certificate``: another one than the
                peer told of; ``no_channel``: another version, or silence.
        """
        self.sock.settimeout(HANDSHAKE_LIMIT_S)
        try:
            self.sock.do_handshake()
        except OSError as error:
            wrong = isinstance(error, ssl.SSLCertVerificationError)
            raise NetworkError(
                f"no TLS comes about with {self.peer}: {_reason(error)}",
                code="bad_certificate" if wrong else "no_channel",
            ) from None

    def send(self, message: msgspec.Struct) -> None:
        """Send one message.

        Raises:
            NetworkError: As `send_bytes`.
        """
        data = encode(message, MESSAGE_LIMIT_BYTES)
        self.send_bytes(memoryview(len(data).to_bytes(LENGTH_BYTES, "big") + data))

    def send_bytes(self, data: memoryview) -> None:
        """Send bytes.

        Raises:
            RemoteProtocolError: ``too_slow``: the peer takes less than it must.
            NetworkError: The channel broke.
        """
        deadline_s = self._begin(CHUNK_LIMIT_S)
        try:
            while data:
                count = self.sock.send(data[:_SEND_BYTES])
                data = data[count:]
                self.sent += count
                self._check(deadline_s, "take")
        except TimeoutError:
            raise self._too_slow("take") from None
        except OSError as error:
            raise self._broken(error) from None

    @contextmanager
    def in_full_segments(self) -> Iterator[None]:
        """Have what is sent within the block go in segments that are full, but for the last.

        TLS gives the kernel 16 KiB at a time, which on a fast link would go one by one.
        """
        self._hold_back(1)
        yield
        self._hold_back(0)

    def _hold_back(self, on: int) -> None:
        with suppress(OSError):  # shut; what is sent next says so
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, on)

    def receive(self, kind: Any, idle_s: float | None = None) -> Any:
        """Wait for the next message of ``kind``.

        Args:
            kind: As `protocol.codec.decode` takes it.
            idle_s: How long the peer may have nothing to say; none where it must answer.

        Raises:
            StreamClosedError: The peer ended the channel before it, or had nothing to say.
            RemoteProtocolError: Something else came, or ``too_slow``.
            NetworkError: The channel broke.
        """
        self._between = True
        self._fill(memoryview(self._length), idle_s or CHUNK_LIMIT_S, idle=idle_s is not None)
        size = int.from_bytes(self._length, "big")
        if size > MESSAGE_LIMIT_BYTES:
            raise RemoteProtocolError(
                f"{self.peer} announces a message of {size} bytes on a bulk channel, and "
                f"{MESSAGE_LIMIT_BYTES} are allowed",
                code="frame_too_large",
            )
        data = bytearray(size)
        self._between = False
        self._fill(memoryview(data), CHUNK_LIMIT_S)
        try:
            return decode(bytes(data), kind, MESSAGE_LIMIT_BYTES, newer=self._newer)
        except RemoteProtocolError as error:
            raise RemoteProtocolError(
                f"{self.peer} sent on a bulk channel: {error.message}", code=error.code
            ) from None

    def receive_into(self, buffer: memoryview) -> None:
        """Wait for as many bytes as ``buffer`` has room for.

        Raises:
            RemoteProtocolError: ``too_slow``, or ``too_few``: the peer ended the channel on
                purpose, in the middle of what it had announced.
            NetworkError: The channel broke.
        """
        self._between = False
        self._fill(buffer, CHUNK_LIMIT_S)

    def idle_bytes(self) -> bool:
        """Whether something has come that was not asked for; for a channel at rest.

        Raises:
            NetworkError: The channel is over.
        """
        self.sock.settimeout(0.0)
        try:
            some = self.sock.recv(1)
        except (ssl.SSLWantReadError, BlockingIOError):
            return False
        except OSError as error:
            raise self._broken(error) from None
        if not some:
            raise StreamClosedError(f"{self.peer} closed the bulk channel")
        return True

    def _fill(self, buffer: memoryview, limit_s: float, *, idle: bool = False) -> None:
        size, deadline_s = len(buffer), self._begin(limit_s)
        try:
            while buffer:
                count = self.sock.recv_into(buffer)
                if not count:
                    raise self._ended(first=len(buffer) == size)
                buffer = buffer[count:]
                self.received += count
                self._check(deadline_s, "send")
        except TimeoutError:
            if idle and len(buffer) == size:
                raise StreamClosedError(f"{self.peer} has nothing to ask") from None
            raise self._too_slow("send") from None
        except OSError as error:
            raise self._broken(error) from None

    def _begin(self, limit_s: float) -> float:
        self.sock.settimeout(limit_s)
        return time.monotonic() + limit_s

    def _check(self, deadline_s: float, what: str) -> None:
        if time.monotonic() > deadline_s:
            raise self._too_slow(what)

    def _too_slow(self, what: str) -> RemoteProtocolError:
        return RemoteProtocolError(
            f"{self.peer} did not {what} a chunk of 1 MiB, or a message, in time: it may take "
            f"{CHUNK_LIMIT_S:g} s",
            code="too_slow",
        )

    def _ended(self, *, first: bool) -> Exception:
        if first and self._between:
            return StreamClosedError(f"{self.peer} closed the bulk channel")
        return RemoteProtocolError(
            f"{self.peer} ended a bulk channel in the middle of what it had announced",
            code="too_few",
        )

    def _broken(self, error: OSError) -> NetworkError:
        return NetworkError(
            f"the bulk channel with {self.peer} broke: {_reason(error)}", code="link_lost"
        )


def begin(tls: ssl.SSLContext, sock: socket.socket, *, server: bool) -> ssl.SSLSocket:
    """Make a connected socket one of TLS; nothing is sent yet.

    An end without TLS's goodbye is an error on it, as of a link that breaks; only whoever
    holds the channel's keys can end it on purpose.
    """
    # Trio lets the kernel have 16 KiB that are not sent, which is one record: the thread is
    # woken for each, and within `in_full_segments` it and the next would wait for each other.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 0)  # the system's default
    return tls.wrap_socket(
        sock, server_side=server, do_handshake_on_connect=False, suppress_ragged_eofs=False
    )


def shut(sock: socket.socket) -> None:
    """Make whatever blocks on a socket fail; from any thread.

    Not by the method of an `SSLSocket`: after that one its reads would go around TLS.
    """
    try:
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:  # it is over already
        return


def abandon(sock: socket.socket) -> None:
    """Close a socket of which nothing more is wanted, so that the peer's next send fails.

    By a reset: after `shut` the kernel opens its window no more, and a peer that waits for
    room to send would wait for a minute.
    """
    with suppress(OSError):  # it is closed already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    sock.close()


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "nothing came in time"
    reason = getattr(error, "reason", None) or error.strerror or str(error)
    return str(reason).lower().replace("_", " ")
