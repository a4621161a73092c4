"""Requests and answers between daemons: one long-lived stream to each peer.

A stream costs milliseconds to open and a message on an open one under 1 ms, so each
node opens one control stream to each peer it asks anything of, and sends all
its requests over it, many in flight, matched to their answers by id. Answers
to the peer's own requests go over the stream that the peer opened.

This carries `protocol.messages` and knows nothing of what they mean: the
daemon gives it one function that answers them. A request to this node itself
calls that function directly, so the data path needs no second way for work
that a node does for its own user.

How requests are answered, and how many of them, is in `node.answering`; what
breaks the protocol is reported to `node.conduct`. Here each side learns the other's
version (`node.peer_versions`), and what is said and heard goes by it
(`protocol.versions`).
"""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from shoal.crypto.errors import ShoalError
from shoal.node.allowance import is_refusable
from shoal.node.answering import TOO_MANY_REQUESTS, Answering, Answers, offence_of_frame
from shoal.node.conduct import Conduct
from shoal.node.errors import NetworkError, StreamClosedError
from shoal.node.frames import receive_message, send_frame, within
from shoal.node.peer_versions import CONTROL_PROTOCOL, PeerVersions
from shoal.node.standing import Offence
from shoal.protocol.errors import RemoteProtocolError, VersionError
from shoal.protocol.limits import REQUESTS_IN_FLIGHT_LIMIT
from shoal.protocol.messages import Hello, Problem, Request, RequestBody, Response, ResponseBody
from shoal.protocol.versions import OWN, Version, misfit
from shoal.protocol.vocabulary import UnknownWord, read_frame, read_greeting, said_to

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from shoal.crypto.peer_id import PeerId
    from shoal.node.network import ByteStream, Network

OPEN_TIME_LIMIT_S = 10.0

LEFT_ALONE_S = 30.0
"""After a peer said that it is asked too much. It means this node and not one job: of very
many jobs each would ask it once again, and that flood is an offence there."""

_OF_VERSIONS = frozenset({"version_unsupported", "unknown_message"})


@dataclass(slots=True)
class _Pending:
    """A request that waits for its answer."""

    ended: trio.Event = field(default_factory=trio.Event)
    answer: ResponseBody | None = None


@dataclass(slots=True)
class _Line:
    """The stream to one peer, and what is in flight on it."""

    peer: PeerId
    stream: ByteStream | None = None
    theirs: Version = OWN  # as the peer greeted on it
    quiet_until_s: float = -math.inf
    failure: ShoalError | None = None
    next_id: int = 0
    pending: dict[int, _Pending] = field(default_factory=dict)
    sending: trio.Lock = field(default_factory=trio.Lock)
    opening: trio.Lock = field(default_factory=trio.Lock)
    room: trio.CapacityLimiter = field(
        default_factory=lambda: trio.CapacityLimiter(REQUESTS_IN_FLIGHT_LIMIT)
    )

    def fail(self, error: ShoalError) -> None:
        """End every request in flight; the next one opens a new stream."""
        self.stream, self.failure = None, error
        for pending in self.pending.values():
            pending.ended.set()
        self.pending = {}


