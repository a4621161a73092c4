"""Connections that are kept open for quick requests (`node.quick_request`); blocking.

One request at a time goes over each; a thread that finds none idle opens another.
"""

from __future__ import annotations

import socket
from collections import deque
from typing import TYPE_CHECKING

from shoal.node import quick_request
from shoal.node.client.exchange import CONNECT_LIMIT_S

if TYPE_CHECKING:
    from pathlib import Path

_PIECE_BYTES = 64 << 10


class Lines:
    """Carries quick requests to a daemon, for any number of threads.

    Args:
        path: The daemon's socket.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._idle: deque[socket.socket] = deque()

    def ask(self, request: bytes, limit_s: float) -> tuple[int, bytes]:
        """Send a request; gives the status and the body of its answer.

        Args:
            request: What `quick_request.encode` gave.
            limit_s: How long each part of the answer may take to come.

        Raises:
            TimeoutError: It took longer.
            OSError: Nobody answers, or what came is no answer.
        """
        line = self._take()
        try:
            line.settimeout(limit_s)
            line.sendall(request)
            answer = _receive(line)
        except BaseException:
            line.close()
            raise
        self._idle.append(line)
        return answer

    def close(self) -> None:
        """Close those that are idle."""
        while (line := self._idle_one()) is not None:
            line.close()

    def _take(self) -> socket.socket:
        while (idle := self._idle_one()) is not None:
            if _is_open(idle):
                return idle
            idle.close()
        line = socket.socket(socket.AF_UNIX)
        try:
            line.settimeout(CONNECT_LIMIT_S)
            line.connect(str(self._path))
        except BaseException:
            line.close()
            raise
        return line

    def _idle_one(self) -> socket.socket | None:
        try:
            return self._idle.pop()
        except IndexError:  # to look first would not do: another thread may take the last
            return None


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
