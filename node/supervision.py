"""The libp2p host, kept running: started again where something that nobody foresaw ends it.

What a life of the host (`node.host`) must not lose is kept here: the sockets that
it listens on, the handlers of protocols, the topics of gossip, and what was
counted. When a life fails, its connections end and whoever waits for one of their
streams is told; the next life starts on the same sockets, after a growing pause.
What keeps failing is given up, so that the daemon ends with a named error instead
of turning in circles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog
import trio

from shoal.node import admission
from shoal.node.addresses import dialable
from shoal.node.errors import NetworkError
from shoal.node.host import CLOSING_LIMIT_S, Gates, Host
from shoal.node.listening import bind_again
from shoal.node.network_statistics import Counts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from shoal.crypto.identity import Identity
    from shoal.crypto.peer_id import PeerId
    from shoal.node.private_network import PrivateNetwork

    Serve = Callable[[Any], Awaitable[None]]
    Validate = Callable[[PeerId, bytes], bool]
    Receive = Callable[[bytes], None]

log = structlog.get_logger()


class SupervisedHost:
    """The present life of the libp2p host, and what its next one needs.

    Attributes:
        life: The present one; between two lives, the one that failed.
        up: Set while connections can come and be made.
        expects: Whether a dial-back of a peer, with a token, is waited for.
    """

    def __init__(
        self,
        identity: Identity,
        listeners: list[trio.SocketListener],
        private: PrivateNetwork | None,
        gates: Gates,
        changed: Callable[[], None],
    ) -> None:
        self.counts = Counts()
        self.up = trio.Event()
        self.expects: Callable[[PeerId, bytes], bool] = lambda _peer, _token: False
        self._identity = identity
        self._listeners = listeners
        self._bound = [listener.socket.getsockname()[:2] for listener in listeners]
        self._private = private
        self._gates = gates
        self._changed = changed
        self._handlers: dict[str, Serve] = {}
        self._topics: dict[str, tuple[Validate, Receive]] = {}
        self._closing = False
        self.life = self._new_life()

    def addresses(self) -> tuple[str, ...]:
        """Where this node can be dialled; see `Network.addresses`."""
        return dialable(self._bound, self._identity.peer_id)

    def handle(self, protocol: str, serve: Serve) -> None:
        """Let ``serve`` have the streams of a protocol, in this life and the next ones."""
        self._handlers[protocol] = serve
        self.life.libp2p.set_stream_handler(protocol, serve)

    async def subscribe(self, topic: str, validate: Validate, receive: Receive) -> None:
        """Take part in the gossip about ``topic``, in this life and the next ones."""
        self._topics[topic] = (validate, receive)
        if self.up.is_set():
            await self.life.gossip.receive(topic, validate, receive)

    async def run(self) -> None:
        """Keep the host running, until it is closed or cancelled.

        Raises:
            NetworkError: ``host_failed``: it failed again and again.
        """
        failures_s: list[float] = []
        while True:
            failure: Exception | None = None
            try:
                await self.life.run(self._listeners, self._started)
            except Exception as error:  # noqa: BLE001  # root of all of libp2p: nobody foresaw this
                failure = error
            finally:
                self.up = trio.Event()
                self.life.abort()
            if self._closing:
                return
            self._changed()
            failures_s.append(trio.current_time())
            del failures_s[: -admission.FAILURES_LIMIT]
            delay_s = admission.restart_delay_s(failures_s, trio.current_time())
            if delay_s is None:
                raise _gave_up(failure)
            self.counts.restarts += 1
            log.error(
                "the libp2p host failed and is started again",
                restarts=self.counts.restarts,
                after_s=round(delay_s, 1),
                exc_info=failure,
            )
            await trio.sleep(delay_s)
            await self._begin_again()

    async def _begin_again(self) -> None:
        try:
            self._listeners = await bind_again(self._listeners, self._bound)
        except NetworkError as error:  # the next life fails of it, and counts as a failure
            log.warning("the port is not to be had again yet", error=str(error))
        self.life = self._new_life()

    async def _started(self) -> None:
        for topic, (validate, receive) in self._topics.items():
            await self.life.gossip.receive(topic, validate, receive)
        self.up.set()

    def _new_life(self) -> Host:
        life = Host(
            self._identity,
            self.addresses(),
            self._private,
            self._gates,
            self.counts,
            self._changed,
            self._is_expected,
        )
        for protocol, serve in self._handlers.items():
            life.libp2p.set_stream_handler(protocol, serve)
        return life

    def _is_expected(self, peer: PeerId, token: bytes) -> bool:
        return self.expects(peer, token)

    async def close(self) -> None:
        """End every connection in order, and what runs."""
        self._closing = True
        with trio.move_on_after(CLOSING_LIMIT_S, shield=True):
            await self.life.close()

    def stop_listening(self) -> None:
        """Give the sockets back."""
        for listener in self._listeners:
            listener.socket.close()


def _gave_up(failure: BaseException | None) -> NetworkError:
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    error = NetworkError(
        f"the libp2p host failed {admission.FAILURES_LIMIT} times within "
        f"{admission.FAILURES_WINDOW_S / 60:.0f} minutes, at last of {failure!r}",
        code="host_failed",
        hint="start the daemon again, and jobs are resumed; if it fails again, report its log",
    )
    error.__cause__ = failure
    return error
