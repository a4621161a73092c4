"""Daemons as real processes on loopback, each in a home of its own, gone at the end.

The ground that the demo and the end-to-end tests stand on. Every daemon is told
the address of the first one only, and allow-lists all the others. It is started
as a user would start it (``shoal up``), so whatever kills a daemon here could
kill a real one.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.crypto import identity
from shoal.crypto.errors import ShoalError
from shoal.node.client import Client
from shoal.node.config import SOCKET_PATH_LIMIT_BYTES
from shoal.node.errors import DaemonUnreachableError, WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from shoal.crypto.peer_id import PeerId

START_LIMIT_S = 60.0
"""Imports take a second on an idle core, and much longer on a slow and busy one."""

ACQUAINTED_LIMIT_S = 30.0
END_LIMIT_S = 10.0
"""What a daemon gets between SIGTERM and SIGKILL."""

_POLL_S = 0.05
_LAST_WORDS_BYTES = 1500
_LAST_WORDS_OF_A_CRASH_BYTES = 16_000
"""A traceback's, with what was in its variables."""


class SwarmError(ShoalError):
    """A daemon of the swarm did not do what it should, with its last words."""

    code = "swarm"


@dataclass(slots=True)
class Node:
    """One daemon of a swarm: its home, its key and its process while it has one."""

    number: int
    home: Path
    peer: PeerId
    address: str = ""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    killed: bool = False
    """Whether this process was ended on purpose, by `kill`."""

    @property
    def socket(self) -> Path:
        """Where it serves its local API."""
        return self.home / "shoal.sock"

    @property
    def log_path(self) -> Path:
        """Where its log goes."""
        return self.home / "daemon.log"

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self.process is not None and self.process.poll() is None

    def client(self) -> Client:
        """A client of this daemon."""
        return Client(self.socket)

    def signal(self, number: signal.Signals) -> None:
        """Send its process a signal, such as SIGSTOP."""
        if self.process is not None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """End it as a power cut would (SIGKILL), and wait until it is gone."""
        if self.process is not None:
            self.killed = True
            self.process.kill()
            self.process.wait()

    def last_words(self, limit_bytes: int = _LAST_WORDS_BYTES) -> str:
        """The end of its log."""
        try:
            data = self.log_path.read_bytes()
        except OSError:
            return "(it has no log)"
        text = data[-limit_bytes:].decode(errors="replace").strip()
        return text or "(its log is empty)"


