"""One worker process as the daemon sees it: spawn it, exchange frames, end it.

Beside it, the process that compiles the kernels which a worker of the class `exact`
loads. No policy here: who may use it, what a failure means for a unit and when to start
another one is `shoal.compute.rooms`'s.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
from array import array
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from shutil import rmtree
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Final

import trio

from shoal.compute import frames, kernel_cache
from shoal.compute.errors import ComputeError
from shoal.compute.host_memory import HostMemory
from shoal.compute.in_file import size_of
from shoal.compute.lent_memory import LentMemory, lend, read_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from shoal.compute.in_file import InFile, Tensor
    from shoal.crypto.content import Buffer

_LAST_WORDS_LIMIT_BYTES: Final = 64 << 10
_POLL_S: Final = 0.1

END_LIMIT_S: Final = 30.0
"""A process that its driver holds in the kernel is ended by no signal, and not waited for."""

_AT_ONCE_BYTES: Final = 64 << 10
"""Received at once where so much is there: the answers of many small units."""
_INHERITED_VARIABLES: Final = (
    "HOME",
    "NUMBA_CACHE_DIR",
    "XDG_CACHE_HOME",
    "LANG",
    "LD_LIBRARY_PATH",
    "PATH",
    "PYTHONPATH",
    "TMPDIR",
)
"""The only environment variables a worker inherits: a daemon's may hold secrets."""

