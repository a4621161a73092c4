"""The answering side of the control protocol, and how much a peer may ask of it.

Every request that is read is answered, by one function that the daemon gives. What
is bounded here is how many are read: by what a peer's requests cost (`node.allowance`),
by how many are in flight, by the answers it has not taken yet, and by how many
streams it asks over. The first answer to too much is always the same: nothing more is
read from that peer, which it feels as a slow one. Only a peer that goes on against
that is told so, and only one that goes on against that has done wrong.

What breaks the protocol ends its stream, and is reported to `node.conduct`.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import structlog
import trio

from shoal.crypto.errors import ShoalError, VerificationError
from shoal.node.allowance import (
    STRANGERS_BURST_MS,
    STRANGERS_MS_PER_S,
    STREAM_MS,
    Allowance,
    Bucket,
    cost_ms,
    is_refusable,
)
from shoal.node.conduct import Conduct
from shoal.node.errors import NetworkError, StreamClosedError
from shoal.node.frames import receive_message, send_frame, send_message, within
from shoal.node.standing import Offence
from shoal.protocol.challenge_messages import ProofOffer
from shoal.protocol.codec import encode
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.limits import REQUESTS_IN_FLIGHT_LIMIT
from shoal.protocol.messages import (
    Adverts,
    Hello,
    Problem,
    Request,
    RequestBody,
    Response,
    ResponseBody,
)
from shoal.protocol.negotiation_messages import AwardOffer, Cancel
from shoal.protocol.versions import Version
from shoal.protocol.vocabulary import UnknownWord, read_frame, read_greeting, said_to

if TYPE_CHECKING:
    from shoal.crypto.peer_id import PeerId
    from shoal.node.network import ByteStream

GREETING_TIME_LIMIT_S = 15.0
"""From a stream's opening to its hello: who opens one and says nothing holds no place."""

STREAMS_LIMIT = 8
"""Control streams of one peer that are served at once. A node opens one; a broken one
that still ends beside it, or a tool of somebody's, is no reason to refuse it."""

UNSENT_LIMIT_BYTES = 1 << 20
"""Of answers that one peer has not taken yet: from there on nothing more of it is read."""

LEAST_WAIT_S = 0.01
"""For a debt to be worked off: one that is near nothing is not waited for in steps."""

IN_ORDER_LIMIT_S = 1.0
"""For what is answered in order before what follows it is read: it takes a millisecond."""

LOOK_OVER_INTERVAL_S = 10.0

ASKERS_LIMIT = 4096
"""Peers whose allowance is remembered after they left, until it is whole again. Coming
back under a new key costs more than what it saves: a handshake."""

TOO_MANY_REQUESTS = "too_many_requests"

Answering: TypeAlias = Callable[["PeerId", RequestBody], Awaitable[ResponseBody]]

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Asker:
    """A peer that asks, over all the streams that it opened."""

    peer: PeerId
    allowance: Allowance = field(default_factory=Allowance)
    streams: int = 0
    unsent_bytes: int = 0
    taken: trio.Event = field(default_factory=trio.Event)
    room: trio.Semaphore = field(
        default_factory=lambda: trio.Semaphore(REQUESTS_IN_FLIGHT_LIMIT)
    )

    def took(self, size_bytes: int) -> None:
        """Note that an answer is out."""
        self.unsent_bytes -= size_bytes
        self.taken.set()
        self.taken = trio.Event()


