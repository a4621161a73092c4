"""The taker's way to a bulk port: where it is, and the first bytes."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import trio

from shoal.node.errors import NetworkError
from shoal.protocol.channel_messages import MAGIC
from shoal.protocol.reachability import Scope, scope_of

if TYPE_CHECKING:
    from shoal.crypto.peer_id import PeerId
    from shoal.protocol.channel_messages import ChannelOffered

DIAL_LIMIT_S = 5.0


async def place(peer: PeerId, offer: ChannelOffered, ip: str) -> str:
    """Where to dial: never nearer than the peer itself is, as with introductions.

    Args:
        peer: Who offers.
        offer: What it offers.
        ip: Where it is connected.

    Raises:
        NetworkError: ``no_channel``: what it announces may not be dialled.
    """
    if offer.host is None:
        return ip
    try:
        with trio.fail_after(DIAL_LIMIT_S):
            found = await trio.socket.getaddrinfo(
                offer.host, offer.port, type=socket.SOCK_STREAM
            )
    except (OSError, UnicodeError, trio.TooSlowError):
        found = []
    for *_, address in found:
        scope = scope_of(str(address[0]))
        if scope is Scope.INTERNET or scope >= scope_of(ip):
            return str(address[0])
    raise NetworkError(
        f"{peer} announces its bulk port at {offer.host!r:.80}, which leads nowhere that "
        "may be dialled",
        code="no_channel",
    )


async def dial(peer: PeerId, host: str, offer: ChannelOffered) -> socket.socket:
    """Connect to a bulk port and say the token; gives a blocking socket.

    Raises:
        NetworkError: ``no_channel``.
    """
    try:
        with trio.fail_after(DIAL_LIMIT_S):
            stream = await trio.open_tcp_stream(host, offer.port)
            async with stream:
                await stream.send_all(MAGIC + offer.token)
                sock = socket.socket(fileno=stream.socket.detach())
    except (OSError, trio.TooSlowError, trio.BrokenResourceError) as error:
        raise NetworkError(
            f"the bulk port of {peer}, {host} port {offer.port}, does not answer: "
            f"{error or 'too slow'}",
            code="no_channel",
            hint="its operator can forward the port, and name it with bulk_announce",
        ) from None
    sock.setblocking(True)  # the name of a setting
    return sock
