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

import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import structlog
import trio

import shoal
from shoal.crypto import identity
from shoal.crypto.errors import ShoalError, VerificationError
from shoal.crypto.peer_id import PeerId
from shoal.node.addresses import Address, DnsAddress, parse_address, parse_bootstrap
from shoal.node.cli.checkup.meeting import STAGE_LIMIT_S, Stage, StoppedError, meet, resolve
from shoal.node.errors import NetworkError
from shoal.node.frames import receive_message, send_frame
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.limits import PROTOCOL_MAJOR, PROTOCOL_MINOR
from shoal.protocol.messages import Adverts, Digest, Hello, Problem, Request, Response
from shoal.protocol.statements import open_advert, open_renewal
from shoal.protocol.vocabulary import UnknownWord, read_frame, read_greeting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.node.network import ByteStream, Network
    from shoal.node.private_network import PrivateNetwork
    from shoal.protocol.messages import RequestBody, ResponseBody

ALL_LIMIT_S: Final = 10.0
"""For all of them together; they are asked at once."""

ASKED_LIMIT: Final = 32
"""Bootstrap addresses that are asked; a node is given a few."""

CLOCKS_LIMIT: Final = 64
"""Adverts of one answer whose signatures are checked, at 0.1 ms each."""

_AGENT: Final = f"shoal-doctor/{shoal.__version__}"


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


def visit_all(addresses: Sequence[str], private: PrivateNetwork | None) -> list[Visit]:
    """Ask every bootstrap peer; takes `ALL_LIMIT_S` at most.

    Args:
        addresses: Multiaddrs, each with its peer id.
        private: The private network that this node is in.
    """
    if not addresses:
        return []
    # What the network's modules log is for a daemon's operator.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    return trio.run(_visit_all, list(addresses[:ASKED_LIMIT]), private)


async def _visit_all(addresses: list[str], private: PrivateNetwork | None) -> list[Visit]:
    from shoal.node.control import Control, open_control
    from shoal.node.network import open_network
    from shoal.node.peer_versions import CONTROL_PROTOCOL

    unfinished = Visit(
        "",
        Stage.CONNECT,
        f"it was not done after {ALL_LIMIT_S:.0f} s",
        "ask again; is this machine, or the way there, very busy?",
    )
    found = {text: {text: replace(unfinished, address=text)} for text in addresses}
    async with (
        open_network(identity.generate(), [], private) as network,
        open_control(network, _AGENT) as control,
    ):
        assert isinstance(control, Control)
        control.answer_with(_decline)

        async def visit(text: str) -> None:
            try:
                unfolded = await _unfolded(network, text)
            except StoppedError as stop:
                found[text] = {text: Visit(text, stop.stage, stop.reason, stop.hint)}
                return
            found[text] = {each: replace(unfinished, address=each) for each in unfolded}
            for address in unfolded:
                nursery.start_soon(visit_one, text, address)

        async def visit_one(text: str, address: str) -> None:
            found[text][address] = await _visit(network, address, private, CONTROL_PROTOCOL)

        with trio.move_on_after(ALL_LIMIT_S):
            async with trio.open_nursery() as nursery:
                for text in addresses:
                    nursery.start_soon(visit, text)
    visits = {visit.address: visit for of_text in found.values() for visit in of_text.values()}
    return list(visits.values())


async def _unfolded(network: Network, text: str) -> list[str]:
    """What a ``/dnsaddr`` name stands for; any other address is itself."""
    try:
        place = parse_bootstrap(text)
    except ShoalError:
        return [text]  # told by the visit
    if not isinstance(place, DnsAddress):
        return [text]
    try:
        with trio.fail_after(STAGE_LIMIT_S):
            return [str(address) for address in await network.dialing.names.peers(place)]
    except trio.TooSlowError:
        reason = f"no name server said within {STAGE_LIMIT_S:.0f} s what {text} stands for"
    except NetworkError as error:
        reason = error.message
    raise StoppedError(
        Stage.RESOLVE,
        reason,
        "is the name spelled right, has it a TXT record, and does this machine reach its "
        "name server?",
    )


async def _decline(peer: PeerId, body: RequestBody) -> ResponseBody:  # noqa: ARG001
    return Problem(code="visitor", message="this is shoal doctor, which looks and leaves")


