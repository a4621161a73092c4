"""Results are kept until they were fetched, and then as long as there is room."""

import sqlite3
from functools import partial

import pytest
from journal_samples import (
    PEER,
    check_sound,
    done,
    failed,
    make_job,
    make_unit,
    make_units,
    tensor_id,
)

from shoal.crypto.content import blob_id_of
from shoal.node.blobs import open_store
from shoal.node.errors import JobError, StoreError
from shoal.node.house import outputs_of
from shoal.node.journal_forgetting import UNIT_BYTES, EndedJob
from shoal.node.records import JobId, JobState
from shoal.node.retention import Retention, to_forget
from shoal.node.state import open_state

FIRST, SECOND, THIRD = JobId("0001"), JobId("0002"), JobId("0003")
DAY_S = 86_400.0


class House:
    """A journal and a blob store whose retention has settings of the test's own."""

    def __init__(self, state, store):
        self.state, self.store = state, store
        self.quota_bytes, self.keep_s = 1 << 30, 30 * DAY_S
        self.retention = Retention(state, store, lambda: self.quota_bytes, lambda: self.keep_s)

    async def job(self, job_id, units=3, ended_at=2000.0, *, fetched=False):
        """A job of which all units are done."""
        rows = make_units(units, job=job_id)
        await self.state.add_job(*make_job(job_id), rows)
        await self.state.end_units([done(unit) for unit in rows])
        await self.state.end_job(job_id, JobState.DONE, ended_at)
        if fetched:
            await self.retention.note_fetched(job_id, None)

    async def kept(self):
        return sorted(job.id for job in await self.state.jobs(100))


@pytest.fixture
async def house(tmp_path):
    async with (
        open_state(tmp_path / "state.sqlite") as state,
        open_store(tmp_path / "blobs", 1000) as store,
    ):
        yield House(state, store)
    check_sound(tmp_path / "state.sqlite")


def ended(name, at, size_bytes=10, *, fetched=True):
    return EndedJob(JobId(name), at, size_bytes, fetched)


def test_those_that_ended_first_go_and_no_more_than_have_to():
    jobs = [ended("c", 3.0), ended("a", 1.0), ended("b", 2.0)]
    assert to_forget(jobs, 30, 30) == ()
    assert [job.id for job in to_forget(jobs, 30, 29)] == ["a"]
    assert [job.id for job in to_forget(jobs, 30, 15)] == ["a", "b"]
    assert [job.id for job in to_forget(jobs, 90, 0)] == ["a", "b", "c"]


def test_those_that_were_fetched_go_before_those_that_nobody_ever_fetched():
    jobs = [ended("a", 1.0, fetched=False), ended("b", 2.0)]
    assert [job.id for job in to_forget(jobs, 20, 10)] == ["b"]
    assert [job.id for job in to_forget(jobs, 20, 5)] == ["b", "a"]


async def test_a_job_is_fetched_when_each_of_its_results_was(house):
    await house.state.add_job(*make_job(), make_units(3))
    await house.state.end_units([done(make_unit(0)), failed(make_unit(2))])
    assert not (await house.state.note_fetched(FIRST, [0, 1, 2])).fetched  # it still runs
    assert not (await house.state.end_job(FIRST, JobState.CANCELLED, 2000.0)).open
    assert (await house.state.job(FIRST)).fetched


async def test_what_was_read_in_the_order_of_ending_was_fetched_in_that_order(house):
    await house.state.add_job(*make_job(), make_units(4))
    await house.state.end_units([done(make_unit(n)) for n in (2, 0, 3)])
    page = await house.state.results(FIRST, -1, 2, "ended")
    assert [unit.index for unit in page] == [2, 0]
    await house.state.note_read(FIRST, page[-1].ended, "ended")
    rows = house.state._database.execute("SELECT place FROM units WHERE fetched")
    assert {row["place"] for row in rows} == {0, 2}
    rest = await house.state.results(FIRST, page[-1].ended, 9, "ended")
    assert [unit.index for unit in rest] == [3]


async def test_results_in_the_given_order_stop_before_one_that_is_still_to_come(house):
    await house.state.add_job(*make_job(), make_units(4))
    await house.state.end_units([done(make_unit(n)) for n in (0, 1, 3)])
    assert [u.index for u in await house.state.results(FIRST, -1, 9)] == [0, 1]
    await house.state.end_units([done(make_unit(2))])
    assert [u.index for u in await house.state.results(FIRST, 1, 1)] == [2]
    assert [u.index for u in await house.state.results(FIRST, 2, 9)] == [3]
    with pytest.raises(JobError):
        await house.state.results(SECOND, -1, 9)


async def test_beyond_the_quota_jobs_that_were_fetched_go_and_the_others_stay(house):
    await house.job(FIRST, ended_at=10.0)
    await house.job(SECOND, ended_at=20.0, fetched=True)
    await house.job(THIRD, ended_at=30.0, fetched=True)
    assert await house.retention.prune() == 0
    house.keep_s = 1e12
    house.quota_bytes = 2 * 3 * (UNIT_BYTES + 64)
    assert await house.retention.prune() == 1
    assert await house.kept() == [FIRST, THIRD]
    house.quota_bytes = 0
    assert await house.retention.prune() == 1
    assert await house.kept() == [FIRST]
    house.keep_s = DAY_S  # and it ended in 1970
    assert await house.retention.prune() == 1
    assert await house.kept() == []


