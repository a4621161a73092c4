"""The Unix socket of the local API, and the HTTP server on it.

Whoever may connect to the socket may command the daemon: its mode is 0600 from
the moment it exists, or 0660 with a group for the system service. A lock file
beside it comes first, so that of two daemons one is refused, and only under
that lock is a socket that a killed daemon left behind removed. A path that
holds anything else is never touched.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import socket
import stat
from contextlib import contextmanager, suppress
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING

import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from shoal.node.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from starlette.applications import Starlette
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from shoal.node.api.shortcut import Shortcut

CONNECTIONS_LIMIT = 256
"""Open at once; one more is closed at once, and its client may come back."""

SEND_LIMIT_S = 120.0
"""A client that takes nothing for so long is gone."""

KEEP_ALIVE_S = 60.0
"""How long a connection may be idle between two requests."""

_PIECE_BYTES = 64 << 10
_BACKLOG = 128
_log = structlog.get_logger(__name__)


async def serve_api(
    app: Starlette,
    socket_path: Path,
    *,
    group: str | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the API on a Unix socket until cancelled; then the socket is gone.

    Args:
        app: What `make_app` gives.
        socket_path: Where the socket is to be.
        group: The group that may use it too, for the system service.
        task_status: Told once connections are accepted.

    Raises:
        ConfigError: As `claim_socket` does.
    """
    with claim_socket(socket_path, group=group) as listening:
        await serve_on(app, listening, task_status=task_status)


