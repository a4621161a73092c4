"""The sockets that a node listens on: taken, and taken again where one was lost."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import trio

from shoal.node.errors import NetworkError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.node.addresses import Address


async def bind(
    addresses: Sequence[Address], *, flag: str = "--listen"
) -> list[trio.SocketListener]:
    """Listen on every address, or on none.

    Args:
        addresses: Where.
        flag: What chooses another port, for the error's next step.

    Raises:
        NetworkError: ``port_taken``, or the address is not to be had here.
    """
    listeners: list[trio.SocketListener] = []
    for address in addresses:
        try:
            listeners += await trio.open_tcp_listeners(address.port, host=address.host)
        except OSError as error:
            for listener in listeners:
                await listener.aclose()
            raise _cannot_listen(str(address), error, flag) from None
    return listeners


async def bind_again(
    listeners: Sequence[trio.SocketListener], bound: Sequence[tuple[str, int]]
) -> list[trio.SocketListener]:
    """Replace sockets that were lost; those that still listen are kept, and their queues.

    ``bound`` is where they are bound, one for one.

    Raises:
        NetworkError: As `bind`.
    """
    found: list[trio.SocketListener] = []
    for listener, (host, port) in zip(listeners, bound, strict=True):
        if listener.socket.fileno() >= 0:
            found.append(listener)
            continue
        try:
            found += await trio.open_tcp_listeners(port, host=host)
        except OSError as error:
            raise _cannot_listen(f"{host} port {port}", error) from None
    return found


def _cannot_listen(address: str, error: OSError, flag: str = "--listen") -> NetworkError:
    if error.errno == errno.EADDRINUSE:
        return NetworkError(
            f"another process listens on {address}",
            code="port_taken",
            hint=f"choose another port with {flag}; or, if that is a daemon of yours, "
            "end it with `shoal down --home ITS_HOME`",
        )
    return NetworkError(
        f"cannot listen on {address}: {error.strerror or error}",
        code="cannot_listen",
        hint="choose an address of this machine with --listen, "
        f"and a port above 1023 with {flag}",
    )
