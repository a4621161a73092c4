"""Group commit: the writes of concurrent tasks in as few transactions as there can be.

SQLite has one writer, and what a transaction costs is mostly its beginning and its end.
While one runs in the thread, the writes of other tasks gather; then one of those tasks
takes all of them into the next. Each has a savepoint: its error is its own. Where the
disk fills up, what had gone before in the transaction is lost with it, and so each write
is done again by itself: those fail for which there is no room, and no others.

A change of threads and back costs more than a write of a few rows, which goes into the
WAL and waits for no disk. So those are made in the daemon's own thread (`_written_here`)
while nobody else writes: only where that was quick lately, and not too many in a row, so
that what can take long, pages that move from the WAL into the file, is left to the thread.
(Where the WAL then begins anew, once in some hundred units, its header is synced.)
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import outcome
import trio

from shoal.node.state_file import at_once, ending, reporting, transaction

GROUP_LIMIT = 256
"""Writes in one transaction: none waits long for the others of its group."""

HERE_IN_A_ROW = 128
"""Small writes in the daemon's own thread before one goes through the other, which then moves
the pages of all into the file: some 1,000 of `state_file.CHECKPOINT_PAGES`."""

SLOW_S, SLOW_FOR_S = 0.01, 5.0
"""A small write that took longer held the loop up: the disk is busy, and for so long all writes
go through the thread."""

T = TypeVar("T")


class _Write(Generic[T]):
    """One task's write: before it has begun, and how it ended."""

    def __init__(self, work: Callable[[sqlite3.Connection], T]) -> None:
        self.work = work
        self.task = trio.lowlevel.current_task()
        self.ended: outcome.Outcome[T] | None = None


class JournalWriter:
    """Runs writes on a database in a thread, those of concurrent tasks together.

    Args:
        database: Used by nobody else while a write runs.
        path: Of its file, for errors.
    """

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        self._database = database
        self._path = path
        self._thread = trio.CapacityLimiter(1)
        self._waiting: list[_Write[Any]] = []
        self._busy = False
        self._here_in_a_row = 0
        self._slow_until_s = -math.inf

    async def write(self, work: Callable[[sqlite3.Connection], T], *, small: bool = False) -> T:
        """Run ``work`` in a transaction; it is on disk when this returns.

        Args:
            work: Called in a thread; again from the start where a transaction has to be
                repeated, and so without effects elsewhere.
            small: Whether it writes a few rows, so that it may be called in this thread.

        Cancelled before its transaction has begun, it leaves nothing; later, it is
        waited for, and ends as it ends.

        Raises:
            StoreError: The disk is full or the file damaged; nothing is written.
            Exception: What ``work`` raises; nothing is written.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        mine = _Write(work)
        if small and self._written_here(mine):
            assert mine.ended is not None
            return mine.ended.unwrap()
        self._waiting.append(mine)
        if self._busy:
            await self._wait_for_turn(mine)
        if mine.ended is None:
            await self._lead(mine)
        assert mine.ended is not None
        return mine.ended.unwrap()

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work`` between two transactions; raises as `write`."""

        def guarded() -> T:
            with reporting(self._path):
                return work(self._database)

        return await trio.to_thread.run_sync(guarded, limiter=self._thread)

    async def look(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """As `read`, for a few rows: in this thread, where none runs a transaction now.

        They take some 20 µs, from pages that were just written, and a change of threads and
        back ten times that. A page that has to come from the disk holds the loop up meanwhile.
        No other task gets a turn before it is done, nor afterwards.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._in_use:
            return await self.read(work)
        with reporting(self._path):
            return work(self._database)

    @property
    def _in_use(self) -> bool:
        """Whether the thread has the database, or somebody waits for it there."""
        return self._busy or bool(self._thread.borrowed_tokens)

    def _written_here(self, mine: _Write[Any]) -> bool:
        """Write in this thread; False where the other one is to do it."""
        began_s = time.monotonic()
        here = not self._in_use and self._here_in_a_row < HERE_IN_A_ROW
        if not here or began_s < self._slow_until_s:
            self._here_in_a_row = 0
            return False
        with at_once(self._database):
            try:
                self._database.execute("BEGIN IMMEDIATE")
            except sqlite3.Error:  # another process has it, or what the thread will meet too
                return False
            with _outcome_of(mine), reporting(self._path), ending(self._database):
                mine.ended = outcome.Value(mine.work(self._database))
        self._here_in_a_row += 1
        if time.monotonic() - began_s > SLOW_S:
            self._slow_until_s = began_s + SLOW_FOR_S
        return True

    async def _wait_for_turn(self, mine: _Write[Any]) -> None:
        """Until somebody else has done it, or this task is to lead the next group."""

        def cancelled(_: object) -> trio.lowlevel.Abort:
            if mine not in self._waiting:
                return trio.lowlevel.Abort.FAILED
            self._waiting.remove(mine)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(cancelled)

    async def _lead(self, mine: _Write[Any]) -> None:
        """Write the group that has gathered, and tell those whose writes are in it."""
        self._busy = True
        group, self._waiting = self._waiting[:GROUP_LIMIT], self._waiting[GROUP_LIMIT:]
        try:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._commit, group, limiter=self._thread)
        except BaseException as error:
            for write in group:
                write.ended = write.ended or outcome.Error(error)
            raise
        finally:
            for write in group:
                if write is not mine:
                    trio.lowlevel.reschedule(write.task)
            self._busy = bool(self._waiting)
            if self._waiting:
                trio.lowlevel.reschedule(self._waiting[0].task)

    # --- in the thread ----------------------------------------------------------------

    def _commit(self, group: list[_Write[Any]]) -> None:
        if len(group) == 1 or not self._committed_together(group):
            for write in group:
                with _outcome_of(write), reporting(self._path), transaction(self._database):
                    write.ended = outcome.Value(write.work(self._database))

    def _committed_together(self, group: list[_Write[Any]]) -> bool:
        """Write all in one transaction; False where that as a whole came to nothing."""
        try:
            with transaction(self._database):
                for write in group:
                    self._run_in_savepoint(write)
        except sqlite3.DatabaseError:
            for write in group:
                write.ended = None
            return False
        return True

    def _run_in_savepoint(self, write: _Write[Any]) -> None:
        database = self._database
        database.execute("SAVEPOINT one")
        with _outcome_of(write), reporting(self._path):
            write.ended = outcome.Value(write.work(database))
        if not database.in_transaction:  # a full disk ended it, with all that was in it
            raise sqlite3.OperationalError("the transaction was rolled back")
        if isinstance(write.ended, outcome.Error):
            database.execute("ROLLBACK TO one")
        database.execute("RELEASE one")


@contextmanager
def _outcome_of(write: _Write[Any]) -> Iterator[None]:
    """Give an error to the task whose write it is."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # it goes to its task, and the others go on
        write.ended = outcome.Error(error)