async def test_nothing_goes_that_other_units_still_wait_for(house):
    await house.job(FIRST, fetched=True)
    await house.state.add_job(*make_job(SECOND), [make_unit(0, job=SECOND, a=(FIRST, 0, "y"))])
    house.quota_bytes = 0
    assert await house.retention.prune() == 0
    with pytest.raises(JobError) as caught:
        await house.retention.forget(FIRST)
    assert caught.value.code == "job_awaited"
    (taken,) = await house.state.open_units(SECOND)
    await house.state.end_units([done(taken, 9)])
    assert await house.retention.prune() == 1
    assert await house.state.tensors([tensor_id(0), tensor_id(1)]) == {
        tensor_id(0): (0).to_bytes(8)  # the second job's own
    }


@pytest.mark.parametrize(
    ("state", "fetched", "code"),
    [
        (JobState.RUNNING, True, "job_running"),
        (JobState.DONE, False, "results_unfetched"),
        (JobState.CANCELLED, False, "results_unfetched"),
        (None, False, "no_such_job"),
    ],
)
async def test_a_job_that_may_not_be_forgotten_is_refused_with_the_next_step(
    house, state, fetched, code
):
    if state is not None:
        await house.state.add_job(*make_job(), make_units(2))
        await house.state.end_units([done(make_unit(0))])
        if fetched:
            await house.retention.note_fetched(FIRST, None)
        if state.final:
            await house.state.end_job(FIRST, state, 2000.0)
    with pytest.raises(JobError) as caught:
        await house.retention.forget(FIRST)
    assert caught.value.code == code
    assert caught.value.hint
    if code == "results_unfetched":
        assert "1 of 1 results" in caught.value.message
        assert ("--unit N" in caught.value.hint) == (state is JobState.CANCELLED)
        await house.retention.forget(FIRST, unfetched_too=True)
        assert await house.kept() == []


async def test_outputs_that_are_blobs_stay_until_they_were_fetched_and_then_make_room(house):
    async def room_for(size_bytes):
        return await house.store.put_bytes(bytes([size_bytes % 256]) * size_bytes)

    large = await house.store.put_bytes(b"y" * 600)
    house.store.pin(large, outputs_of(FIRST))
    await house.state.add_job(*make_job(), make_units(1))
    await house.state.end_units([done(make_unit(0), outputs={"y": large})])
    await house.state.end_job(FIRST, JobState.DONE, 2000.0)
    house.store.unpin(outputs_of(FIRST))  # as after a restart
    await house.retention.pin()
    with pytest.raises(StoreError) as caught:
        await room_for(700)
    assert caught.value.code == "quota_exceeded"
    await house.retention.note_read(FIRST, 0)
    await room_for(700)
    assert not house.store.holds(large)


async def test_what_is_forgotten_leaves_nothing_and_the_file_gets_smaller(house, tmp_path):
    await house.job(FIRST, 12_000, fetched=True)
    await house.job(SECOND, 5, fetched=True)
    database = house.state._database
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    before = (tmp_path / "state.sqlite").stat().st_size
    assert (await house.retention.forget(FIRST)).units_done == 12_000
    for table in ("units", "receipts", "tensors", "answers", "edges", "left_outputs"):
        left = database.execute(f"SELECT count(*) FROM {table} WHERE job = ?", (FIRST,))
        assert left.fetchone()[0] == 0
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    assert (tmp_path / "state.sqlite").stat().st_size < before / 4


async def test_a_job_is_gone_at_once_and_a_restart_deletes_what_a_kill_left(house):
    from shoal.node import journal_forgetting

    await house.job(FIRST, 5000, fetched=True)
    mark = partial(journal_forgetting.forget, job_id=FIRST, unfetched_too=False)
    await house.state.transact(mark)
    await house.state.transact(partial(journal_forgetting.delete_piece, job_id=FIRST))
    assert await house.kept() == []
    with pytest.raises(JobError):
        await house.state.job(FIRST)
    assert await house.retention.prune() == 0
    assert house.state._database.execute("SELECT count(*) FROM units").fetchone()[0] == 0


async def test_peers_hear_of_a_job_that_is_forgotten_while_it_is_known_what_they_have(house):
    heard = []

    async def leaving(job_id):
        heard.append((job_id, await house.state.holders([tensor_id(0)])))

    house.retention.leaving = leaving
    await house.state.add_job(*make_job(), make_units(1))
    await house.state.end_units([done(make_unit(0), left={tensor_id(0): 8})])
    await house.state.end_job(FIRST, JobState.DONE, 2000.0)
    await house.retention.forget(FIRST, unfetched_too=True)
    assert heard == [(FIRST, {tensor_id(0): (PEER, FIRST, 0, 8)})]
    assert await house.state.holders([tensor_id(0)]) == {}


async def test_a_job_that_goes_by_itself_while_others_are_forgotten_ends_nothing(house):
    for job_id in (FIRST, SECOND):
        await house.job(job_id, fetched=True)

    async def leaving(_job_id):
        house.retention.leaving = nothing
        await house.retention.forget(SECOND)  # as a person does meanwhile

    async def nothing(_job_id):
        pass

    house.retention.leaving = leaving
    house.quota_bytes = 0
    assert await house.retention.prune() == 1
    assert await house.kept() == []


async def test_a_disk_that_is_full_while_jobs_are_forgotten_is_said(house):
    await house.job(FIRST, fetched=True)
    house.state._database.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError):
        await house.retention.forget(FIRST)
    house.state._database.execute("PRAGMA query_only = OFF")
    assert await house.kept() == [FIRST]
    assert blob_id_of(b"") not in await house.state.tensors([blob_id_of(b"")])


def test_a_new_file_gives_pages_back(tmp_path):
    from shoal.node.state_file import open_database

    database = open_database(tmp_path / "state.sqlite")
    assert database.execute("PRAGMA auto_vacuum").fetchone()[0] == 2
    assert isinstance(database, sqlite3.Connection)
    database.close()
