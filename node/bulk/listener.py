"""The door of the bulk port: whoever brings a good token comes in, in a few bytes.

A connection that has shown none costs a descriptor and a small task, and there are only so
many of them: where one too many comes, the oldest goes that is of the IP with the most. An
honest caller sends its token with the first packet and is through at once, so those who
say nothing crowd out each other.
"""

from __future__ import annotations

import socket
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import structlog
import trio

from shoal.node.admission import place_of
from shoal.node.errors import NetworkError
from shoal.node.listening import bind
from shoal.protocol.channel_messages import MAGIC
from shoal.protocol.limits import CHANNEL_TOKEN_BYTES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from shoal.node.addresses import Address

TOKEN_LIMIT_S = 5.0
"""For 36 bytes that are sent with the first packet."""

SILENT_LIMIT = 64
"""Connections that have shown no token, in all."""

BESIDE = 1000
"""From libp2p's port to the bulk port: daemons on one machine use ports that follow one
another, and their bulk ports are then apart too."""

PORT_TRIES = 8
"""Of ports that the system picks, where one is to be free on several addresses."""

log = structlog.get_logger(__name__)


@dataclass(eq=False, slots=True)
class _Caller:
    """A connection that has shown no token."""

    ip: str
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Door:
    """Takes connections in; `answer` handles one of them.

    Args:
        admit: Given a token, gives who serves its connection, or none for no good one.
        called: Told of each who has shown none: from where, and what there was instead.
    """

    def __init__(
        self,
        admit: Callable[[bytes], Callable[[socket.socket], Awaitable[None]] | None],
        called: Callable[[str, str], None] = lambda _place, _what: None,
    ) -> None:
        self._admit = admit
        self._called = called
        self._silent: dict[_Caller, None] = {}  # an ordered set, the oldest first

    @property
    def silent(self) -> int:
        """How many connections have shown no token so far."""
        return len(self._silent)

    async def answer(self, stream: trio.SocketStream) -> None:
        """Serve one connection, or end it."""
        sock: socket.socket | None = None
        try:
            async with stream:
                serve = await self._token(stream.socket)
                if serve is None:
                    return
                sock = socket.socket(fileno=stream.socket.detach())
            sock.setblocking(True)  # the name of a setting
            await serve(sock)
        finally:
            if sock is not None:
                sock.close()

    async def _token(
        self, sock: trio.socket.SocketType
    ) -> Callable[[socket.socket], Awaitable[None]] | None:
        try:
            caller = _Caller(str(sock.getpeername()[0]))
        except OSError:  # gone already
            return None
        self._make_room()
        self._silent[caller] = None
        said = bytearray()
        size = len(MAGIC) + CHANNEL_TOKEN_BYTES
        try:
            with caller.scope, trio.move_on_after(TOKEN_LIMIT_S):
                while len(said) < size and MAGIC.startswith(said[: len(MAGIC)]):
                    some = await sock.recv(size - len(said))
                    if not some:
                        break
                    said += some
        except OSError:
            said.clear()
        finally:
            del self._silent[caller]
        admitted = self._admit(bytes(said[len(MAGIC) :])) if len(said) == size else None
        if admitted is None:
            self._called(place_of(caller.ip), _what(bytes(said), size))
        return admitted

    def _make_room(self) -> None:
        waiting = [one for one in self._silent if not one.scope.cancel_called]
        if len(waiting) >= SILENT_LIMIT:
            [(ip, _)] = Counter(one.ip for one in waiting).most_common(1)
            next(one for one in waiting if one.ip == ip).scope.cancel()


def _what(said: bytes, size: int) -> str:
    """What a caller said in place of a good token, for its note."""
    if not said:
        return "it said nothing"
    if not MAGIC.startswith(said[: len(MAGIC)]):
        return "it spoke another protocol"
    return "its token was unknown, used or late" if len(said) == size else "it broke off"


async def listen(setting: str | int, addresses: Sequence[Address]) -> list[trio.SocketListener]:
    """Listen on one port of every IP that the node listens on.

    Args:
        setting: A port, or ``auto``: the one that is `BESIDE` libp2p's, or any that is free.
        addresses: Where libp2p listens.

    Raises:
        NetworkError: ``port_taken``, or the address is not to be had here.
    """
    hosts = {address.host: address for address in addresses}
    if isinstance(setting, int):
        return await _bind_all(hosts.values(), setting)
    port = next(iter(hosts.values())).port + BESIDE
    if BESIDE < port <= 65535:
        try:
            return await _bind_all(hosts.values(), port)
        except NetworkError as error:
            log.info("the bulk port is another one than usual", why=error.message)
    for _ in range(PORT_TRIES - 1):
        try:
            return await _bind_all(hosts.values(), 0)
        except NetworkError:
            if len(hosts) == 1:
                raise
    return await _bind_all(hosts.values(), 0)


def port_of(listeners: Sequence[trio.SocketListener]) -> int:
    """The port that all of them listen on."""
    return int(listeners[0].socket.getsockname()[1])


async def _bind_all(addresses: Iterable[Address], port: int) -> list[trio.SocketListener]:
    listeners: list[trio.SocketListener] = []
    try:
        for address in addresses:
            listeners += await bind([replace(address, port=port)], flag="--bulk")
            port = port_of(listeners)
    except NetworkError:
        for listener in listeners:
            await listener.aclose()
        raise
    return listeners
