"""Connections to a daemon that are kept open; blocking.

One request at a time goes over each; a thread that finds none idle opens another. HTTP is
h11's, which is imported in a fraction of the time of a whole client, as every command does; a
quick request (`node.quick_request`) does without.

What a connection does wrong is told by errors of its own, since what is sent may be read from
a file, whose errors are another matter.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import h11

from shoal.node import quick_request
from shoal.node.client.exchange import CONNECT_LIMIT_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shoal.node.client.exchange import Request

IDLE_LIMIT_S = 5.0
"""A line that was idle for longer is not used again: the daemon ends one after a minute, and
a request would be lost that goes out just then."""

IDLE_LIMIT = 16
"""Lines that are kept for later: the daemon has room for 256 of all its clients."""

_PIECE_BYTES = 64 << 10


class LineBrokenError(ConnectionError):
    """Nobody answers, or what came is no answer."""


class LineSilentError(TimeoutError):
    """Nothing came, or nothing was taken, in the time that it had."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What comes back for a request.

    Attributes:
        status: Of HTTP.
        pieces: Its body, as it comes.
    """

    status: int
    pieces: Iterator[bytes | bytearray]


class Lines:
    """Carries requests to a daemon, for any number of threads.

    Args:
        path: The daemon's socket.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._idle: deque[_Line] = deque()

    @contextmanager
    def answer(self, request: Request, limit_s: float | None) -> Iterator[Answer]:
        """Send a request; what comes is read within the block.

        Args:
            request: What to ask for.
            limit_s: How long each part may take to go or come; None is without end.

        Raises:
            LineBrokenError, LineSilentError: No answer came, or it broke off.
        """
        with self._line(limit_s) as line:
            line.say(request)
            yield Answer(line.hear_status(), line.hear_body())

    def ask(self, request: bytes, limit_s: float) -> tuple[int, bytes]:
        """Send a quick request; gives the status and the body of its answer.

        Args:
            request: What `quick_request.encode` gave.
            limit_s: How long each part of the answer may take to come.

        Raises:
            LineBrokenError, LineSilentError: No answer came, or it broke off.
        """
        with self._line(limit_s) as line, _translated():
            line.socket.sendall(request)
            return _receive(line.socket)

    def close(self) -> None:
        """Close those that are idle."""
        while (line := self._idle_one()) is not None:
            line.socket.close()

    @contextmanager
    def _line(self, limit_s: float | None) -> Iterator[_Line]:
        """A line for one request, which is closed where that did not come to its end."""
        line = self._take()
        try:
            line.socket.settimeout(limit_s)
            yield line
            again = line.ready_again()
        except BaseException:
            line.socket.close()
            raise
        if again and len(self._idle) < IDLE_LIMIT:
            line.used_at_s = time.monotonic()
            self._idle.append(line)
        else:
            line.socket.close()

    def _take(self) -> _Line:
        while (idle := self._idle_one()) is not None:
            if time.monotonic() - idle.used_at_s < IDLE_LIMIT_S and _is_open(idle.socket):
                return idle
            idle.socket.close()
        with _translated():
            return _Line(_connected(self._path))

    def _idle_one(self) -> _Line | None:
        try:
            return self._idle.pop()
        except IndexError:  # to look first would not do: another thread may take the last
            return None


class _Line:
    """One connection, and where it is in HTTP."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.used_at_s = 0.0
        self._http = h11.Connection(h11.CLIENT)

    def say(self, request: Request) -> None:
        """Send a request, as far as the daemon takes it: it may refuse it before its end."""
        for part in _parts(request):
            if not self._send(part):
                return

    def hear_status(self) -> int:
        """The status of what is answered."""
        while not isinstance(event := self._receive(), h11.Response):
            pass  # "100 Continue", which nobody asked for
        return event.status_code

    def hear_body(self) -> Iterator[bytes | bytearray]:
        """The body of what is answered, piece by piece."""
        while isinstance(event := self._receive(), h11.Data):
            yield event.data

    def ready_again(self) -> bool:
        """Whether another request may follow: this one went, and all of its answer came."""
        if self._http.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
            self._http.start_next_cycle()
        return self._http.our_state is h11.IDLE

    def _send(self, event: h11.Event) -> bool:
        """Send a part; False where the other end takes no more."""
        with _translated():
            left = memoryview(self._http.send(event) or b"")
            try:
                while left:
                    left = left[self.socket.send(left) :]
            except (BrokenPipeError, ConnectionResetError):
                return False
        return True

    def _receive(self) -> object:
        """The next event of h11's."""
        with _translated():
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(self.socket.recv(_PIECE_BYTES))
        return event


def _parts(request: Request) -> Iterator[h11.Event]:
    headers = [("host", "shoal"), *request.headers.items()]
    if callable(request.body):
        body, framing = request.body(), ("transfer-encoding", "chunked")
    else:
        body, framing = iter([request.body]), ("content-length", str(len(request.body)))
    yield h11.Request(method=request.method, target=request.target, headers=[*headers, framing])
    for piece in body:
        yield h11.Data(piece)
    yield h11.EndOfMessage()


@contextmanager
def _translated() -> Iterator[None]:
    """What goes wrong with a connection, as this module's errors."""
    try:
        yield
    except TimeoutError as error:
        raise LineSilentError(str(error)) from None
    except (OSError, h11.RemoteProtocolError) as error:
        raise LineBrokenError(str(error)) from None


def _connected(path: Path) -> socket.socket:
    line = socket.socket(socket.AF_UNIX)
    try:
        line.settimeout(CONNECT_LIMIT_S)
        line.connect(str(path))
    except BaseException:
        line.close()
        raise
    return line


def _is_open(line: socket.socket) -> bool:
    """Whether the daemon has not closed it, which was idle."""
    line.setblocking(False)
    try:
        line.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _receive(line: socket.socket) -> tuple[int, bytes]:
    received = b""
    while (end := received.find(b"\r\n\r\n")) < 0:
        received += _more(line)
    head = quick_request.decode_head(received[: end + 2])
    if head is None:
        raise ConnectionError("what answers is not the daemon")
    status, size_bytes = head
    body = bytearray(received[end + 4 :])
    while len(body) < size_bytes:
        body += _more(line)
    return status, bytes(body)


def _more(line: socket.socket) -> bytes:
    data = line.recv(_PIECE_BYTES)
    if not data:
        raise ConnectionError("the daemon closed the connection")
    return data
