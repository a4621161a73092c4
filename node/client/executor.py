"""`Executor`: exported programs as the work of a `concurrent.futures.Executor`.

Many small submits go together: a thread gathers them into one open job for each program,
and sends what has come after some milliseconds or some hundred units. Another thread for
each job waits for results. Neither is lost when the daemon restarts: the job goes on, and
both come back to it, so that each future gets its result once.
"""

from __future__ import annotations

import concurrent.futures
import os
import threading
import time
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.crypto.content import blob_id_of
from shoal.node.client import flows
from shoal.node.client.blocking import Client
from shoal.node.client.flows import Options, Prepared
from shoal.node.client.futures import Future, Submitted
from shoal.node.client.gathering import FLUSH_S, PATIENCE_S, Gathering
from shoal.node.client.submitting import encoded
from shoal.node.client.tensors import As, check_as
from shoal.node.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from shoal.node.client.tensors import Outputs

PREPARED_LIMIT = 64
"""Programs that are remembered as held by the daemon; another one is asked for again."""


class Executor(concurrent.futures.Executor):
    """Runs programs on the nodes of the network, as futures.

    What is submitted is a program and its inputs, never Python: a path to an ONNX file, its
    bytes, a loaded model, a program id, what `Client.prepare`, `shoal.export.program` or
    `shoal.kernel.program` gave, or a `shoal.remote` function. Inputs are given in the order
    of the program's inputs, or by name. A future's result is the outputs by name.

    Arrays of over 64 KiB are read again when they are sent, some milliseconds later: do
    not change them before `Future.job_id` is there.

    Args:
        home: The daemon's home; found as ``shoal status`` finds it when not given.
        socket: Its socket, in place of ``home``.
        as_: ``numpy`` or ``torch``, as what results are given.
        flush_s: How long a unit waits for others to go with it.
        patience_s: How long a daemon may be away before futures fail.
        **options: Fields of `Options`, such as ``numeric_class`` or ``priority``.

    Example:
        >>> with shoal.Executor() as executor:  # doctest: +SKIP
        ...     future = executor.submit("model.onnx", array)
        ...     future.result()["y"]
    """

    def __init__(
        self,
        home: Path | str | None = None,
        *,
        socket: Path | str | None = None,
        as_: As = "numpy",
        flush_s: float = FLUSH_S,
        patience_s: float = PATIENCE_S,
        **options: Any,
    ) -> None:
        check_as(as_)
        self._options = Options(**options)
        self._client = Client(socket, home=home)
        self._drive = self._client._drive  # noqa: SLF001  # both are the client
        self._gathering = Gathering(self._drive, self._options, as_, flush_s, patience_s)
        self._prepared: OrderedDict[object, tuple[object, Prepared]] = OrderedDict()
        self._preparing = threading.Lock()
        # Threads know the gathering and not this: one that is dropped ends what it began.
        self._end = weakref.finalize(self, self._gathering.end, wait=False)
        self._end.atexit = False  # then `gathering` waits

    def submit(  # type: ignore[override]  # a program in place of a function
        self, program: Any, /, *arrays: Any, **named: Any
    ) -> Future:
        """Hand over one unit.

        Args:
            program: What to run.
            *arrays: Its inputs in order.
            **named: Its inputs by name.

        Raises:
            RuntimeError: The executor was shut down.
            InputError, ProgramError: The program or an input cannot be used.
            DaemonUnreachableError: No daemon answers, at a program's first submit.
        """
        if self._gathering.ending:
            raise RuntimeError("cannot schedule new futures after shutdown")
        return self._submit(program, arrays, named).future

    def _submit(
        self, program: Any, arrays: tuple[Any, ...], named: dict[str, Any]
    ) -> Submitted:
        prepared = self._prepare(program, arrays, named)
        inputs = _by_name(prepared, arrays, named)
        one = Submitted(self._drive, *encoded(prepared.manifest, inputs))
        self._gathering.put(prepared, one)
        return one

    def map(  # type: ignore[override]  # of outputs, whatever `fn` is
        self,
        fn: Any,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[Outputs]:
        """Run a program on each of some inputs; results come in order.

        All of them are submitted at once, as `concurrent.futures.Executor.map` does it: for
        inputs without end, or in constant memory, there is `Client.map`.

        Args:
            fn: The program.
            *iterables: One for each input of the program, in order.
            timeout: Seconds until a result has to be there, from this call on.
            chunksize: Of no effect: units go together as they come.

        Raises:
            TimeoutError: From the iterator, at a result that is not there in time.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        deadline = None if timeout is None else time.monotonic() + timeout
        submitted = [self._submit(fn, arrays, {}) for arrays in zip(*iterables, strict=False)]
        return _results(self._gathering, submitted, deadline)

    def shutdown(
        self, wait: bool = True, *, cancel_futures: bool = False
    ) -> None:  # as it is in the standard library
        """Take no more, and end the threads once all futures are done.

        Args:
            wait: Return only then.
            cancel_futures: Cancel what nobody runs yet.
        """
        self._gathering.end(wait=wait, cancel=cancel_futures)

    def _prepare(
        self, program: Any, arrays: tuple[Any, ...], named: dict[str, Any]
    ) -> Prepared:
        if isinstance(program, Prepared):
            return program
        if hasattr(program, "program_for"):  # `shoal.remote`
            program = program.program_for(*arrays, **named)
        key = _key(program)
        with self._preparing:
            if key in self._prepared:
                self._prepared.move_to_end(key)
                return self._prepared[key][1]
            prepared = self._client.prepare(program, flows.precision_of(self._options))
            self._prepared[key] = program, prepared  # the program too, or its id is reused
            if len(self._prepared) > PREPARED_LIMIT:
                self._prepared.popitem(last=False)
            return prepared


def _results(
    gathering: Gathering, submitted: list[Submitted], deadline: float | None
) -> Iterator[Outputs]:
    submitted.reverse()  # so that each is dropped as soon as its result is given
    try:
        while submitted:
            left_s = None if deadline is None else deadline - time.monotonic()
            try:
                outputs = submitted[-1].future.result(left_s)
            finally:
                if submitted[-1].future.done():  # what is late is cancelled with the rest
                    submitted.pop()
            yield outputs
            del outputs
    finally:
        gathering.cancel(submitted)


def _by_name(
    prepared: Prepared, arrays: tuple[Any, ...], named: dict[str, Any]
) -> dict[str, Any]:
    names = [port.name for port in prepared.manifest.inputs]
    if len(arrays) > len(names):
        raise ConfigError(
            f"the program takes {len(names)} inputs, and {len(arrays)} were given",
            code="too_many_inputs",
            hint=f"its inputs are {', '.join(names)}",
        )
    found = dict(zip(names, arrays, strict=False))
    for name in found.keys() & named.keys():
        raise ConfigError(f"input {name!r} is given twice", code="input_twice")
    return found | named


def _key(program: Any) -> object:
    """What tells programs apart without looking into them each time."""
    if isinstance(program, str | os.PathLike):
        try:
            found = Path(program).stat()
        except (OSError, ValueError):
            return str(program)
        return str(program), found.st_mtime_ns, found.st_size, found.st_ino
    if isinstance(program, bytes):
        return blob_id_of(program)
    return getattr(program, "program_id", None) or id(program)
