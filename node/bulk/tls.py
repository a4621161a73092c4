"""TLS of a blocking socket that is read and written in large pieces.

Python's `SSLSocket` has OpenSSL ask the kernel twice for each record of 16 KiB, and give
it one at a time. Here OpenSSL works in memory, and the socket is asked for as much as
there is: that is a twentieth of the system calls, and segments on the wire that are full.
"""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import suppress

READ_BYTES = 256 << 10
"""Asked of the kernel at once; some records are in it, whose plain bytes wait their turn."""


class Tls:
    """One end of TLS over a connected socket; nothing is sent before `shake_hands`.

    An end without TLS's goodbye is an error on it, as of a link that breaks; only whoever
    holds the connection's keys can end it on purpose. Every call raises `TimeoutError` where
    the socket's timeout passes in it, and another `OSError` where the connection breaks.
    """

    def __init__(self, context: ssl.SSLContext, sock: socket.socket, *, server: bool) -> None:
        self.sock = sock
        self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._came, self._goes, server_side=server)
        self._buffer = memoryview(bytearray(READ_BYTES))

    @property
    def certificate(self) -> bytes | None:
        """The other side's, as DER, once hands are shaken."""
        return self._tls.getpeercert(binary_form=True)

    def shake_hands(self) -> None:
        """Begin TLS; what went wrong, the other side is told."""
        end_s = self._end_s()
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._push()
                self._pull(end_s)
            except ssl.SSLError:
                with suppress(OSError):
                    self._push()
                raise
            else:
                self._push()
                return

    def recv_into(self, buffer: memoryview) -> int:
        """Wait for some bytes; gives how many, none where the other side said goodbye."""
        end_s = self._end_s()
        while True:
            try:
                return self._tls.read(len(buffer), buffer)  # type: ignore[arg-type]
            except ssl.SSLWantReadError:
                if self._goes.pending:  # TLS itself had something to answer
                    self._push()
                self._pull(end_s)

    def send(self, data: memoryview) -> int:
        """Send all of ``data``; gives its size."""
        self._tls.write(data)
        self._push()
        return len(data)

    def _push(self) -> None:
        if self._goes.pending:
            self.sock.sendall(self._goes.read())

    def _pull(self, end_s: float) -> None:
        """Get more from the socket; one byte now and then is no reason to wait longer."""
        if time.monotonic() > end_s:
            raise TimeoutError
        count = self.sock.recv_into(self._buffer)
        if count:
            self._came.write(self._buffer[:count])
        else:
            self._came.write_eof()

    def _end_s(self) -> float:
        timeout_s = self.sock.gettimeout()
        return float("inf") if timeout_s is None else time.monotonic() + timeout_s
