"""One dial beside all connections: does this peer answer at this port?

libp2p keeps one connection for each peer, and dialling a connected peer gives that
one. So a dial-back is a TCP connection of its own, with a Noise handshake that the
expected peer alone can finish, a token said and echoed inside, and then its end: no
muxer, no entry in the swarm, nothing that the existing connection would notice.

On the wire it is libp2p's own opening, with `DIAL_BACK_PROTOCOL` where the name of
the security protocol stands; a listener that does not know it refuses by that name.
Before the other side has shown that it speaks multistream, it is sent libp2p's
constant opening of 20 bytes (in a private network 24 random bytes and those 20
encrypted) and not a byte that anybody chose: a dial-back is no way to say something
to another service.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
import trio
from libp2p.abc import ISecureTransport
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE

from shoal.crypto.peer_id import PeerId
from shoal.node.libp2p_compat.connections import wrap
from shoal.protocol.reachability_messages import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from libp2p.abc import IRawConnection, ISecureConn

    from shoal.node.libp2p_compat.host import SturdyHost
    from shoal.node.private_network import PrivateNetwork

log = structlog.get_logger(__name__)

DIAL_BACK_PROTOCOL = "/shoal/dial-back/1"
TOKEN_SIZE_BYTES = 18
"""A nonce of 16 bytes, and the port that was dialled in two."""

ANSWER_LIMIT_S = 3.0
"""For the token, once the handshake is done; the upgrade as a whole has its own limit."""


class DialBackAnswered(HandshakeFailure):
    """Ends the upgrade of a connection that was a dial-back, and is done."""


class DialBackTransport(ISecureTransport):
    """The listener's side, as a security protocol that leads to no connection.

    Args:
        noise: Does the handshake.
        expects: Whether this token of this peer's is waited for.
    """

    def __init__(
        self, noise: ISecureTransport, expects: Callable[[PeerId, bytes], bool]
    ) -> None:
        self._noise = noise
        self._expects = expects

    async def secure_inbound(self, conn: IRawConnection) -> ISecureConn:
        """Answer a dial-back; never gives a connection.

        Raises:
            DialBackAnswered: Always, if nothing else went wrong before.
        """
        session = await self._noise.secure_inbound(conn)
        with trio.fail_after(ANSWER_LIMIT_S):
            token = await session.read(TOKEN_SIZE_BYTES)
            if not self._expects(PeerId(str(session.get_remote_peer())), token):
                raise HandshakeFailure("a dial-back that nobody asked for")
            await session.write(token)
        raise DialBackAnswered("a dial-back was answered")

    async def secure_outbound(self, conn: IRawConnection, peer_id: ID) -> ISecureConn:  # noqa: ARG002
        """Refuse: `dial_back` is the other side, and no connection is made this way.

        Raises:
            HandshakeFailure: Always; the listener knows no other protocol than this one.
        """
        raise HandshakeFailure("the peer offers dial-backs only")


def answer_dial_backs(host: SturdyHost, expects: Callable[[PeerId, bytes], bool]) -> None:
    """Let a host's listeners answer the dial-backs whose tokens ``expects`` knows."""
    security = host.get_network().upgrader.security_multistream
    noise = security.transports[NOISE]
    security.add_transport(DIAL_BACK_PROTOCOL, DialBackTransport(noise, expects))


async def dial_back(
    host: SturdyHost,
    peer: PeerId,
    ip: str,
    port: int,
    token: bytes,
    *,
    timeout_s: float,
    private: PrivateNetwork | None,
) -> Outcome:
    """See what answers at a port, once; cancel-safe, and nothing stays open."""
    with trio.move_on_after(timeout_s):
        try:
            stream = await trio.open_tcp_stream(ip, port)
        except OSError as error:
            return _why_not(error)
        try:
            return await _ask(host, peer, stream, token, private)
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)
    return Outcome.NO_ANSWER


async def _ask(
    host: SturdyHost,
    peer: PeerId,
    stream: trio.SocketStream,
    token: bytes,
    private: PrivateNetwork | None,
) -> Outcome:
    tcp = wrap(stream, private.protect() if private else None, initiator=True)
    raw = RawConnection(tcp, initiator=True)
    noise = host.get_network().upgrader.security_multistream.transports[NOISE]
    try:
        await MultiselectClient().select_one_of(
            [DIAL_BACK_PROTOCOL], MultiselectCommunicator(raw)
        )
        session = await noise.secure_outbound(raw, ID.from_base58(peer))
        if session.get_remote_peer() != ID.from_base58(peer):
            return Outcome.OTHER_PEER
        await session.write(token)
        return Outcome.WORKED if await session.read(len(token)) == token else Outcome.OTHER_PEER
    except Exception as error:  # noqa: BLE001  # the bytes are a stranger's to choose
        log.debug("what answers a dial-back is not it", peer=peer, error=repr(error)[:200])
        return Outcome.OTHER_PEER


def _why_not(error: OSError) -> Outcome:
    """Tell a port that is closed from one that is silent; trio groups what it tried."""
    causes: list[BaseException | None] = [error.__cause__, error]
    if isinstance(error.__cause__, BaseExceptionGroup):
        causes += error.__cause__.exceptions
    refused = any(isinstance(cause, ConnectionRefusedError) for cause in causes)
    return Outcome.REFUSED if refused else Outcome.NO_ANSWER
