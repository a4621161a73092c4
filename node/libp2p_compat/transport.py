"""The bytes of one TCP connection, as libp2p reads and writes them.

Under everything else: what is read here goes through Noise and yamux. A private
network protects it (`node.private_network`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream

if TYPE_CHECKING:
    from shoal.node.private_network import Protection

READ_SIZE_BYTES = 256 * 1024
"""Asked of the kernel at a time; Noise alone would ask for 2 bytes, then for 65 KB."""


class BufferedTCPStream(TrioTCPStream):
    """A TCP stream that reads `READ_SIZE_BYTES` at a time and serves from that.

    Attributes:
        received_bytes: In all. A connection that has sent none tells nothing yet.
        unfinished_since_s: Since when bytes lie here that end no frame; None when
            none do. `frame_ended` is called by who knows where frames end.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(stream)
        self.received_bytes = 0
        self.unfinished_since_s: float | None = None
        self._unread = bytearray()
        # The base class takes (host, port) only, and IPv6 names have four parts.
        self._cached_remote_address = stream.socket.getpeername()[:2]

    async def read(self, n: int | None = None) -> bytes:
        """All ``n`` bytes, or fewer at the end; with no ``n`` what is there. Cancel-safe.

        Fewer would do for libp2p, but it takes a message that came in over a
        hundred pieces, as from behind a narrow link, for one that was cut short.
        """
        if n == 0:
            return b""
        while len(self._unread) < (1 if n is None else n):
            received = await self._receive()
            if not received:
                break
            self._unread += received
        count = len(self._unread) if n is None else n
        with memoryview(self._unread) as unread:
            taken = bytes(unread[:count])
        del self._unread[:count]
        return taken

    def frame_ended(self) -> None:
        """Note that all that was read so far was of whole frames."""
        self.unfinished_since_s = trio.current_time() if self._unread else None

    async def _receive(self) -> bytes:
        """Wait for more bytes; b"" at the end. Cancel-safe."""
        received = await super().read(READ_SIZE_BYTES)
        self.received_bytes += len(received)
        if self.unfinished_since_s is None:
            self.unfinished_since_s = trio.current_time()
        return received


class PrivateTCPStream(BufferedTCPStream):
    """A TCP stream of a private network: nothing but `Protection`'s bytes goes over it.

    py-libp2p has private networks of its own, with nonces of 8 bytes where the
    specification has 24: nobody else's connections are understood by it.
    """

    def __init__(
        self, stream: trio.SocketStream, protection: Protection, *, initiator: bool
    ) -> None:
        super().__init__(stream)
        self._protection = protection
        self._initiator = initiator

    async def write(self, data: bytes) -> None:
        """Send ``data`` protected.

        Raises:
            OtherNetworkError: The other side is in another network or in none. A
                listener finds that out before it sends any of ``data``.
        """
        if not self._initiator and not self._protection.admitted:
            self._unread += await self._receive()
        await super().write(self._protection.protect(data))

    async def _receive(self) -> bytes:
        if nonce := self._protection.nonce():  # others wait for it before they say more
            await super().write(nonce)
        while True:
            try:
                received = await super()._receive()
            except ConnectionClosedError:
                self._protection.ended()
                raise
            if not received:
                self._protection.ended()
                return b""
            if said := self._protection.open(received):
                return said
