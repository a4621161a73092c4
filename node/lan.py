"""Nodes on the same local network found by multicast DNS, and this one announced to them.

The zeroconf package does the talking, in threads of its own: bounded caches, 7 MB,
nothing to speak of in processor time while the link is quiet. What it hears is
judged by `node.lan_records`. Should somebody flood the link, its threads take
processor time from everything else in this process; so they are watched, and
stopped for a while when they take too much.

Where there is nothing to announce, or no multicast to be had, this says so once and
looks again now and then, because machines change networks.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import psutil
import structlog
import trio

from shoal.node.addresses import own_interfaces
from shoal.node.lan_records import (
    CPU_SHARE_LIMIT,
    NAMES_LIMIT,
    SERVICE,
    Announcement,
    announcements,
    heard,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from zeroconf import ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

    from shoal.crypto.peer_id import PeerId

WATCH_INTERVAL_S = 5.0
"""How often the threads' cost and this machine's interfaces are looked at."""

LOOK_AGAIN_S = 60.0
"""While there is nothing to announce, or no multicast to be had."""

FLOODED_PAUSE_S = 600.0
ASK_LIMIT_S = 1.0
"""For the rest of an announcement whose name was heard."""

LOOK_PAUSE_S = 0.1
"""Between two looks: as many liars as there are keys could come by otherwise."""

CLOSE_LIMIT_S = 3.0
HEARD_AGAIN_S = 30.0
"""How often one name is looked at, however often it is announced."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Lan:
    """This node on its local network.

    Args:
        peer: This node.
        network: The fingerprint of its private network, or "".
        addresses: Gives where it listens now.
        found: Told where another node is.

    Attributes:
        state: What it does, for a person: "" until it has begun.
    """

    def __init__(
        self,
        peer: PeerId,
        network: str,
        addresses: Callable[[], tuple[str, ...]],
        found: Callable[[PeerId, tuple[str, ...]], None],
    ) -> None:
        self.state = ""
        self._peer = peer
        self._network = network
        self._addresses = addresses
        self._found = found
        self._threads = trio.CapacityLimiter(2)

    async def run(self) -> None:
        """Announce and listen, for ever."""
        while True:
            wanted = self._wanted()
            pause_s = LOOK_AGAIN_S
            if not wanted:
                self._say("silent on the local network: no private address is listened on")
            else:
                try:
                    pause_s = await self._serve(wanted)
                except OSError as error:  # no permission, no multicast, an interface gone
                    self._say(f"silent on the local network: {error.strerror or error}")
            await trio.sleep(pause_s)

    def _say(self, state: str) -> None:
        if state != self.state:
            self.state = state
            log.info(state)

    def _wanted(self) -> tuple[Announcement, ...]:
        return announcements(self._addresses(), self._peer, self._network)

    async def _serve(self, wanted: tuple[Announcement, ...]) -> float:
        """Announce and listen until this machine's addresses change, or it is too much.

        Returns:
            How long to be silent now, in seconds.

        Raises:
            OSError: There is no multicast to be had.
        """
        hosts = sorted({host for one in wanted for host in one.hosts})
        names = _Names(trio.lowlevel.current_trio_token())
        conversation = await self._in_thread(_Conversation, hosts)
        pause_s = 0.0
        try:
            await self._in_thread(conversation.begin, wanted, names.note)
            self._say(f"announced on the local network, from {', '.join(hosts)}")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._look_at, conversation, names)
                before_s = conversation.cpu_s()
                while self._wanted() == wanted and not pause_s:
                    await trio.sleep(WATCH_INTERVAL_S)
                    now_s = conversation.cpu_s()
                    if now_s - before_s > CPU_SHARE_LIMIT * WATCH_INTERVAL_S:
                        pause_s = FLOODED_PAUSE_S
                    before_s = now_s
                nursery.cancel_scope.cancel()
        finally:
            with trio.move_on_after(CLOSE_LIMIT_S, shield=True):
                await self._in_thread(conversation.end)
        if pause_s:
            self._say(
                f"silent on the local network for {pause_s / 60:.0f} minutes: so much is "
                "said there that listening takes more of the processor than it may"
            )
        return pause_s

    async def _look_at(self, conversation: _Conversation, names: _Names) -> None:
        """Hear what is behind the names, one after the other."""
        looked_at_s: dict[str, float] = {}
        while True:
            name = await names.next()
            now_s = trio.current_time()
            if now_s - looked_at_s.pop(name, -math.inf) < HEARD_AGAIN_S:
                continue
            looked_at_s[name] = now_s
            if len(looked_at_s) > NAMES_LIMIT:
                del looked_at_s[next(iter(looked_at_s))]
            try:
                said = await self._in_thread(conversation.ask, name)
                found = said and heard(
                    *said, peer=self._peer, network=self._network, own=own_interfaces()
                )
            except Exception as error:  # noqa: BLE001  # strangers choose the bytes: never the task's end
                log.debug("an announcement cannot be read", error=repr(error)[:200])
                continue
            await trio.sleep(LOOK_PAUSE_S)
            if found:
                log.debug("a node on the local network", peer=found[0], addresses=found[1])
                self._found(*found)

    async def _in_thread(self, work: Callable[..., T], *args: object) -> T:
        return await trio.to_thread.run_sync(
            work, *args, abandon_on_cancel=True, limiter=self._threads
        )