class Control:
    """Asks peers, and answers them. Made by `open_control`."""

    def __init__(
        self, network: Network, agent: str, nursery: trio.Nursery, conduct: Conduct
    ) -> None:
        self._network = network
        self._hello = Hello(protocol=OWN, agent=agent)
        self._nursery = nursery
        self._conduct = conduct
        self._lines: dict[PeerId, _Line] = {}
        self.versions = PeerVersions()
        self._answers = Answers(conduct, self._greet)

    def answer_with(self, answer: Answering) -> None:
        """Begin to serve the control protocol, with ``answer`` for every request."""
        self._answers.answer = answer
        self._network.handle(CONTROL_PROTOCOL, self._serve)

    async def _serve(self, stream: ByteStream) -> None:
        stream.carries_small_messages()
        await self._answers.serve(stream)

    async def request(self, peer: PeerId, body: RequestBody, timeout_s: float) -> ResponseBody:
        """Ask a connected peer and wait for its answer.

        Cancelling it forgets the request; the stream stays good.

        Raises:
            NetworkError: Not connected, cut off meanwhile, no answer in time, or the
                peer is no node of this protocol.
            VersionError: ``peer_too_old`` to know such a request, or of another major.
            RemoteProtocolError: The peer answered with a problem, or with nonsense.
        """
        if peer == self._network.peer_id:
            answer = await self._answers.answer_guarded(peer, body)
        else:
            with trio.move_on_after(timeout_s):
                answer = await self._ask(peer, body)
                return _checked(peer, answer)
            raise NetworkError(
                f"{peer} gave no answer to {type(body).__name__} within {timeout_s:g} s",
                code="no_answer",
            )
        return _checked(peer, answer)

    async def version_of(self, peer: PeerId) -> Version:
        """The version of a connected peer, which is greeted where that has not been done.

        Raises:
            NetworkError: It cannot be greeted.
            VersionError: It speaks another major.
        """
        line = self._lines.setdefault(peer, _Line(peer))
        async with line.opening:
            if line.stream is None:
                await self._open(line)
        return line.theirs

    def hang_up(self, peer: PeerId) -> None:
        """Fail whatever is in flight to a peer that is gone, and forget its version."""
        self.versions.forget(peer)
        line = self._lines.pop(peer, None)
        if line is not None:
            line.fail(NetworkError(f"the link to {peer} is gone", code="link_lost"))

    def _greet(self, peer: PeerId, body: RequestBody) -> Hello | Problem:
        if isinstance(body, Hello):
            self.versions.note(peer, body.protocol)
        return _greet(body, self._hello)

    async def _ask(self, peer: PeerId, body: RequestBody) -> ResponseBody:
        line = self._lines.setdefault(peer, _Line(peer))
        async with line.room:
            async with line.opening:
                if line.stream is None:
                    await self._open(line)
            left_s = line.quiet_until_s - trio.current_time()
            if left_s > 0.0 and is_refusable(body):
                return Problem(
                    code=TOO_MANY_REQUESTS,
                    message=f"it is asked too much, and left alone for another {left_s:.0f} s",
                )
            answer = await self._exchange(line, body)
            if isinstance(answer, Problem) and answer.code == TOO_MANY_REQUESTS:
                line.quiet_until_s = trio.current_time() + LEFT_ALONE_S
            return answer

    async def _open(self, line: _Line) -> None:
        try:
            try:
                await self._greet_over(line, self._network.begin_stream)
            except NetworkError as error:
                if error.code != "stream_reset":
                    raise
                # A peer that does not speak this may break off before that is read.
                await self._greet_over(line, self._open_stream)
        except NetworkError as error:
            if error.code != "protocol_unknown":
                raise
            code, why = await self.versions.refuse_stranger(self._network, line.peer)
            raise NetworkError(f"{line.peer} {why}", code=code) from None

    async def _open_stream(self, peer: PeerId, protocol: str) -> ByteStream:
        return await self._network.open_stream(peer, protocol, OPEN_TIME_LIMIT_S)

    async def _greet_over(
        self, line: _Line, opening: Callable[[PeerId, str], Awaitable[ByteStream]]
    ) -> None:
        stream = await opening(line.peer, CONTROL_PROTOCOL)
        stream.carries_small_messages()
        line.stream, line.failure = stream, None
        self._nursery.start_soon(self._read_answers, line, stream)
        try:
            with within(OPEN_TIME_LIMIT_S, line.peer):
                theirs = await self._exchange(line, self._hello)
            if not isinstance(theirs, Hello):
                problem = _problem(line.peer, theirs)
                if not isinstance(theirs, Problem):
                    self._conduct.broke(line.peer, Offence.UNFITTING_ANSWER, "to hello")
                elif problem.code == "version_unsupported":
                    self.versions.refuse(line.peer, f"answered: {theirs.message}")
                raise problem
            line.theirs = theirs.protocol
            if (why := self.versions.note(line.peer, theirs.protocol)) is not None:
                raise VersionError(f"{line.peer} {why}")
        except BaseException:  # also when cancelled: a stream that was not greeted is of no use
            line.fail(NetworkError(f"{line.peer} did not finish the greeting"))
            await stream.reset()
            raise

    async def _exchange(self, line: _Line, body: RequestBody) -> ResponseBody:
        if line.stream is None:
            raise line.failure or NetworkError(f"the link to {line.peer} is gone")
        if not isinstance(body, Hello):
            body = said_to(line.theirs, body)
        stream, number, pending = line.stream, line.next_id, _Pending()
        line.next_id = (line.next_id + 1) % (1 << 31)
        line.pending[number] = pending
        try:
            async with line.sending:
                try:
                    await send_frame(stream, Request(id=number, body=body))
                except NetworkError as error:  # perhaps half a message went out: say no more
                    if line.stream is stream:
                        line.fail(error)
                    await stream.reset()
                    raise
            await pending.ended.wait()
        finally:
            line.pending.pop(number, None)
        if pending.answer is None:
            raise line.failure or NetworkError(f"the link to {line.peer} is gone")
        return pending.answer

    async def _read_answers(self, line: _Line, stream: ByteStream) -> None:
        failure: ShoalError
        theirs: Version | None = None
        try:
            while True:
                data = await receive_message(stream)
                response: Response | UnknownWord
                if theirs is not None:
                    response = read_frame(data, Response, theirs)
                else:
                    response = greeting = read_greeting(data, Response)
                    said = greeting.body
                    theirs = said.protocol if isinstance(said, Hello) else OWN
                pending = line.pending.pop(response.id, None)
                if pending is not None:  # else nobody waits for it, or not any more
                    if isinstance(response, UnknownWord):
                        pending.answer = response.problem()
                    else:
                        pending.answer = response.body
                    pending.ended.set()
        except StreamClosedError:
            failure = NetworkError(f"{line.peer} closed the control stream", code="link_lost")
        except NetworkError as error:
            failure = error
        except RemoteProtocolError as error:
            self._conduct.broke(line.peer, offence_of_frame(error), error.message)
            failure = error
        if line.stream is stream:
            line.fail(failure)
        await stream.reset()


