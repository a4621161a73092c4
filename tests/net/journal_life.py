"""One job's life in the journal, in a process that may be killed at any of its writes.

A life goes on where the state stands, as a daemon does after a restart, and so it may be
killed and lived again. Two things stand in for the rest of the daemon: a unit "runs" by a
pure function of its inputs, so that one run twice gives the same; and what a client has
been given is a line of stdout.

Run as a script with ``grouped``, all writes go through the writer's thread, those of several
callers together; with ``small``, those of few rows are made where they are asked for. Either
way a life has as many commits however busy the machine is. It takes lines ``STATE KILL_AT
WHEN``, and lives a life for each, every one in a process of its own: a fork, since the
imports take longer than the life. ``KILL_AT`` counts that process's commits from 1 (0 for no
kill), ``WHEN`` is ``before`` or ``after`` the commit. It is counted in the connection that
SQLite is used through here, and in nothing that a daemon runs. What a life told is then in
``STATE.told``, and how it ended a line of stdout.
"""

import math
import os
import signal
import sqlite3
import sys
import traceback
from functools import partial
from pathlib import Path

import msgspec
import trio

sys.path.insert(0, str(Path(__file__).parent))

from journal_samples import (
    PEER,
    done,
    failed,
    make_job,
    make_unit,
    make_units,
    tensor_of,
)

from shoal.crypto.content import blob_id_of
from shoal.node import journal_forgetting, journal_writer, state_file
from shoal.node.errors import JobError
from shoal.node.journal_forgetting import delete_piece, forgotten
from shoal.node.records import Answer, Check, Failure, JobId, JobState
from shoal.node.state import open_state

EARLIER, JOB, OTHER = JobId("0001"), JobId("0002"), JobId("0003")
UNITS, PIECE, BATCH, FAILING = 12, 4, 3, 5
TAKES_EARLIER = 2
DIAMOND = {8: (4,), 9: (5,), 10: (6, 7), 11: (8, 10)}
"""Which units of the job await which: what awaits the one that fails, fails."""


class KillingConnection(sqlite3.Connection):
    """Dies at one commit of its process, right before it or right after."""

    commits = 0
    kill_at, when = 0, ""

    def execute(self, statement, *values):
        if statement != "COMMIT":
            return super().execute(statement, *values)
        type(self).commits += 1
        if self.commits == self.kill_at and self.when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        cursor = super().execute(statement)
        if self.commits == self.kill_at and self.when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return cursor


def tell(*words):
    print(*words, flush=True)


def unit_of_job(index):
    awaits = {f"in{n}": (JOB, n, "y") for n in DIAMOND.get(index, ())}
    if index == TAKES_EARLIER:
        awaits["earlier"] = (EARLIER, 0, "y")
    return make_unit(index, job=JOB, **awaits)


def result_of(unit):
    """What a unit gives: a number that follows from its inputs, and from nothing else."""
    text = msgspec.json.encode(sorted(unit.inputs.items()))
    return int(blob_id_of(text)[:8], 16)


async def live(state):
    """Do what is left to do of the life; every step looks first at what there is."""
    await go_on_forgetting(state)
    if not await ended_before(state):
        await earlier_job(state)
        await submit(state)
        await run(state)
        await fetch(state)
        await other_job(state)
    await forget(state, EARLIER)
    await forget(state, JOB)
    tell("lived")


async def ended_before(state):
    """Whether the last job of this life has ended: what was forgotten must not begin again."""
    other = await known(state, OTHER)
    return other is not None and other.state.final


async def known(state, job_id):
    try:
        return await state.job(job_id)
    except JobError:
        return None


async def earlier_job(state):
    """A job of which others take an output, and which has to be forgotten once they have."""
    if await known(state, EARLIER) is None:
        await state.add_job(*make_job(EARLIER), make_units(1, job=EARLIER))


