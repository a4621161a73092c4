"""One worker process as the daemon sees it: spawn it, exchange frames, end it.

Beside it, the process that compiles the kernels which a worker of the class `exact`
loads. No policy here: who may use it, what a failure means for a unit and when to start
another one is `shoal.compute.supervisor`'s.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from array import array
from typing import TYPE_CHECKING, Final

import trio

from shoal.compute import frames
from shoal.compute.errors import ComputeError
from shoal.compute.lent_memory import lend, read_answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.crypto.content import Buffer

_LAST_WORDS_LIMIT_BYTES: Final = 64 << 10
_POLL_S: Final = 0.1
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


class WorkerGoneError(Exception):
    """The process closed its end: it is dead, or about to be."""


class WorkerProcess:
    """A running worker and the daemon's end of its socket pair.

    Spawning blocks for a few milliseconds, on purpose: the kernel kills a worker
    when the *thread* that started it ends, and Trio's helper threads end when idle.
    """

    def __init__(self, entry: Sequence[str] = WORKER) -> None:
        ours, theirs = socket.socketpair()
        self._stderr, stderr = os.pipe()
        # A worker that says too much loses words; it never waits for a reader.
        os.set_blocking(stderr, False)
        os.set_blocking(self._stderr, False)
        try:
            self._process = subprocess.Popen(  # noqa: S603  # no text of a stranger in it
                # -P: no module is ever taken from the current directory
                [sys.executable, "-P", *entry, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=_environment(),
                start_new_session=True,  # a Ctrl-C at the terminal is not for the worker
            )
        except OSError:
            ours.close()
            os.close(self._stderr)
            raise
        finally:
            theirs.close()
            os.close(stderr)
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        self.ended = False

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    async def exchange(
        self, request: frames.Request, attachments: Sequence[Buffer], answer_limit_bytes: int
    ) -> tuple[frames.Answer, list[bytes]]:
        """Send one request and wait for its answer.

        Not cancel-safe: when cancelled, or on any error, end the process.

        Raises:
            WorkerGoneError: The process died.
            FrameError: What came is no answer, or its attachments are over the limit.
            OSError: There is no memory to lend.
        """
        inline = frames.are_inline(attachments)
        room = answer_limit_bytes if answer_limit_bytes > frames.INLINE_LIMIT_BYTES else 0
        if inline:
            lent = lend((), room)
        else:  # copying much is a thread's work
            lent = await trio.to_thread.run_sync(lend, attachments, room)
        try:
            pieces = frames.encode_request(request, attachments, answer_bytes=room)
            await self._send(pieces, lent.descriptors)
            size = frames.head_size(await self._receive(frames.SIZE_FIELD_BYTES))
            answer, sizes, inline = frames.decode_answer(await self._receive(size))
            limit = frames.INLINE_LIMIT_BYTES if inline else answer_limit_bytes
            if sum(sizes) > min(limit, answer_limit_bytes):
                raise frames.FrameError(f"an answer of {sum(sizes)} bytes is over the limit")
            if inline:
                return answer, [bytes(await self._receive(size)) for size in sizes]
            if lent.answer is None:
                raise frames.FrameError("no memory was lent for this answer")
            return answer, await trio.to_thread.run_sync(read_answer, lent.answer, sizes)
        finally:
            lent.close()

    async def _send(self, pieces: Sequence[Buffer], descriptors: Sequence[int]) -> None:
        """Send a frame; the descriptors go with its first bytes."""
        size_field, *rest = pieces
        rights = array("i", descriptors)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else []
        try:
            sent = await self._stream.socket.sendmsg([size_field], ancillary)
            for piece in (memoryview(size_field)[sent:], *rest):
                await self._stream.send_all(piece)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            raise WorkerGoneError from None

    async def _receive(self, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            try:
                count = await self._stream.socket.recv_into(view)
            except (OSError, trio.ClosedResourceError):
                raise WorkerGoneError from None
            if count == 0:
                raise WorkerGoneError
            view = view[count:]
        return data

    async def end(self) -> str:
        """Kill the process if it still runs, and wait until it is gone. Call it once.

        Returns:
            How it ended, for a sentence, with the last line that it wrote.
        """
        self.ended = True
        self._process.kill()
        with trio.CancelScope(shield=True):
            await self._stream.aclose()
            returncode = await trio.to_thread.run_sync(self._process.wait)
        said = _read_what_is_there(self._stderr).decode(errors="replace")
        how = (
            f"was killed by {signal.Signals(-returncode).name}"
            if returncode < 0
            else f"ended with status {returncode}"
        )
        last_words = said.strip().splitlines()[-1:]
        return f"{how}, saying: {last_words[0][:300]}" if last_words else how


def _read_what_is_there(pipe: int) -> bytes:
    try:
        return os.read(pipe, _LAST_WORDS_LIMIT_BYTES)
    except BlockingIOError:
        return b""
    finally:
        os.close(pipe)