@asynccontextmanager
async def open_control(
    network: Network, agent: str, conduct: Conduct | None = None
) -> AsyncIterator[Control]:
    """Ask peers for as long as the block runs; `Control.answer_with` answers them too.

    Args:
        network: Whose peers.
        agent: This node's name for what it runs.
        conduct: Told of what breaks the protocol.
    """
    async with trio.open_nursery() as nursery:
        yield Control(network, agent, nursery, conduct or Conduct(network.peer_id))
        nursery.cancel_scope.cancel()


def _greet(body: RequestBody, own: Hello) -> Hello | Problem:
    """Answer the first request of a stream: pure."""
    if not isinstance(body, Hello):
        return Problem(code="out_of_turn", message="a control stream begins with hello")
    if misfit(body.protocol) is not None:
        older = "your node" if body.protocol[0] < own.protocol[0] else "this peer"
        return Problem(
            code="version_unsupported",
            message=f"this peer speaks protocol {own.protocol[0]}, you {body.protocol[0]}: "
            f"upgrade {older}",
        )
    return own


def _checked(peer: PeerId, answer: ResponseBody) -> ResponseBody:
    if isinstance(answer, Problem):
        raise _problem(peer, answer)
    return answer


def _problem(peer: PeerId, answer: ResponseBody) -> RemoteProtocolError:
    if isinstance(answer, Problem):
        kind = VersionError if answer.code in _OF_VERSIONS else RemoteProtocolError
        return kind(f"{peer} answered: {answer.message}", code=answer.code)
    return RemoteProtocolError(
        f"{peer} answered with an unfitting {type(answer).__name__}", code="unfitting_answer"
    )
