"""Requests to the local API and what to make of the answers; no IO.

A *flow* is a generator that yields `Request` and `Work` steps, is sent what came
of each, and returns a value. The blocking and the non-blocking client differ
only in how they carry out a step. Where a step ends by an error, or is cancelled, that is
thrown into the flow, which may take back what it began before it lets the error go on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from shoal.node.errors import DaemonError, DaemonUnreachableError, WaitTimeoutError
from shoal.node.home_lock import holder_of
from shoal.node.records import Failure

if TYPE_CHECKING:
    from pathlib import Path

    from shoal.crypto.content import Buffer
    from shoal.node.daemon_place import DaemonPlace

CONNECT_LIMIT_S = 5.0
ANSWER_LIMIT_S = 60.0
"""The daemon answers at once unless a request says that it may take longer."""

PARTING_LIMIT_S = 2.0
"""For telling the daemon that nobody waits any more; it is on this machine."""

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request.

    Attributes:
        body: Bytes, or what gives them in pieces, for those that are not held in memory.
        answer_limit_s: How long the answer may take.
        refusals: Statuses of errors that the flow wants to see as None.
        parting: Whether it is said while the flow is being ended from outside: it is
            then carried out all the same, within `PARTING_LIMIT_S`.
        large: Whether the answer may fill much of the memory: then it comes as a bytearray
            that it was gathered in, and is never there twice.
        quick: Whether it is a `node.quick_request`, its body bytes.
    """

    method: str
    path: str
    query: Mapping[str, str | int | float] = field(default_factory=dict)
    body: bytes | Callable[[], Iterator[bytes]] = b""
    answer_limit_s: float = ANSWER_LIMIT_S
    refusals: tuple[int, ...] = ()
    content_type: str = ""
    parting: bool = False
    large: bool = False
    quick: bool = False

    @property
    def target(self) -> str:
        """Path and query, as they stand in a request."""
        path = quote(self.path, safe="/%")  # an id may be anything that somebody typed
        return f"{path}?{urlencode(self.query)}" if self.query else path

    @property
    def headers(self) -> dict[str, str]:
        """What is said about the body."""
        return {"content-type": self.content_type} if self.content_type else {}


@dataclass(frozen=True, slots=True)
class Work:
    """Something that keeps a core busy; a non-blocking client gives it a thread."""

    call: Callable[[], Any]


Flow: TypeAlias = Generator[Request | Work, Any, Value]


def body_of(request: Request, status: int, body: bytes | bytearray) -> Buffer | None:
    """The answer's body; None for an error that the request asked to see so.

    Raises:
        DaemonError: The daemon answered with another error.
    """
    if status < 400:
        return body
    if status in request.refusals:
        return None
    raise refusal_of(status, body)


def refusal_of(status: int, body: bytes | bytearray) -> DaemonError:
    """The error that an answer tells of."""
    try:
        failure = msgspec.convert(msgspec.json.decode(body)["error"], Failure)
    except (msgspec.MsgspecError, KeyError, TypeError):
        failure = Failure("daemon", f"the daemon answered with status {status}")
    return DaemonError(failure.message, hint=failure.hint, code=failure.code, status=status)


def unreachable(place: DaemonPlace) -> DaemonUnreachableError:
    """The error for a socket that nobody answers on."""
    socket = place.socket
    if _forbidden(socket):
        return DaemonUnreachableError(
            f"this user may not use the daemon's socket {socket}",
            code="socket_forbidden",
            hint="join its group, or start a daemon of your own, with a home of yours (--home)",
        )
    holder = holder_of(place.home)
    if holder is None:
        return DaemonUnreachableError(
            f"no daemon answers on {socket}", hint="start it with `shoal up`"
        )
    if holder.socket != socket:
        return DaemonUnreachableError(
            f"a daemon (process {holder.pid}) runs on the home {place.home}, "
            f"but not on the socket {socket}",
            code="daemon_elsewhere",
            hint=f"its socket is {holder.socket}: give that, or no socket at all",
        )
    return DaemonUnreachableError(
        f"the daemon (process {holder.pid}) of the home {place.home} does not answer",
        code="daemon_silent",
        hint="it may be starting or ending: try again in some seconds, and see its log",
    )


def _forbidden(socket: Path) -> bool:
    """Whether this user may not use it, or not even enter the directory that it is in."""
    try:
        socket.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return not os.access(socket, os.W_OK)


def too_slow(request: Request) -> WaitTimeoutError:
    """The error for an answer that did not come in time."""
    return WaitTimeoutError(
        f"the daemon did not answer {request.method} {request.path[:60]} "
        f"in {request.answer_limit_s:.0f} s",
        code="daemon_silent",
        hint="see its log; `shoal doctor` looks for causes",
    )