async def submit(state):
    """An open job, its units in pieces, and its seal."""
    if await known(state, JOB) is None:
        await state.add_job(*make_job(JOB, opened=True))
    while (job := await state.job(JOB)).units_total < UNITS and job.open:
        first = job.units_total
        piece = [unit_of_job(n) for n in range(first, min(first + PIECE, UNITS))]
        await state.add_units(JOB, piece, {u.inputs["x"]: tensor_of(u.index) for u in piece})
    if job.open:
        await state.seal_job(JOB)


async def run(state):
    """Run what is ready, several callers at once, until the jobs have ended."""
    while running := await state.running_jobs():
        job_id = running[0].id
        while units := await state.open_units(job_id, limit=BATCH):
            await state.add_answer(Answer(job_id, "peer", 1.0, "bid"))
            if job_id == JOB and units[0].index == 4 and not await lost_before(state):
                await lose(state)
                continue
            async with trio.open_nursery() as nursery:
                for unit in units:
                    nursery.start_soon(state.end_units, [end_of(unit)])
        failure = await state.first_failure(job_id)
        ended = JobState.FAILED if failure else JobState.DONE
        await state.end_job(job_id, ended, 2000.0, failure)


def end_of(unit):
    if unit.job == JOB and unit.index == FAILING:
        return failed(unit, Failure("nan", "NaN at node 17"))
    ended = done(unit, result_of(unit))
    check = Check(unit.job, unit.index, "re-run", PEER, "agrees", None, 1.0)
    return msgspec.structs.replace(ended, checks=(check,))


async def lost_before(state):
    return any(a.verdict == "lost" for a in await state.answers(JOB))


async def lose(state):
    """The peer that had the output of a unit went away: it runs again, once."""
    await state.reopen_unit(JOB, 1)
    await state.add_answer(Answer(JOB, "peer", 1.0, "lost"))


async def fetch(state):
    """Give out results page by page; what was given out is noted with the next page."""
    after = -1
    while page := await state.results(JOB, after, 5):
        for unit in page:
            outputs = await state.tensors((unit.outputs or {}).values())
            given = [outputs[i] for i in (unit.outputs or {}).values()]
            tell("given", unit.index, unit.state, given[0].hex() if given else "-")
        after = page[-1].index
        await state.note_read(JOB, after)


async def other_job(state):
    """A job that is cancelled half-way, and one that waited for it."""
    if await known(state, OTHER) is None:
        await state.add_job(*make_job(OTHER), make_units(3, job=OTHER))
    if not (await state.job(OTHER)).state.final:
        unit, *_ = await state.units(OTHER, 0, 1)
        await state.end_units([done(unit)])
        await state.end_job(OTHER, JobState.CANCELLED, 3000.0)


async def forget(state, job_id):
    if await known(state, job_id) is not None:
        await state.note_fetched(job_id, None)
        tell("forget", job_id, await receipts_of(state, job_id))
        mark = partial(journal_forgetting.forget, job_id=job_id, unfetched_too=False)
        await state.transact(mark)
    await go_on_forgetting(state)


async def receipts_of(state, job_id):
    return ",".join(await state.receipt_ids(job_id)) or "-"


async def go_on_forgetting(state):
    for job_id in await state.transact(forgotten):
        while await state.transact(partial(delete_piece, job_id=job_id)):
            pass


async def main(path, kill_at, when):
    KillingConnection.kill_at, KillingConnection.when = kill_at, when
    connect = sqlite3.connect
    state_file.sqlite3.connect = partial(connect, factory=KillingConnection)
    async with open_state(path) as state:
        await live(state)
    tell("commits", KillingConnection.commits)


def live_in_a_fork(path, kill_at, when):
    """One life in a process of its own; gives how that ended, as `subprocess` counts."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        with Path(f"{path}.told").open("w") as told:
            os.dup2(told.fileno(), sys.stdout.fileno())
            trio.run(main, path, kill_at, when)
        code = 0
    except BaseException:  # noqa: BLE001  # this process ends here, and its parent must not be entered
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    journal_writer.SLOW_S = math.inf
    journal_writer.HERE_IN_A_ROW = {"grouped": 0, "small": math.inf}[sys.argv[1]]
    for line in sys.stdin:
        where, kill_at, when = line.split()
        tell(where, live_in_a_fork(Path(where), int(kill_at), when))