class Swarm:
    """A number of daemons that know the first of them; a context manager.

    Entering makes the homes and keys. Leaving ends every process and removes
    the homes, whatever happened inside: SIGTERM and a closed terminal leave it as Ctrl-C
    does, where nobody else sees to these signals.

    Args:
        count: How many daemons.
        settings: More flags for each ``shoal up``.
        root: Where the homes go; a new temporary directory when not given. A
            root that is given is not removed.
    """

    def __init__(
        self, count: int, settings: Iterable[str] = (), root: Path | None = None
    ) -> None:
        self.nodes: list[Node] = []
        self._count = count
        self._settings = tuple(settings)
        self._given_root = root
        self._root = root or Path()
        self._signals = ExitStack()

    def __enter__(self) -> Self:
        self._signals.enter_context(_signals_interrupt())
        self._root = self._given_root or Path(
            tempfile.mkdtemp(prefix="shoal-swarm-", dir=_temporary_directory())
        )
        try:
            for number in range(1, self._count + 1):
                home = self._root / f"node{number}"
                home.mkdir(mode=0o700)
                key = identity.generate()
                identity.save(key, home / "identity.key")
                self.nodes.append(Node(number, home, key.peer_id))
        except BaseException:
            self._signals.close()
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is not None:
                self._note_ended(error)
            self.end()
        finally:
            self._signals.close()
            self._remove()

    def _note_ended(self, error: BaseException) -> None:
        """Tell with an error which daemons have ended by themselves: it may be why."""
        for node in self.nodes:
            code = None if node.process is None else node.process.poll()
            if code is not None and not node.killed:
                how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
                words = node.last_words(_LAST_WORDS_OF_A_CRASH_BYTES)
                error.add_note(f"daemon {node.number} had ended ({how}); last words:\n{words}")

    def start_all(self) -> None:
        """Start the first daemon and, once its address is known, all others at once.

        Raises:
            SwarmError: One of them ended, or did not answer in time.
        """
        self.start_these(self.nodes)

    def start_these(self, nodes: Sequence[Node]) -> None:
        """The same for some of them, of which the first is the first of all."""
        first, *others = nodes
        self.start(first)
        self.wait_ready(first)
        for node in others:
            self.start(node)
        for node in others:
            self.wait_ready(node)

    def start(self, node: Node) -> None:
        """Start a daemon, again after it was killed; does not wait for it."""
        command = [*self._command(node), "up", f"--home={node.home}"]
        command += [f"--listen={_place(node.address) or self._listen(node)}"]
        command += [f"--allow={friend.peer}" for friend in self._friends(node)]
        # On one machine they would step back for each other's daemons, and for ours.
        command += ["--step-back=off", "--niceness=5"]
        if not any(one.startswith("--lan") for one in self._settings):
            command += ["--lan=no"]
        command += [f"--bootstrap={address}" for address in self._bootstrap(node)]
        # What the user has set for a daemon of their own is not for these.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SHOAL_")}
        with node.log_path.open("ab") as log, _interrupts_wait():
            node.killed = False
            node.process = subprocess.Popen(  # noqa: S603  # our own interpreter and flags
                [*self._before(node), *command, *self._settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=node.home,
                env=environment,
                start_new_session=True,  # a Ctrl-C at the terminal is for us to pass on
            )

    def _before(self, node: Node) -> tuple[str, ...]:  # noqa: ARG002  # for subclasses
        """What the command of a daemon is run by."""
        return ()

    def _command(self, node: Node) -> tuple[str, ...]:  # noqa: ARG002  # for subclasses
        """What is started: ``shoal``."""
        # -P: no module is ever taken from the current directory
        return (sys.executable, "-P", "-m", "shoal.node.cli")

    def _friends(self, node: Node) -> list[Node]:
        """Whom a daemon has on its allow list."""
        return [other for other in self.nodes if other is not node]

    def _listen(self, node: Node) -> str:  # noqa: ARG002  # for subclasses
        """Where a daemon listens at its first start."""
        return "/ip4/127.0.0.1/tcp/0"

    def _bootstrap(self, node: Node) -> tuple[str, ...]:
        """The addresses that a daemon is given."""
        first = self.nodes[0]
        return () if node is first else (first.address,)

    def wait_ready(self, node: Node) -> None:
        """Wait until a daemon answers, and note its address.

        Raises:
            SwarmError: It ended, or did not answer in time.
        """
        with node.client() as client:

            def answers() -> bool:
                if not node.running:
                    raise self._failure(node, "ended at once")
                with suppress(DaemonUnreachableError, WaitTimeoutError):  # a loaded machine
                    node.address = client.status().addresses[0]
                    return True
                return False

            if not _in_time(answers, START_LIMIT_S):
                raise self._failure(node, f"does not answer after {START_LIMIT_S:.0f} s")

    def wait_acquainted(
        self,
        *,
        timeout_s: float = ACQUAINTED_LIMIT_S,
        offering: str | None = None,
        waiting: Callable[[float], None] = lambda _waited_s: None,
    ) -> None:
        """Wait until each running daemon lists all the others, with what they offer.

        Args:
            timeout_s: How long.
            offering: A numeric class that all of them are to offer by then.
            waiting: Told now and then how long it has been, in seconds.

        Raises:
            SwarmError: One of them does not in time.
        """
        started_s = time.monotonic()
        deadline_s = started_s + timeout_s
        running = [node for node in self.nodes if node.running]
        for node in running:
            others = {other.peer for other in running if other is not node}
            with node.client() as client:

                def knows(client: Client = client, others: set[PeerId] = others) -> bool:
                    waiting(time.monotonic() - started_s)
                    ready = {
                        view.peer
                        for view in client.peers()
                        if view.numeric_classes
                        and (offering is None or offering in view.numeric_classes)
                    }
                    return others <= ready

                if not _in_time(knows, deadline_s - time.monotonic()):
                    raise self._failure(
                        node, f"does not list the other nodes after {timeout_s:.0f} s"
                    )

    def end(self) -> None:
        """End every process: SIGTERM to all, then SIGKILL to what is left."""
        for node in self.nodes:
            node.signal(signal.SIGTERM)
            node.signal(signal.SIGCONT)  # one that was stopped must wake to end
        deadline_s = time.monotonic() + END_LIMIT_S
        try:
            for node in self.nodes:
                if node.process is not None:
                    with suppress(subprocess.TimeoutExpired):
                        node.process.wait(max(0.0, deadline_s - time.monotonic()))
        finally:  # a second Ctrl-C only makes it quicker
            for node in self.nodes:
                node.kill()

    def keep_logs(self) -> Path:
        """Copy the logs to where they outlive the homes; gives the directory."""
        kept = Path(tempfile.mkdtemp(prefix="shoal-logs-"))
        for node in self.nodes:
            with suppress(OSError):
                shutil.copyfile(node.log_path, kept / f"{node.home.name}.log")
        return kept

    def _failure(self, node: Node, what: str) -> SwarmError:
        return SwarmError(
            f"daemon {node.number} ({node.peer}) {what}; its last words:\n{node.last_words()}"
        )

    def _remove(self) -> None:
        doomed = [self._root] if self._given_root is None else [n.home for n in self.nodes]
        for directory in doomed:
            shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Put off what would interrupt the block: a process begun in it is noted, then ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    interrupts = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {one: signal.signal(one, lambda one, _: came.append(one)) for one in interrupts}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        for number in came:
            signal.raise_signal(number)


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Let SIGTERM and a closed terminal, which would end this process, raise as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    ends = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in ends:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in ends:
            signal.signal(number, signal.SIG_DFL)


def _place(address: str) -> str:
    """An address without the peer id; "" for none yet."""
    return address.rpartition("/p2p/")[0]


def _temporary_directory() -> str:
    """The user's own, or /tmp where that would make a socket's path too long."""
    directory = tempfile.gettempdir()
    longest = len(os.fsencode(directory)) + len("/shoal-swarm-12345678/node16/shoal.sock")
    return directory if longest <= SOCKET_PATH_LIMIT_BYTES else "/tmp"  # noqa: S108


def _in_time(condition: Callable[[], bool], limit_s: float) -> bool:
    deadline_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(_POLL_S)
    return True