class _Names:
    """Names that were heard, on their way from zeroconf's thread; the newest are kept."""

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._token = token
        self._waiting: deque[str] = deque(maxlen=NAMES_LIMIT)
        self._some = trio.Event()

    def note(self, name: str) -> None:
        """Take in a name, in whichever thread."""
        self._waiting.append(name)
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._wake, idempotent=True)

    def _wake(self) -> None:
        self._some.set()

    async def next(self) -> str:
        """Wait for a name."""
        while not self._waiting:
            self._some = trio.Event()
            if not self._waiting:  # none came between the two
                await self._some.wait()
        return self._waiting.popleft()


class _Conversation:
    """The zeroconf package at work. Every method blocks, and is for a thread.

    Raises:
        OSError: Multicast is not to be had on these interfaces.
    """

    def __init__(self, hosts: list[str]) -> None:
        import zeroconf  # not before the daemon is ready

        # It tells of every packet that it cannot read, and anybody can send those.
        logging.getLogger("zeroconf").setLevel(logging.CRITICAL)
        self._library = zeroconf
        try:
            self._zeroconf = zeroconf.Zeroconf(interfaces=hosts, use_asyncio=False)
        except (zeroconf.Error, RuntimeError) as error:
            raise OSError(str(error)) from None
        self._browser: ServiceBrowser | None = None
        self._native_ids: list[int] = []

    def begin(self, wanted: tuple[Announcement, ...], note: Callable[[str], None]) -> None:
        """Announce, and tell ``note`` of every name that is announced by others."""
        loop = self._zeroconf.loop
        assert loop is not None
        loop.call_soon_threadsafe(lambda: self._native_ids.append(threading.get_native_id()))
        browsed = self._library.ServiceStateChange

        def changed(
            zeroconf: Zeroconf,  # noqa: ARG001  # zeroconf calls by these names
            service_type: str,  # noqa: ARG001
            name: str,
            state_change: ServiceStateChange,
        ) -> None:
            if state_change is not browsed.Removed:
                note(name)

        try:
            for one in wanted:
                # Nobody else has this peer's id: whoever claims the name shall not silence it.
                self._zeroconf.register_service(_info(one), cooperating_responders=True)
            self._browser = self._library.ServiceBrowser(
                self._zeroconf, SERVICE, handlers=[changed]
            )
        except self._library.Error as error:
            raise OSError(str(error) or type(error).__name__) from None
        if self._browser.native_id:
            self._native_ids.append(self._browser.native_id)

    def ask(self, name: str) -> tuple[dict[bytes, bytes | None], list[str], int | None] | None:
        """The TXT record, addresses and port behind a name; None where nobody answers."""
        info = self._zeroconf.get_service_info(SERVICE, name, timeout=round(1000 * ASK_LIMIT_S))
        if info is None:
            return None
        return info.properties, info.parsed_addresses(), info.port

    def cpu_s(self) -> float:
        """Processor time that its threads have taken."""
        threads = psutil.Process().threads()
        return sum(t.user_time + t.system_time for t in threads if t.id in self._native_ids)

    def end(self) -> None:
        """Say goodbye and close."""
        with suppress(self._library.Error, OSError):
            self._zeroconf.close()


def _info(one: Announcement) -> ServiceInfo:
    from zeroconf import ServiceInfo

    return ServiceInfo(
        SERVICE,
        one.name,
        port=one.port,
        parsed_addresses=list(one.hosts),
        properties=one.properties,
        server=f"shoal-{one.peer[-16:].lower()}.local.",
    )
