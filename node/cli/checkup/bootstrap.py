"""How a newcomer finds the network: each bootstrap peer, stage by stage, asked at once.

*Resolve* its name, *connect* to its port, a *handshake* in which it proves to be the
peer that was expected, the *protocol* version by its own hello, and its own *advert* in
its answer to an empty digest. This goes by a network of its own with a throw-away key
and no listener, so that it works whether or not a daemon runs.

The peers that are asked have to do with a visitor: it declines their digest, so they
take it neither for a link nor into their table, write one line that names it, and see
it leave. Reading adverts it learns what their clocks show (`peers.clock`).
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import trio

import shoal
from shoal.crypto import identity
from shoal.crypto.errors import ShoalError, VerificationError
from shoal.crypto.peer_id import PeerId
from shoal.node.addresses import Address, parse_address
from shoal.node.errors import OtherNetworkError
from shoal.node.frames import receive_frame, send_frame
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.limits import PROTOCOL_MAJOR, PROTOCOL_MINOR
from shoal.protocol.messages import Adverts, Digest, Hello, Problem, Request, Response
from shoal.protocol.statements import open_advert

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.node.network import ByteStream, Network
    from shoal.node.private_network import PrivateNetwork
    from shoal.protocol.messages import RequestBody, ResponseBody

ALL_LIMIT_S: Final = 10.0
"""For all of them together; they are asked at once."""

STAGE_LIMIT_S: Final = 4.0
LOOK_LIMIT_S: Final = 1.5
"""For what a port says by itself, once its handshake has failed."""

ASKED_LIMIT: Final = 32
"""Bootstrap addresses that are asked; a node is given a few."""

CLOCKS_LIMIT: Final = 64
"""Adverts of one answer whose signatures are checked, at 0.1 ms each."""

_AGENT: Final = f"shoal-doctor/{shoal.__version__}"
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


@dataclass(frozen=True, slots=True)
class Clock:
    """What a peer's clock shows, by an advert of its own: how far ours is ahead of it."""

    peer: PeerId
    ahead_s: float


@dataclass(frozen=True, slots=True)
class Visit:
    """What came of asking one bootstrap address.

    Attributes:
        address: As it was set.
        failed: The stage that failed; None where all went well.
        reason: Why it failed, as the end of a sentence.
        hint: What to do about it.
        agent: What the peer calls itself.
        protocol: The version it speaks.
        advert_age_s: How old its own advert is.
        nodes: How many nodes it told of, itself included.
        clocks: What they say of the time.
    """

    address: str
    failed: Stage | None = None
    reason: str = ""
    hint: str = ""
    agent: str = ""
    protocol: tuple[int, int] = (0, 0)
    advert_age_s: float = 0.0
    nodes: int = 0
    clocks: tuple[Clock, ...] = ()