async def _visit(
    network: Network, address: str, private: PrivateNetwork | None, protocol: str
) -> Visit:
    try:
        place, peer = _read(address)
        await resolve(place)
        await meet(network, place, peer, private)
        return await _ask(network, peer, address, protocol)
    except StoppedError as stop:
        return Visit(address, stop.stage, stop.reason, stop.hint)


def _read(text: str) -> tuple[Address, PeerId]:
    try:
        place = parse_address(text)
    except ShoalError as error:
        raise StoppedError(Stage.ADDRESS, error.message, error.hint) from None
    if place.peer is None:
        raise StoppedError(
            Stage.ADDRESS, "it names no peer", "end it with /p2p/ and the peer's id"
        )
    return place, place.peer


async def _ask(network: Network, peer: PeerId, address: str, protocol: str) -> Visit:
    try:
        with trio.fail_after(STAGE_LIMIT_S):
            stream = await network.open_stream(peer, protocol, STAGE_LIMIT_S)
            async with stream:
                theirs = await _greet(stream)
                return _told(peer, address, theirs, await _adverts(stream, theirs))
    except trio.TooSlowError:
        raise StoppedError(
            Stage.PROTOCOL,
            f"it gave no answer within {STAGE_LIMIT_S:.0f} s",
            "its daemon is busy or hung: ask its operator to look at its log",
        ) from None
    except ShoalError as error:
        raise StoppedError(
            Stage.PROTOCOL,
            error.message,
            "is it a shoal daemon, and of a version near to this one?",
        ) from None


async def _greet(stream: ByteStream) -> Hello:
    """Exchange hellos; versions that do not fit end the visit."""
    own = Hello(protocol=(PROTOCOL_MAJOR, PROTOCOL_MINOR), agent=_AGENT)
    await send_frame(stream, Request(id=0, body=own))
    response = read_greeting(await receive_message(stream), Response)
    match response.body:
        case Hello(protocol=(major, _)) if major == PROTOCOL_MAJOR:
            return response.body
        case Hello(protocol=(major, _), agent=agent):
            raise StoppedError(
                Stage.PROTOCOL,
                f"it speaks protocol {major} ({agent}), this node {PROTOCOL_MAJOR}",
                f"upgrade shoal {'there' if major < PROTOCOL_MAJOR else 'on this machine'}",
            )
        case Problem(code="version_unsupported", message=message):
            raise StoppedError(
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
    await send_frame(stream, Request(id=1, body=Digest(held=b"")))
    response = read_frame(await receive_message(stream), Response, theirs.protocol)
    body = response.problem() if isinstance(response, UnknownWord) else response.body
    if isinstance(body, Adverts):
        return body
    raise StoppedError(
        Stage.ADVERT,
        f"it speaks protocol {theirs.protocol[0]}, and answered a digest with {_words(body)}",
        "ask again in some seconds: it may be starting",
    )


def _words(body: ResponseBody) -> str:
    return body.message if isinstance(body, Problem) else type(body).__name__


def _told(peer: PeerId, address: str, theirs: Hello, answer: Adverts) -> Visit:
    """Read the adverts that a peer sent, its own among them."""
    wall_s = time.time()
    heard: dict[PeerId, tuple[float, float]] = {}
    """Of each node when it spoke last by its own clock, and how long ago by the peer's."""
    try:
        for envelope, age_s in answer.adverts[:CLOCKS_LIMIT]:
            advert = open_advert(envelope)
            heard[PeerId(advert.peer)] = (advert.issued_at_ms / 1000, age_s)
        for envelope, age_s in answer.renewals[:CLOCKS_LIMIT]:
            renewal, signer = open_renewal(envelope)
            heard[signer] = (renewal.issued_at_ms / 1000, age_s)
    except VerificationError as error:
        raise StoppedError(
            Stage.ADVERT, f"it sent a bad advert: {error.message}", "do not join through it"
        ) from None
    clocks = [Clock(node, wall_s - at_s - age_s) for node, (at_s, age_s) in heard.items()]
    own_age_s = heard[peer][1] if peer in heard else None
    if own_age_s is None and len(answer.adverts) <= CLOCKS_LIMIT:
        raise StoppedError(
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