class Answers:
    """Answers what peers ask over the streams that they open.

    Args:
        conduct: Told of what breaks the protocol; knows who is a friend.
        greet: Gives the answer to a peer's first request on a stream; a problem ends it.

    Attributes:
        answer: Gives the answer to every other request.
    """

    def __init__(
        self, conduct: Conduct, greet: Callable[[PeerId, RequestBody], Hello | Problem]
    ) -> None:
        self.answer: Answering = _answer_nothing
        self._conduct = conduct
        self._greet = greet
        self._askers: dict[PeerId, _Asker] = {}
        self._looked_over_at_s = -math.inf
        self._strangers = Bucket(STRANGERS_MS_PER_S, STRANGERS_BURST_MS)

    async def serve(self, stream: ByteStream) -> None:
        """Answer the requests that come in on one stream, until it ends."""
        asker = self._asker(stream.remote)
        if asker.streams >= STREAMS_LIMIT:
            self._conduct.broke(
                asker.peer, Offence.TOO_MANY_STREAMS, f"{asker.streams} control streams"
            )
            await stream.reset()
            return
        asker.streams += 1
        try:
            async with trio.open_nursery() as nursery:
                theirs = await self._greet_back(stream, asker)
                if theirs is not None:
                    await self._serve_requests(stream, theirs, asker, nursery)
                nursery.cancel_scope.cancel()
        except* StreamClosedError:
            pass
        except* RemoteProtocolError as errors:
            error = errors.exceptions[0]
            self._conduct.broke(asker.peer, offence_of_frame(error), str(error))
            await stream.reset()
        except* NetworkError:
            await stream.reset()
        finally:
            asker.streams -= 1

    def _asker(self, peer: PeerId) -> _Asker:
        """A peer as it is known; who was away for longest is forgotten first."""
        now_s = trio.current_time()
        if now_s - self._looked_over_at_s >= LOOK_OVER_INTERVAL_S:
            self._looked_over_at_s = now_s
            for other in list(self._askers.values()):
                over = len(self._askers) > ASKERS_LIMIT
                if not other.streams and (over or other.allowance.is_full(now_s)):
                    del self._askers[other.peer]
        asker = self._askers.pop(peer, None) or _Asker(peer)
        self._askers[peer] = asker
        return asker

    async def _greet_back(self, stream: ByteStream, asker: _Asker) -> Version | None:
        """Take the peer's hello and say this node's; None where there is no more to say."""
        await self._until_welcome(asker)
        self._charge(asker, STREAM_MS)
        with within(GREETING_TIME_LIMIT_S, stream.remote):
            request = read_greeting(await receive_message(stream), Request)
        answer = self._greet(stream.remote, request.body)
        if not isinstance(request.body, Hello):
            self._conduct.broke(stream.remote, Offence.PROTOCOL_BROKEN, "no hello")
        await send_frame(stream, Response(id=request.id, body=answer))
        if isinstance(answer, Hello) and isinstance(request.body, Hello):
            return request.body.protocol
        return None

    async def _serve_requests(
        self, stream: ByteStream, theirs: Version, asker: _Asker, nursery: trio.Nursery
    ) -> None:
        sending = trio.Lock()
        while True:
            await self._until_welcome(asker)  # back-pressure: no further message is read
            data = await receive_message(stream)
            request = read_frame(data, Request, theirs)
            now_s = trio.current_time()
            refusable = isinstance(request, UnknownWord) or is_refusable(request.body)
            if refusable and asker.allowance.is_too_much(now_s):
                await self._refuse(stream, request, asker, sending)
                continue
            await asker.room.acquire()
            served = trio.Event()
            nursery.start_soon(
                self._serve_one, stream, request, theirs, len(data), asker, sending, served
            )
            if isinstance(request, Request) and isinstance(request.body, AwardOffer | Cancel):
                # An award's units may be the next message, and are to find the lease; so may
                # the release of a lease of which units are cancelled.
                with trio.move_on_after(IN_ORDER_LIMIT_S):
                    await served.wait()

    async def _until_welcome(self, asker: _Asker) -> None:
        """Wait until a peer may ask more."""
        while True:
            now_s = trio.current_time()
            wait_s = asker.allowance.bucket.wait_s(now_s)
            if asker.peer not in self._conduct.friends:
                wait_s = max(wait_s, self._strangers.wait_s(now_s))
            if wait_s > 0.0:
                await trio.sleep(max(wait_s, LEAST_WAIT_S))
            elif asker.unsent_bytes > UNSENT_LIMIT_BYTES:
                await asker.taken.wait()
            else:
                return

    async def _serve_one(
        self,
        stream: ByteStream,
        request: Request | UnknownWord,
        theirs: Version,
        size_bytes: int,
        asker: _Asker,
        sending: trio.Lock,
        served: trio.Event,
    ) -> None:
        answer: ResponseBody
        body: RequestBody | None = None
        try:
            if isinstance(request, UnknownWord):
                answer = request.problem()
            else:
                body = request.body
                answer = said_to(theirs, await self.answer_guarded(stream.remote, body))
                served.set()
            data = encode(Response(id=request.id, body=answer))
            self._charge(asker, cost_ms(body, size_bytes, answer, len(data)))
            await _send_answer(stream, data, asker, sending)
        finally:
            asker.room.release()

    async def _refuse(
        self,
        stream: ByteStream,
        request: Request | UnknownWord,
        asker: _Asker,
        sending: trio.Lock,
    ) -> None:
        """Say no to a peer that asks too much; it may be asked what it is about."""
        now_s = trio.current_time()
        if asker.allowance.refuse(now_s):
            what = request if isinstance(request, UnknownWord) else request.body
            self._conduct.broke(asker.peer, Offence.REQUEST_FLOOD, type(what).__name__)
        problem = Problem(
            code=TOO_MANY_REQUESTS,
            message="you ask more than this node has time for: leave it alone for a while",
        )
        data = encode(Response(id=request.id, body=problem))
        await _send_answer(stream, data, asker, sending)

    def _charge(self, asker: _Asker, amount_ms: float) -> None:
        now_s = trio.current_time()
        asker.allowance.pay(amount_ms, now_s)
        if asker.peer not in self._conduct.friends:
            self._strangers.pay(amount_ms, now_s)

    async def answer_guarded(self, peer: PeerId, body: RequestBody) -> ResponseBody:
        """The answer to a request; a problem where it cannot be served."""
        try:
            return await self.answer(peer, body)
        except ShoalError as error:
            log.info("a request was not served", peer=peer, code=error.code, error=str(error))
            offence = _offence_in(body, error)
            if offence is not None:
                self._conduct.broke(peer, offence, error.message)
            return Problem(code=error.code[:64], message=error.message[:256])
        except Exception:  # root of a request: a bug in serving one must not end the others
            log.exception("a request failed", peer=peer, request=type(body).__name__)
            return Problem(code="internal", message="this node failed to serve the request")