class _StoppedError(Exception):
    """A stage failed; ends the visit."""

    def __init__(self, stage: Stage, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.stage, self.reason, self.hint = stage, reason, hint


def visit_all(addresses: Sequence[str], private: PrivateNetwork | None) -> list[Visit]:
    """Ask every bootstrap peer; takes `ALL_LIMIT_S` at most.

    Args:
        addresses: Multiaddrs, each with its peer id.
        private: The private network that this node is in.
    """
    if not addresses:
        return []
    return trio.run(_visit_all, list(addresses[:ASKED_LIMIT]), private)


async def _visit_all(addresses: list[str], private: PrivateNetwork | None) -> list[Visit]:
    from shoal.node.control import CONTROL_PROTOCOL, Control, open_control
    from shoal.node.network import open_network

    unfinished = Visit(
        "",
        Stage.CONNECT,
        f"it was not done after {ALL_LIMIT_S:.0f} s",
        "ask again; is this machine, or the way there, very busy?",
    )
    found = {address: replace(unfinished, address=address) for address in addresses}
    async with (
        open_network(identity.generate(), [], private) as network,
        open_control(network, _AGENT) as control,
    ):
        assert isinstance(control, Control)
        control.answer_with(_decline)

        async def visit(address: str) -> None:
            found[address] = await _visit(network, address, private, CONTROL_PROTOCOL)

        with trio.move_on_after(ALL_LIMIT_S):
            async with trio.open_nursery() as nursery:
                for address in addresses:
                    nursery.start_soon(visit, address)
    return list(found.values())


async def _decline(peer: PeerId, body: RequestBody) -> ResponseBody:  # noqa: ARG001
    return Problem(code="visitor", message="this is shoal doctor, which looks and leaves")


async def _visit(
    network: Network, address: str, private: PrivateNetwork | None, protocol: str
) -> Visit:
    try:
        place, peer = _read(address)
        await _resolve(place)
        await _meet(network, place, peer, private)
        return await _ask(network, peer, address, protocol)
    except _StoppedError as stop:
        return Visit(address, stop.stage, stop.reason, stop.hint)


def _read(text: str) -> tuple[Address, PeerId]:
    try:
        place = parse_address(text)
    except ShoalError as error:
        raise _StoppedError(Stage.ADDRESS, error.message, error.hint) from None
    if place.peer is None:
        raise _StoppedError(
            Stage.ADDRESS, "it names no peer", "end it with /p2p/ and the peer's id"
        )
    return place, place.peer


async def _resolve(place: Address) -> None:
    try:
        with trio.fail_after(STAGE_LIMIT_S):
            await trio.socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise _StoppedError(
            Stage.RESOLVE,
            f"the name {place.host} leads nowhere: {error.strerror}",
            "is the name spelled right, and does this machine reach its name server?",
        ) from None
    except trio.TooSlowError:
        raise _StoppedError(
            Stage.RESOLVE,
            f"no name server said within {STAGE_LIMIT_S:.0f} s where {place.host} is",
            "does this machine reach its name server?",
        ) from None


async def _meet(
    network: Network, place: Address, peer: PeerId, private: PrivateNetwork | None
) -> None:
    """Connect and shake hands; where that fails, look which of the two it was."""
    bare = str(replace(place, peer=None))
    try:
        await network.connect(peer, [bare], STAGE_LIMIT_S)
    except OtherNetworkError as error:
        reason = error.message.partition(f"{bare}: ")[2] or error.message
        raise _StoppedError(
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
        raise _StoppedError(
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


def _not_connected(error: OSError, port: int) -> _StoppedError:
    causes = [error.__cause__, error, *getattr(error.__cause__, "exceptions", ())]
    refused = any(isinstance(cause, ConnectionRefusedError) for cause in causes)
    if refused:
        return _StoppedError(
            Stage.CONNECT,
            f"connection refused: nobody listens on port {port} there",
            "is the daemon up on that machine, and is the port still the one it listens on?",
        )
    known = next((c for c in reversed(causes) if isinstance(c, OSError) and c.strerror), error)
    return _StoppedError(
        Stage.CONNECT,
        known.strerror or str(known),
        "is this machine online, and the address right?",
    )


def _why_no_handshake(
    peer: PeerId, reason: str, said: bytes, *, private: bool
) -> _StoppedError:
    """Tell what answers on a port by what it says first."""
    if _ANOTHER_PEER in reason:
        return _StoppedError(
            Stage.HANDSHAKE,
            f"another peer answers there, not …{peer[-8:]}",
            "the end of the address, /p2p/ and an id, is not that node's, or the address has "
            "been given to another machine: ask its operator for the one its daemon shows",
        )
    if said.startswith(_MULTISTREAM) or said[:1] == _MULTISTREAM[:1]:
        return _StoppedError(
            Stage.HANDSHAKE,
            f"a libp2p node answers, and the handshake fails: {reason}",
            "ask its operator which program runs there, and which version",
        )
    if said and said[:8].isascii() and said[:8].decode().isprintable():
        first_line = said[:40].decode("ascii", "replace").splitlines()[0]
        return _StoppedError(
            Stage.HANDSHAKE,
            f"another program answers: {first_line!r}",
            "is the port right?",
        )
    if len(said) >= _NONCE_SIZE_BYTES and not private:
        return _StoppedError(
            Stage.HANDSHAKE,
            "it seems to be in a private network, and this node has no secret of one",
            "have a member of it make an invitation, and `shoal join TOKEN` here",
        )
    return _StoppedError(
        Stage.HANDSHAKE,
        f"the port is open, and what listens there ends or says nothing ({reason})",
        "is that port a shoal daemon's, and is it busy or hung? Its operator can look",
    )


async def _ask(network: Network, peer: PeerId, address: str, protocol: str) -> Visit:
    try:
        with trio.fail_after(STAGE_LIMIT_S):
            stream = await network.open_stream(peer, protocol, STAGE_LIMIT_S)
            async with stream:
                theirs = await _greet(stream)
                return _told(peer, address, theirs, await _adverts(stream, theirs))
    except trio.TooSlowError:
        raise _StoppedError(
            Stage.PROTOCOL,
            f"it gave no answer within {STAGE_LIMIT_S:.0f} s",
            "its daemon is busy or hung: ask its operator to look at its log",
        ) from None
    except ShoalError as error:
        raise _StoppedError(
            Stage.PROTOCOL,
            error.message,
            "is it a shoal daemon, and of a version near to this one?",
        ) from None


async def _greet(stream: ByteStream) -> Hello:
    """Exchange hellos; versions that do not fit end the visit."""
    own = Hello(protocol=(PROTOCOL_MAJOR, PROTOCOL_MINOR), agent=_AGENT)
    await send_frame(stream, Request(id=0, body=own))
    response = await receive_frame(stream, Response)
    match response.body:
        case Hello(protocol=(major, _)) if major == PROTOCOL_MAJOR:
            return response.body
        case Hello(protocol=(major, _), agent=agent):
            raise _StoppedError(
                Stage.PROTOCOL,
                f"it speaks protocol {major} ({agent}), this node {PROTOCOL_MAJOR}",
                f"upgrade shoal {'there' if major < PROTOCOL_MAJOR else 'on this machine'}",
            )
        case Problem(code="version_unsupported", message=message):
            raise _StoppedError(
                Stage.PROTOCOL,
                f"it refuses protocol {PROTOCOL_MAJOR}, which this node speaks, and says: "
                f"{message!r}",
                "upgrade the one of the two whose version of shoal is older; in its words, "
                "“you” is this machine",
            )
        case other:
            raise RemoteProtocolError(
                f"it answered a hello with {_words(other)}", code="unfitting_answer"
            )


async def _adverts(stream: ByteStream, theirs: Hello) -> Adverts:
    await send_frame(stream, Request(id=1, body=Digest(held=())))
    response = await receive_frame(stream, Response)
    if isinstance(response.body, Adverts):
        return response.body
    raise _StoppedError(
        Stage.ADVERT,
        f"it speaks protocol {theirs.protocol[0]}, and answered a digest with "
        f"{_words(response.body)}",
        "ask again in some seconds: it may be starting",
    )


def _words(body: ResponseBody) -> str:
    return body.message if isinstance(body, Problem) else type(body).__name__


def _told(peer: PeerId, address: str, theirs: Hello, answer: Adverts) -> Visit:
    """Read the adverts that a peer sent, its own among them."""
    wall_s, clocks = time.time(), []
    own_age_s = None
    for envelope, age_s in answer.adverts[:CLOCKS_LIMIT]:
        try:
            advert = open_advert(envelope)
        except VerificationError as error:
            raise _StoppedError(
                Stage.ADVERT, f"it sent a bad advert: {error.message}", "do not join through it"
            ) from None
        clocks.append(Clock(PeerId(advert.peer), wall_s - advert.issued_at_ms / 1000 - age_s))
        if advert.peer == peer:
            own_age_s = age_s
    if own_age_s is None and len(answer.adverts) <= CLOCKS_LIMIT:
        raise _StoppedError(
            Stage.ADVERT,
            "its answer does not hold its own advert",
            "ask again in some seconds: it may be starting, or its disk is full",
        )
    return Visit(
        address,
        agent=theirs.agent,
        protocol=theirs.protocol,
        advert_age_s=own_age_s or 0.0,
        nodes=len(answer.adverts),
        clocks=tuple(clocks),
    )
