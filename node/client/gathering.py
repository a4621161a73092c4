"""The threads behind an `Executor`: units are gathered into open jobs, results are awaited.

One lock guards what is shared. A unit's future is entered under its index before the unit
is sent, so that no result can come before it. Whether a request came through, when the
connection broke, is told by the index that the daemon expects next.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from shoal.crypto.errors import ShoalError
from shoal.node.client import fetching, flows, submitting
from shoal.node.client.futures import Submitted
from shoal.node.client.submitting import REQUEST_BYTES, UNITS_PER_REQUEST, Gathered
from shoal.node.errors import DaemonError, DaemonUnreachableError, WaitTimeoutError
from shoal.node.records import Policy, UnitState, new_job_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shoal.node.client.exchange import Value
    from shoal.node.client.fetching import Page, Told
    from shoal.node.client.flows import Drive, Options, Prepared
    from shoal.node.client.tensors import As

FLUSH_S = 0.005
"""A unit waits so long for others to go with it, while results of others are awaited: a
request costs about 1 ms."""

PATIENCE_S = 60.0
"""A daemon that restarts is back before; one that is not has been ended."""

IDLE_S = 60.0
"""A job to which nothing was added for so long is sealed; the next unit opens another."""

UNITS_PER_JOB = 100_000
"""Then another one is opened, so that what was fetched of the first can go."""

QUICK_S = 0.1
"""How long the request that brings a unit waits for its result, where none is awaited beside
it: a program that calls one unit after another needs one request for each. Once that was too
short, results are waited for apart, until units are quick again."""

_RETRY_S = 0.25
_GONE = frozenset({"job_sealed", "job_ended", "no_such_job"})


@dataclass(slots=True, eq=False)
class _OpenJob:
    """A job to which units are added.

    Attributes:
        sent: How many units it has; the index of the next one.
        units: Those that have not ended, by index.
        after: Up to where its results were read.
        quick: Whether its units end within `QUICK_S`, as far as is known.
        wanted: Whether its reader is to read; else it rests, and the sender may.
        resting: Whether it does.
        ending: Whether no more comes, so that it is read to its end.
        over: Whether nobody reads its results any more.
    """

    id: str
    sent: int = 0
    used_at: float = field(default_factory=time.monotonic)
    units: dict[int, Submitted] = field(default_factory=dict)
    after: int = -1
    quick: bool = True
    wanted: bool = False
    resting: bool = False
    ending: bool = False
    over: bool = False
    reader: threading.Thread | None = None


@dataclass(slots=True, eq=False)
class _Line:
    """The units of one program: those that wait, and the open job that they go to."""

    prepared: Prepared
    pending: deque[Submitted] = field(default_factory=deque)
    job: _OpenJob | None = None


class Gathering:
    """Gathers units, sends them, and gives futures their results.

    Args:
        drive: Carries out flows, for several threads.
        options: How units are run; each job has an id of its own.
        as_: As what results are given.
        flush_s: How long a unit waits for others.
        patience_s: How long the daemon may be away.
    """

    def __init__(
        self, drive: Drive, options: Options, as_: As, flush_s: float, patience_s: float
    ) -> None:
        self.ending = False
        self._drive = drive
        self._options = options
        self._as: As = as_
        self._flush_s = flush_s
        self._patience_s = patience_s
        self._lines: dict[str, _Line] = {}
        self._jobs: list[_OpenJob] = []
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        self._wanting = threading.Condition(lock)  # else each unit would wake the readers too
        self._sender: threading.Thread | None = None
        self._sending: list[Submitted] = []
        _LIVE.add(self)

    def put(self, prepared: Prepared, one: Submitted) -> None:
        """Take a unit.

        Raises:
            RuntimeError: This is ending.
        """
        with self._changed:
            if self.ending:
                raise RuntimeError("cannot schedule new futures after shutdown")
            line = self._lines.setdefault(prepared.program_id, _Line(prepared))
            one.withdraw = lambda: self._withdraw(line, one)
            line.pending.append(one)
            if self._sender is None:
                self._sender = threading.Thread(
                    target=self._send_all, name="shoal-executor", daemon=True
                )
                self._sender.start()
            self._changed.notify_all()

    def cancel(self, submitted: Iterable[Submitted]) -> None:
        """Cancel those that nobody runs, with one request for each job."""
        placed: dict[str, dict[int, Submitted]] = {}
        for one in submitted:
            if one.future.done():
                continue
            if one.withdraw():
                one.never_runs()
            elif one.placed.wait(self._patience_s) and one.place:
                job_id, index = one.place
                placed.setdefault(job_id, {})[index] = one
        for job_id, units in placed.items():
            with suppress(ShoalError):  # away, or gone: then the reader tells its futures
                for index in self._drive(flows.cancel_units(job_id, [*units])):
                    units[index].never_runs()

    def end(self, *, wait: bool, cancel: bool = False) -> None:
        """Take no more; once all is sent jobs are sealed, and threads end with them."""
        with self._changed:
            self.ending = True
            left = [one for line in self._lines.values() for one in line.pending]
            left += self._sending
            left += [one for job in self._jobs for one in job.units.values()]
            self._changed.notify_all()
        if cancel:
            self.cancel(left)
        if wait and self._sender is not None:
            self._sender.join()
            for job in tuple(self._jobs):
                if job.reader is not None:
                    job.reader.join()

    def _withdraw(self, line: _Line, one: Submitted) -> bool:
        """Take a unit back that was not sent."""
        with self._changed:
            if one not in line.pending:
                return False
            line.pending.remove(one)
        one.settle(None)
        return True

    # --- sending -------------------------------------------------------------------

    def _send_all(self) -> None:
        while (line := self._next_line()) is not None:
            self._send(line, self._batch(line))
            self._sending = []  # nothing keeps a future here
        for line in self._lines.values():
            self._seal(line)

    def _next_line(self) -> _Line | None:
        """A line with units to be sent now; None when there will be none any more."""
        with self._changed:
            while True:
                waiting = [line for line in self._lines.values() if line.pending]
                if waiting:
                    line = max(waiting, key=lambda one: len(one.pending))
                    self._linger(line)
                    return line
                if self.ending:
                    return None
                idle = [line for line in self._lines.values() if line.job is not None]
                self._changed.wait(IDLE_S if idle else None)
                for line in idle:
                    job = line.job
                    if job and not job.units and time.monotonic() - job.used_at >= IDLE_S:
                        self._seal(line)

    def _linger(self, line: _Line) -> None:
        """Wait a little for units that go together with those that are there.

        As Nagle's algorithm has it: where no result is awaited, what comes goes at once.
        """
        if line.job is not None and not line.job.units:
            return
        self._changed.wait_for(
            lambda: self.ending or len(line.pending) >= UNITS_PER_REQUEST, self._flush_s
        )

    def _batch(self, line: _Line) -> list[Submitted]:
        batch: list[Submitted] = []
        room = REQUEST_BYTES
        with self._changed:
            while line.pending and len(batch) < UNITS_PER_REQUEST and room > 0:
                batch.append(line.pending.popleft())
                room -= batch[-1].size_bytes
            self._sending = batch
        return batch

    def _send(self, line: _Line, batch: list[Submitted]) -> None:
        """Send units; where that cannot be done, their futures get the error."""
        if not batch:  # all of them were taken back
            return
        try:
            job = self._enter(line, batch)
            while not (added := self._add(job, batch)):  # somebody else sealed or ended it
                self._leave(job, batch)
                self._want(job, ending=True)
                line.job = None
                job = self._enter(line, batch)
        except BaseException as error:  # noqa: BLE001  # the root of a thread: told to all who wait
            if line.job is not None:  # its units are not known for sure any more
                self._leave(line.job, batch)
                self._want(line.job, ending=True)
                with suppress(ShoalError):
                    self._drive(flows.seal(line.job.id))
                line.job = None
            for one in batch:
                one.settle(None)
                one.fails(error)
            return
        for index, one in enumerate(batch, job.sent):
            one.settle((job.id, index))
        job.sent += len(batch)
        self._ended_already(job, added)
        job.used_at = time.monotonic()
        if job.sent >= UNITS_PER_JOB:
            self._seal(line)

    def _enter(self, line: _Line, batch: list[Submitted]) -> _OpenJob:
        """Note in a job which units are to come: no result is there before its future."""
        while True:
            job = line.job or self._open(line)
            with self._changed:
                if not job.over:
                    job.units.update(enumerate(batch, job.sent))
                    return job
            line.job = None

    def _leave(self, job: _OpenJob, batch: list[Submitted]) -> None:
        with self._changed:
            for index in range(job.sent, job.sent + len(batch)):
                job.units.pop(index, None)

    def _open(self, line: _Line) -> _OpenJob:
        """Open a job; where an earlier attempt came through after all, it is the same job."""
        options = msgspec.structs.replace(self._options, id=new_job_id())

        def attempt() -> str:
            flow = submitting.open_job(
                line.prepared, Policy.MAP, options, Gathered(), stays_open=True
            )
            return self._drive(flow).id

        job = _OpenJob(self._patiently(attempt))
        job.reader = threading.Thread(
            target=self._read, args=(job,), name=f"shoal-results-{job.id}", daemon=True
        )
        with self._changed:
            self._jobs = [one for one in self._jobs if not one.over]
            self._jobs.append(job)
        line.job = job
        job.reader.start()
        return job

    def _add(self, job: _OpenJob, batch: list[Submitted]) -> list[Page | None]:
        """Add units at the place they have; nothing where the job takes no more.

        Returns:
            The page that came with the answer, where one was asked for.
        """
        units = Gathered([one.unit for one in batch])
        for one in batch:
            units.large |= one.large
        with self._changed:
            alone = job.quick and job.resting and len(job.units) == len(batch) == 1
        pages: list[Page | None] = []

        def add() -> None:
            if alone:
                flow = submitting.add_and_read(job.id, job.sent, units, job.after, QUICK_S)
                pages.append(self._drive(flow))
            else:
                self._drive(submitting.add_units(job.id, job.sent, units))

        added = self._patiently(lambda: self._added(add, job, len(batch)))
        return (pages or [None]) if added else []

    def _ended_already(self, job: _OpenJob, pages: list[Page | None]) -> None:
        """End the units whose results came with the answer, and have the others read."""
        for page in pages:
            if page is not None:
                job.after, job.quick = page.after, bool(page.units)
                for told in page.units:
                    self._end_unit(job, told)
        if job.units:
            self._want(job)

    def _added(self, add: Callable[[], None], job: _OpenJob, count: int) -> bool:
        """Add units, perhaps again; False where the job takes no more."""
        try:
            add()
        except DaemonError as error:
            if error.code in _GONE:
                return False
            if error.code != "wrong_place":
                raise
            if self._drive(flows.job(job.id)).units_total != job.sent + count:
                raise
        return True  # also where an attempt before came through

    def _want(self, job: _OpenJob, *, ending: bool = False) -> None:
        """Have the results of a job read by its reader; to the end, where no more comes."""
        with self._changed:
            job.wanted, job.ending = True, job.ending or ending
            self._wanting.notify_all()

    def _seal(self, line: _Line) -> None:
        job, line.job = line.job, None
        if job is not None:
            with suppress(ShoalError):  # its reader meets the same, and tells the futures
                self._patiently(lambda: self._drive(flows.seal(job.id)))
            self._want(job, ending=True)

    def _patiently(self, attempt: Callable[[], Value]) -> Value:
        """Try again for as long as the daemon may be away."""
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                return attempt()
            except (DaemonUnreachableError, WaitTimeoutError, DaemonError) as error:
                away = not isinstance(error, DaemonError) or error.code == "draining"
                if not away or time.monotonic() > deadline:
                    raise
            time.sleep(_RETRY_S)

    # --- results -------------------------------------------------------------------

    def _read(self, job: _OpenJob) -> None:
        """Give the futures of one job what becomes of them, until it has ended."""
        error: BaseException
        try:
            while True:
                self._rest(job)
                page = self._patiently(
                    lambda: self._drive(fetching.page(job.id, job.after, ordered=False))
                )
                for told in page.units:
                    self._end_unit(job, told)
                job.after = page.after
                if page.last:
                    error = flows.failure_of(page.job)
                    break
        except BaseException as stopped:  # noqa: BLE001  # the root of a thread: told to all who wait
            error = stopped
        with self._changed:
            job.over = True
            left, job.units = job.units, {}
        cancelled = isinstance(error, ShoalError) and error.code == "job_cancelled"
        for one in left.values():
            if not cancelled or not one.never_runs():
                one.fails(error)

    def _rest(self, job: _OpenJob) -> None:
        """Wait until there is something to be read that the sender does not read."""
        with self._changed:
            if not job.units and not job.ending:
                job.wanted = False
            job.resting = True
            self._wanting.wait_for(lambda: job.wanted)
            job.resting = False

    def _end_unit(self, job: _OpenJob, told: Told) -> None:
        with self._changed:
            one = job.units.pop(told.index, None)
        if one is None:
            return
        one.receipt_id = told.receipt
        job.quick = told.seconds is not None and told.seconds < QUICK_S / 2
        if told.state is UnitState.CANCELLED:
            one.never_runs()
            return
        try:
            outputs = self._patiently(
                lambda: self._drive(fetching.outputs_of(job.id, told, self._as))
            )
        except ShoalError as error:
            one.fails(error)
            return
        one.succeeds(outputs)


_LIVE: weakref.WeakSet[Gathering] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """A program that ends waits for its futures, as with the standard library's executors."""
    for gathering in tuple(_LIVE):
        gathering.end(wait=True)
