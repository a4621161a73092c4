"""The way to a bootstrap peer, up to the handshake, and which step of it failed.

A dial says that it failed, and not where: so what answers on the port is looked at.
"""

from __future__ import annotations

import socket
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import trio

from shoal.crypto.errors import ShoalError
from shoal.node.errors import OtherNetworkError

if TYPE_CHECKING:
    from shoal.crypto.peer_id import PeerId
    from shoal.node.addresses import Address
    from shoal.node.network import Network
    from shoal.node.private_network import PrivateNetwork

STAGE_LIMIT_S: Final = 4.0
LOOK_LIMIT_S: Final = 1.5
"""For what a port says by itself, once its handshake has failed."""

_NONCE_SIZE_BYTES: Final = 24
_ANOTHER_PEER: Final = "another peer answers"
"""How `Network.connect` words a handshake with a peer that is not the one expected."""

_MULTISTREAM: Final = b"\x13/multistream/1.0.0\n"


class Stage(StrEnum):
    """How far one got; each needs the one before."""

    ADDRESS = "address"
    RESOLVE = "resolve"
    CONNECT = "connect"
    HANDSHAKE = "handshake"
    PROTOCOL = "protocol"
    ADVERT = "advert"


class StoppedError(Exception):
    """A stage failed; ends the visit."""

    def __init__(self, stage: Stage, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.stage, self.reason, self.hint = stage, reason, hint


async def resolve(place: Address) -> None:
    """See that a name leads somewhere; raises `StoppedError`."""
    try:
        with trio.fail_after(STAGE_LIMIT_S):
            await trio.socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise StoppedError(
            Stage.RESOLVE,
            f"the name {place.host} leads nowhere: {error.strerror}",
            "is the name spelled right, and does this machine reach its name server?",
        ) from None
    except trio.TooSlowError:
        raise StoppedError(
            Stage.RESOLVE,
            f"no name server said within {STAGE_LIMIT_S:.0f} s where {place.host} is",
            "does this machine reach its name server?",
        ) from None


async def meet(
    network: Network, place: Address, peer: PeerId, private: PrivateNetwork | None
) -> None:
    """Connect and shake hands; where that fails, look which of the two it was."""
    bare = str(replace(place, peer=None))
    try:
        await network.connect(peer, [bare], STAGE_LIMIT_S)
    except OtherNetworkError as error:
        reason = error.message.partition(f"{bare}: ")[2] or error.message
        raise StoppedError(
            Stage.HANDSHAKE,
            f"it is not in this node's private network: {reason}",
            "take that address away; or be where it is: `shoal join TOKEN` here with an "
            "invitation of its network, or `shoal leave` here where it is in none",
        ) from None
    except ShoalError as error:
        reason = error.message.partition(f"{bare}: ")[2] or error.message
        said = b"" if _ANOTHER_PEER in reason else await _look(place)
        raise _why_no_handshake(peer, reason, said, private=private is not None) from None


async def _look(place: Address) -> bytes:
    """What a port says first to somebody who speaks libp2p in the clear."""
    try:
        with trio.fail_after(STAGE_LIMIT_S):
            stream = await trio.open_tcp_stream(place.host, place.port)
    except trio.TooSlowError:
        raise StoppedError(
            Stage.CONNECT,
            f"no answer within {STAGE_LIMIT_S:.0f} s",
            "is that machine up, is the address still its own, and does a firewall between "
            "let the port through?",
        ) from None
    except OSError as error:
        raise _not_connected(error, place.port) from None
    said = b""
    async with stream:
        with trio.move_on_after(LOOK_LIMIT_S):
            try:
                await stream.send_all(_MULTISTREAM)
                while len(said) < _NONCE_SIZE_BYTES:
                    some = await stream.receive_some(256)
                    if not some:
                        break
                    said += some
            except trio.BrokenResourceError:
                pass
    return said


def _not_connected(error: OSError, port: int) -> StoppedError:
    causes = [error.__cause__, error, *getattr(error.__cause__, "exceptions", ())]
    refused = any(isinstance(cause, ConnectionRefusedError) for cause in causes)
    if refused:
        return StoppedError(
            Stage.CONNECT,
            f"connection refused: nobody listens on port {port} there",
            "is the daemon up on that machine, and is the port still the one it listens on?",
        )
    known = next((c for c in reversed(causes) if isinstance(c, OSError) and c.strerror), error)
    return StoppedError(
        Stage.CONNECT,
        known.strerror or str(known),
        "is this machine online, and the address right?",
    )


def _why_no_handshake(peer: PeerId, reason: str, said: bytes, *, private: bool) -> StoppedError:
    """Tell what answers on a port by what it says first."""
    if _ANOTHER_PEER in reason:
        return StoppedError(
            Stage.HANDSHAKE,
            f"another peer answers there, not …{peer[-8:]}",
            "the end of the address, /p2p/ and an id, is not that node's, or the address has "
            "been given to another machine: ask its operator for the one its daemon shows",
        )
    if said.startswith(_MULTISTREAM) or said[:1] == _MULTISTREAM[:1]:
        return StoppedError(
            Stage.HANDSHAKE,
            f"a libp2p node answers, and the handshake fails: {reason}",
            "ask its operator which program runs there, and which version",
        )
    if said and said[:8].isascii() and said[:8].decode().isprintable():
        first_line = said[:40].decode("ascii", "replace").splitlines()[0]
        return StoppedError(
            Stage.HANDSHAKE,
            f"another program answers: {first_line!r}",
            "is the port right?",
        )
    if len(said) >= _NONCE_SIZE_BYTES and not private:
        return StoppedError(
            Stage.HANDSHAKE,
            "it seems to be in a private network, and this node has no secret of one",
            "have a member of it make an invitation, and `shoal join TOKEN` here",
        )
    return StoppedError(
        Stage.HANDSHAKE,
        f"the port is open, and what listens there ends or says nothing ({reason})",
        "is that port a shoal daemon's, and is it busy or hung? Its operator can look",
    )