_SET_VARIABLES: Final = {"ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Importing ONNX Runtime would start its telemetry, and nothing but this keeps it from that.
Importing numpy would start threads, and a worker locks itself in while it has only one.
"""

WORKER: Final = ("-m", "shoal.compute.worker")
"""What Python runs as a worker; tests run one that misbehaves."""


def _environment() -> dict[str, str]:
    inherited = {n: os.environ[n] for n in _INHERITED_VARIABLES if n in os.environ}
    return inherited | _SET_VARIABLES


def scratch_variables(directory: str) -> dict[str, str]:
    """Where compilers and drivers put what they write: in one directory.

    Of one process alone: what one requester's process compiled, and may have falsified,
    is never run for another.
    """
    return {
        "TMPDIR": directory,
        "XDG_CACHE_HOME": directory,
        "TRITON_CACHE_DIR": f"{directory}/{kernel_cache.KERNELS}",
        "TORCHINDUCTOR_CACHE_DIR": f"{directory}/inductor",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",  # more are processes that outlive a unit
        "CUDA_CACHE_PATH": f"{directory}/cuda",
        "AMD_COMGR_CACHE_DIR": f"{directory}/comgr",
        "MIOPEN_USER_DB_PATH": f"{directory}/miopen",
        "MIOPEN_CUSTOM_CACHE_DIR": f"{directory}/miopen",
    }


async def compile_kernels() -> None:
    """Have the kernels of the class `exact` in the cache, compiled where they are not.

    A process of its own does it at the lowest priority; cancelling ends it.

    Raises:
        ComputeError: ``kernels_missing``, with the process's last words.
    """
    process = subprocess.Popen(  # noqa: ASYNC220  # takes milliseconds
        [sys.executable, "-P", "-m", "shoal.compute.exact.cpu"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=_environment(),
        start_new_session=True,
    )
    said = b""
    assert process.stderr is not None
    with process.stderr as pipe:
        os.set_blocking(pipe.fileno(), False)
        try:
            while process.poll() is None:  # a child of this very thread
                # A compiler that warns a lot would wait for ever for a reader.
                said = (said + _read_what_is_there(os.dup(pipe.fileno())))[
                    -_LAST_WORDS_LIMIT_BYTES:
                ]
                await trio.sleep(_POLL_S)
        finally:
            process.kill()
            process.wait()
            said += _read_what_is_there(os.dup(pipe.fileno()))
    if process.returncode != 0:
        last_words = said.decode(errors="replace").strip()[-300:]
        raise ComputeError(
            f"the kernels of the class exact are not to be had: {last_words}",
            code="kernels_missing",
        )


START_LIMIT_S: Final = 60.0
"""Imports take half a second on an idle machine, and much longer on a busy one."""

CARD_START_LIMIT_S: Final = 240.0
"""torch takes seconds to load, a driver to wake a card, and kernels are compiled."""


def _nobody_asks(_: ComputeError) -> None:
    """A CPU is not lost."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker's processes run, beyond what they are told.

    Attributes:
        variables: Of their environment: of a card's, those by which they see no other.
        scratch: Where each gets a directory of its own; None, and they write nowhere. It is
            this device's alone.
        start_limit_s: How long a start may take.
        lost: Told once, when the device computes nothing more.
        units_at_once: How many units run there at once, each in a process of its own.
        lent_bytes: How much memory of a card they share; 0 where nobody counts it.
    """

    variables: Mapping[str, str] = field(default_factory=dict)
    scratch: Path | None = None
    start_limit_s: float = START_LIMIT_S
    lost: Callable[[ComputeError], None] = _nobody_asks
    units_at_once: int = 1
    lent_bytes: int = 0

    @property
    def kernels(self) -> Path:
        """Where what they compile at their start is kept."""
        assert self.scratch is not None
        return self.scratch / "compiled"


class WorkerGoneError(Exception):
    """The process closed its end: it is dead, or about to be."""


class WorkerProcess:
    """A running worker and the daemon's end of its socket pair.

    Spawning blocks for a few milliseconds, on purpose: the kernel kills a worker
    when the *thread* that started it ends, and Trio's helper threads end when idle.

    Args:
        entry: What Python runs.
        place: Where it runs.
    """

    def __init__(self, entry: Sequence[str] = WORKER, place: Place | None = None) -> None:
        place = place or Place()
        self.scratch = ""
        with ExitStack() as undo:  # what was had of this process where the rest is not
            if place.scratch is not None:
                self.scratch = mkdtemp(dir=place.scratch)
                undo.callback(self._remove_scratch)
                with suppress(OSError):  # then it compiles them itself
                    kernel_cache.give(place.kernels, self.scratch)
            own = scratch_variables(self.scratch) if self.scratch else {}
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            with theirs:
                self._stderr, stderr = os.pipe()
                undo.callback(os.close, self._stderr)
                try:
                    # A worker that says too much loses words; it never waits for a reader.
                    os.set_blocking(stderr, False)
                    os.set_blocking(self._stderr, False)
                    self._process = subprocess.Popen(  # noqa: S603  # no text of a stranger in it
                        # -P: no module is ever taken from the current directory
                        [sys.executable, "-P", *entry, str(theirs.fileno())],
                        pass_fds=(theirs.fileno(),),
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=stderr,
                        env={**_environment(), **place.variables, **own},
                        start_new_session=True,  # a Ctrl-C at the terminal is not for it
                    )
                finally:
                    os.close(stderr)
            undo.pop_all()
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        self._received = bytearray()
        self._memory: HostMemory | None = None
        self.ended = False

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process still runs. It is not reaped: its id stays its own."""
        if self._process.returncode is not None:
            return False
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            return os.waitid(os.P_PID, self.pid, flags) is None
        except ChildProcessError:  # the thread of `end` has reaped it just now
            return False

    @property
    def usable(self) -> bool:
        """Whether it may have another request: it runs, and holds no more than it should."""
        return self.alive and not (self._memory and self._memory.overfull)

    async def exchange(
        self,
        request: frames.Request,
        attachments: Sequence[Tensor],
        answer_limit_bytes: int,
        in_file_from: float = math.inf,
    ) -> tuple[frames.Answer, list[bytes | InFile]]:
        """Send one request and wait for its answer; see `read_answer`.

        Not cancel-safe: when cancelled, or on any error, end the process.

        Raises:
            WorkerGoneError: The process died.
            FrameError: What came is no answer, or its attachments are over the limit.
            HostMemoryError: A card's worker took too much of the machine's memory.
            OSError: There is no memory to lend.
        """
        room = answer_limit_bytes if answer_limit_bytes > frames.INLINE_LIMIT_BYTES else 0
        lent = await self._ask(request, attachments, room)
        try:
            limit = min(frames.INLINE_LIMIT_BYTES, answer_limit_bytes)
            answer, sizes, received = await self._answer(limit, answer_limit_bytes)
            if self._memory:
                self._memory.answered(request, answer, sum(map(size_of, attachments)))
            if received is not None:
                return answer, [*received]
            if lent.answer is None:
                raise frames.FrameError("no memory was lent for this answer")
            return answer, await trio.to_thread.run_sync(
                read_answer, lent.answer, sizes, in_file_from
            )
        finally:
            lent.close()

    async def ask_many(self, request: frames.RunMany, attachments: Sequence[Tensor]) -> None:
        """Send a request that has many answers, for `next_answer` to take.

        Not cancel-safe, and it raises, as `exchange`.
        """
        (await self._ask(request, attachments, 0)).close()

    async def next_answer(self, limit_bytes: int) -> tuple[frames.Answer, list[bytes]]:
        """Wait for the next answer to `ask_many`; cancel-safe, and raises as `exchange`."""
        answer, _, received = await self._answer(limit_bytes, limit_bytes)
        if received is None:
            raise frames.FrameError("no memory was lent for this answer")
        return answer, received

    async def _ask(
        self, request: frames.Request, attachments: Sequence[Tensor], room: int
    ) -> LentMemory:
        """Send a request, with memory for its attachments and ``room`` bytes of an answer."""
        if frames.are_inline(attachments):
            lent = lend((), room)
        else:  # copying much is a thread's work
            lent = await trio.to_thread.run_sync(lend, attachments, room)
        try:
            pieces = frames.encode_request(request, attachments, answer_bytes=room)
            if isinstance(request, frames.Start) and request.card is not None:
                self._memory = HostMemory(self.pid, request.memory_bytes)
            if self._memory:
                self._memory.begin(request, sum(map(size_of, attachments)), room)
            await self._send(pieces, lent.descriptors)
        except BaseException:
            lent.close()
            raise
        return lent

    async def _answer(
        self, inline_limit_bytes: int, limit_bytes: int
    ) -> tuple[frames.Answer, Sequence[int], list[bytes] | None]:
        """An answer, the sizes of its attachments, and these where they are in the frame."""
        head_at = frames.SIZE_FIELD_BYTES
        await self._receive(head_at)
        size = frames.head_size(self._received[:head_at])
        await self._receive(head_at + size)
        head = bytes(memoryview(self._received)[head_at : head_at + size])
        answer, sizes, inline = frames.decode_answer(head)
        total = sum(sizes)
        if total > (inline_limit_bytes if inline else limit_bytes):
            raise frames.FrameError(f"an answer of {total} bytes is over the limit")
        end = head_at + size
        attachments: list[bytes] | None = None
        if inline:
            await self._receive(end + total)
            attachments = []
            for attachment_size in sizes:
                view = memoryview(self._received)[end : end + attachment_size]
                attachments.append(bytes(view))
                view.release()
                end += attachment_size
        del self._received[:end]
        return answer, sizes, attachments

    async def _send(self, pieces: Sequence[Buffer], descriptors: Sequence[int]) -> None:
        """Send a frame; the descriptors go with its first bytes."""
        frame = b"".join(pieces)
        rights = array("i", descriptors)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else []
        try:
            sent = await self._stream.socket.sendmsg([frame], ancillary)
            if sent < len(frame):
                await self._stream.send_all(memoryview(frame)[sent:])
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            raise WorkerGoneError from None

    async def _receive(self, size: int) -> None:
        """Have ``size`` bytes among those that were received and not taken. Cancel-safe."""
        while (missing := size - len(self._received)) > 0:
            at_once = min(max(missing, _AT_ONCE_BYTES), 1 << 20)
            try:
                data = await self._receive_some(at_once)
            except (OSError, trio.ClosedResourceError):
                raise WorkerGoneError from None
            if not data:
                raise WorkerGoneError
            self._received += data

    async def _receive_some(self, size: int) -> bytes:
        """Wait for bytes, with an eye on the memory of a card's worker."""
        data: bytes | None = None
        while data is None:
            if self._memory is None:
                data = await self._stream.socket.recv(size)
                continue
            if trio.current_time() >= self._memory.look_at_s:
                await self._memory.look()
            with trio.move_on_at(self._memory.look_at_s):
                data = await self._stream.socket.recv(size)
        return data

    def kill(self) -> None:
        """Kill the process, and all that it started; whoever talks to it sees it die."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    async def end(self) -> str:
        """Kill the process if it still runs, and wait until it is gone. Call it once.

        Returns:
            How it ended, for a sentence, with the last line that it wrote.
        """
        self.ended = True
        # All that it started is in its session, and a compiler may have hung with it.
        self.kill()
        with trio.CancelScope(shield=True):
            await self._stream.aclose()
            with suppress(subprocess.TimeoutExpired):
                wait = partial(self._process.wait, END_LIMIT_S)
                await trio.to_thread.run_sync(wait)
            if self.scratch:
                await trio.to_thread.run_sync(self._remove_scratch)
        said = _read_what_is_there(self._stderr).decode(errors="replace")
        how = _ending(self._process.returncode)
        last_words = said.strip().splitlines()[-1:]
        return f"{how}, saying: {last_words[0][:300]}" if last_words else how

    def _remove_scratch(self) -> None:
        if self.scratch:
            rmtree(self.scratch, ignore_errors=True)


def _ending(returncode: int | None) -> str:
    if returncode is None:
        return "was killed and does not end, as its driver holds it"
    if returncode < 0:
        return f"was killed by {signal.Signals(-returncode).name}"
    return f"ended with status {returncode}"


def _read_what_is_there(pipe: int) -> bytes:
    try:
        return os.read(pipe, _LAST_WORDS_LIMIT_BYTES)
    except BlockingIOError:
        return b""
    finally:
        os.close(pipe)
