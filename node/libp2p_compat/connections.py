"""From a TCP connection to one that libp2p speaks over: both directions.

Time limits are the caller's, who may also stop between the two steps: `secure`
shows who the peer is, `add` makes it a connection that streams are opened on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey

from shoal.crypto.errors import ShoalError
from shoal.crypto.peer_id import PeerId, check_peer_id
from shoal.node.libp2p_compat.muxing import SafeYamux
from shoal.node.libp2p_compat.transport import BufferedTCPStream, PrivateTCPStream

if TYPE_CHECKING:
    from libp2p.abc import INetConn

    from shoal.node.libp2p_compat.host import SturdyHost
    from shoal.node.private_network import Protection

__all__ = ["PeerIDMismatchesPubkey", "add", "dial", "secure", "wrap"]

_FORESEEN_OF_A_DIAL = (BaseLibp2pError, OSError, ShoalError)


def wrap(
    stream: trio.SocketStream, protection: Protection | None, *, initiator: bool
) -> BufferedTCPStream:
    """Make of a socket what libp2p reads and writes."""
    if protection is None:
        return BufferedTCPStream(stream)
    return PrivateTCPStream(stream, protection, initiator=initiator)


async def secure(
    host: SturdyHost, tcp: BufferedTCPStream, peer: PeerId | None = None
) -> SafeYamux:
    """Shake hands: encryption, who the other side is, and the muxer.

    ``peer`` is whom we dialled, and None where we were dialled.

    Raises:
        Exception: Any; the bytes are a stranger's to choose.
    """
    upgrader = host.get_network().upgrader
    raw = RawConnection(tcp, initiator=peer is not None)
    expected = ID.from_base58(peer) if peer else None
    secured = await upgrader.upgrade_security(raw, peer is not None, expected)
    muxed = await upgrader.upgrade_connection(secured, secured.get_remote_peer())
    assert isinstance(muxed, SafeYamux)  # `make_host` offers no other
    check_peer_id(str(muxed.peer_id))
    muxed.tcp = tcp
    return muxed


async def dial(
    host: SturdyHost, stream: trio.SocketStream, protection: Protection | None, peer: PeerId
) -> SafeYamux:
    """Shake hands with whoever answered at an address of ``peer``'s.

    Raises:
        OtherNetworkError: It is not in this node's private network.
        SwarmException: It does not prove to be ``peer``, or breaks the handshake.
    """
    try:
        return await secure(host, wrap(stream, protection, initiator=True), peer)
    except _FORESEEN_OF_A_DIAL:
        raise
    except Exception as error:
        message = f"what answers broke the handshake: {type(error).__name__}"
        raise SwarmException(message) from error


async def add(host: SturdyHost, muxed: SafeYamux, *, inbound: bool) -> INetConn:
    """Make it a connection: streams are opened on it from now on, by both sides."""
    swarm = host.get_network()
    direction = "inbound" if inbound else "outbound"
    return await swarm.add_conn(muxed, direction=direction)