async def _send_answer(
    stream: ByteStream, data: bytes, asker: _Asker, sending: trio.Lock
) -> None:
    asker.unsent_bytes += len(data)
    try:
        async with sending:
            await send_message(stream, data)
    finally:
        asker.took(len(data))


async def _answer_nothing(peer: PeerId, body: RequestBody) -> ResponseBody:  # noqa: ARG001
    return Problem(code="not_ready", message="this node is starting")


def offence_of_frame(error: BaseException) -> Offence:
    """What a peer did wrong with bytes that are no message."""
    dribbled = isinstance(error, ShoalError) and error.code == "dribbled"
    return Offence.SLOW_FRAME if dribbled else Offence.BAD_FRAME


def _offence_in(body: RequestBody, error: ShoalError) -> Offence | None:
    """What a peer did wrong with a request that was not served, if it did: pure.

    What comes out of turn or too late in a negotiation is none: two messages that
    cross, or a lease that ran out on the way, look the same. Nor is a statement that
    is well signed and not understood: a newer node may understand it.
    """
    if error.code == "bad_payload":
        return None
    match body:
        case Adverts() if isinstance(error, VerificationError):
            return Offence.BAD_ADVERT
        case ProofOffer() if isinstance(error, VerificationError):
            return Offence.BAD_PROOF
        case AwardOffer() if error.code in {"bad_award", "award_mismatch"}:
            return Offence.BAD_AWARD
    return None