async def serve_on(
    app: Starlette,
    listening: socket.socket,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the API on a socket that is listening already, until cancelled."""
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
    open_now: set[trio.SocketStream] = set()
    shortcut = getattr(app.state, "shortcut", None)
    served = ASGIWrapper(reading_away(app))  # type: ignore[arg-type]  # theirs names each message
    handle = partial(_serve_connection, served, shortcut, _settings(), open_now)
    async with trio.open_nursery() as connections:
        try:
            task_status.started()
            await trio.serve_listeners(handle, [listener], handler_nursery=connections)
        finally:
            # The HTTP server shields its writes: one to a client that does not
            # read ends only when its socket is closed.
            for stream in open_now:
                stream.socket.close()


@contextmanager
def claim_port(place: tuple[str, int]) -> Iterator[socket.socket]:
    """Hold a TCP port, listening, for what anybody who reaches it may read.

    Raises:
        ConfigError: ``port_unusable``.
    """
    host, port = place
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server(place, family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"metrics cannot be served on {host} port {port}: {error.strerror}",
            code="port_unusable",
            hint="choose another place with --metrics, or leave it away",
        ) from None
    if not ip_address(host).is_loopback:
        _log.warning("whoever reaches this address can read the metrics", host=host, port=port)
    with listening:
        yield listening


@contextmanager
def claim_socket(path: Path, *, group: str | None = None) -> Iterator[socket.socket]:
    """Hold the socket at ``path``, listening and locked, then remove it.

    A daemon claims its socket before it opens anything else, which makes this
    the guard against a second one on the same home.

    Raises:
        ConfigError: ``daemon_running``, ``socket_path_taken``, ``socket_unwritable``
            or ``no_such_group``.
    """
    _refuse_other_file(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        _lock(lock, path)
        _remove_stale(path)
        with _bind(path, group) as listening:
            try:
                yield listening
            finally:
                with suppress(OSError):
                    path.unlink()
    finally:
        os.close(lock)


def _lock(lock: int, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        raise _running(path, f" (process {pid})" if pid.isdecimal() else "") from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode("ascii"), 0)


def _remove_stale(path: Path) -> None:
    """Remove the socket of a daemon that was killed; we hold its lock."""
    _refuse_other_file(path)
    if not path.exists():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            pass  # nobody listens
        else:
            raise _running(path, "")
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from None


def _bind(path: Path, group: str | None) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        listening.bind(str(path))
    except OSError as error:
        listening.close()
        raise _unwritable(path, error) from None
    finally:
        os.umask(before)
    if group is not None:  # 0600 and ours until the group is set
        try:
            shutil.chown(path, group=group)
            path.chmod(0o660)
        except (LookupError, OSError) as error:
            listening.close()
            path.unlink()
            raise ConfigError(
                f"the socket {path} cannot be given to the group {group!r}: {error}",
                code="no_such_group",
                hint="set `socket_group` to a group that this user is in",
            ) from None
    listening.listen(_BACKLOG)
    return listening


def _refuse_other_file(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unwritable(path, error) from None
    if not stat.S_ISSOCK(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a file that is not a socket"
        raise ConfigError(
            f"the socket cannot be at {path}, where there is {kind}",
            code="socket_path_taken",
            hint="move it away, or choose another path with --socket or SHOAL_SOCKET",
        )


def _running(path: Path, process: str) -> ConfigError:
    return ConfigError(
        f"a daemon{process} serves {path} already",
        code="daemon_running",
        hint="use it, end it with `shoal down`, or give this one another --home",
    )


def _unwritable(path: Path, error: OSError) -> ConfigError:
    reason = "it is not a directory" if error.errno == errno.ENOTDIR else error.strerror
    return ConfigError(
        f"there can be no socket at {path}: {reason}",
        code="socket_unwritable",
        hint="choose a writable place with --socket or SHOAL_SOCKET",
    )


class _Connection:
    """A client's connection, given up when the client stops reading or has left.

    What hypercorn uses of a Trio stream and no more. It would keep the
    connection of a client that has left for `KEEP_ALIVE_S`, but ends an idle one
    when it is told that all is to end; so each has a context of its own.
    """

    def __init__(self, stream: trio.SocketStream, context: WorkerContext) -> None:
        self.socket = stream.socket
        self._receive_some = stream.receive_some
        self._context = context
        self.send_eof = stream.send_eof
        self.aclose = stream.aclose
        self._send_all = stream.send_all
        self.unread = b""

    async def receive_some(self, limit: int) -> bytes:
        data, self.unread = self.unread, b""
        if data:
            return data
        try:
            data = bytes(await self._receive_some(limit))
        finally:
            if not data:
                await self._context.terminated.set()
        return data

    async def send_all(self, data: bytes) -> None:
        with trio.move_on_after(SEND_LIMIT_S) as limit:
            await self._send_all(data)
        if limit.cancelled_caught:
            await self.aclose()
            raise trio.BrokenResourceError("the client stopped reading")


async def _serve_connection(
    app: ASGIWrapper,
    shortcut: Shortcut | None,
    settings: HypercornConfig,
    open_now: set[trio.SocketStream],
    stream: trio.SocketStream,
) -> None:
    if len(open_now) >= CONNECTIONS_LIMIT:
        await stream.aclose()
        return
    open_now.add(stream)
    context = WorkerContext(None)
    connection = _Connection(stream, context)
    try:
        if shortcut is not None:
            connection.unread = await _serve_quick(shortcut, connection)
            if not connection.unread:
                return
        server = TCPServer(
            app,
            settings,
            context,
            ConnectionState({}),
            connection,  # what it uses of one
        )
        await server.run()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the client has left
    except Exception:  # noqa: BLE001
        # The root of a connection's task: whatever a client's bytes do to the
        # HTTP libraries ends this connection and never the daemon.
        _log.exception("a connection to the local API failed")
    finally:
        open_now.discard(stream)
        stream.socket.close()


def reading_away(app: ASGIApp) -> ASGIApp:
    """The app, with what it left unread of a request's body read away while its answer ends.

    The HTTP server ends a request by a message into the queue that the body comes through. An
    app that answers half-way, since the disk is full for example, leaves that queue full, and
    would wait for ever in its own answer, as would a client that only sends. Now the connection
    is closed, and the client finds the answer.
    """

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT"):
            await app(scope, receive, send)
            return
        whole = False

        async def receive_noting() -> Message:
            nonlocal whole
            message = await receive()
            whole = not message.get("more_body", False)
            return message

        async def read_away() -> None:
            while not whole:
                await receive_noting()

        async def send_reading(message: Message) -> None:
            if message["type"] != "http.response.body" or message.get("more_body", False):
                await send(message)
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_away)
                await send(message)
                nursery.cancel_scope.cancel()

        await app(scope, receive_noting, send_reading)

    return serve


async def _serve_quick(shortcut: Shortcut, connection: _Connection) -> bytes:
    """Answer quick requests, and give the first bytes that are none; b"" at the end."""
    while True:
        data = b""
        with trio.move_on_after(KEEP_ALIVE_S):
            data = await connection.receive_some(_PIECE_BYTES)
        if not data or not await shortcut(data, connection.send_all):
            return data


def _settings() -> HypercornConfig:
    settings = HypercornConfig()
    settings.accesslog = None
    settings.errorlog = logging.getLogger("hypercorn.error")
    settings.keep_alive_timeout = KEEP_ALIVE_S
    settings.include_server_header = False
    return settings
