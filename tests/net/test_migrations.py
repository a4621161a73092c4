"""Files of older versions: brought up whole or not at all, with a copy of what they were."""

import errno
import os
import shutil
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest
import trio
from journal_samples import PEER, check_sound

from shoal.crypto.content import blob_id_of
from shoal.node import migrations, state_file
from shoal.node.errors import StoreError
from shoal.node.journal_defence import Given
from shoal.node.migrations import TABLES_VERSION
from shoal.node.owner import Pause
from shoal.node.records import Check, JobId, JobState, UnitState
from shoal.node.remembered_peers import remembered
from shoal.node.state import open_state
from shoal.node.state_file import open_database

FIXTURES = Path(__file__).parent / "state_fixtures"
VERSION_1 = (FIXTURES / "state_v1.sql").read_text()
VERSION_2 = (FIXTURES / "state_v2.sql").read_text()
VERSION_3 = (FIXTURES / "state_v3.sql").read_text()
"""As the shoals of those times wrote them."""


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "state.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.executescript(VERSION_1)
    return path


@pytest.fixture
def second(tmp_path):
    path = tmp_path / "state.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.executescript(VERSION_2)
    return path


def dump(path):
    with closing(sqlite3.connect(path)) as database:
        return (database.execute("PRAGMA user_version").fetchone()[0], [*database.iterdump()])


def version_of(path):
    with closing(sqlite3.connect(path)) as database:
        return database.execute("PRAGMA user_version").fetchone()[0]


async def test_a_state_of_version_1_is_found_with_all_that_was_in_it(old):
    async with open_state(old) as state:
        cancelled, running = await state.jobs(5)
        assert (running.id, running.state, running.label) == ("0001", "running", "évaluation")
        assert (running.units_total, running.units_done, running.units_failed) == (4, 1, 1)
        assert (cancelled.state, cancelled.fetched) == (JobState.CANCELLED, False)
        assert [unit.index for unit in await state.open_units(JobId("0001"))] == [2, 3]
        done, failed = await state.results(JobId("0001"), -1, 9, "ended")
        assert (done.outputs, done.provider, done.seconds) == (
            {"y": blob_id_of(b"y")},
            PEER,
            1.25,
        )
        assert (failed.state, failed.failure.code) == (UnitState.FAILED, "nan")
        assert await state.receipt(done.receipt) == b"signed"
        assert (await state.spec(JobId("0001"))).priority == 0
        (answer,) = await state.answers(JobId("0001"))
        assert answer.detail == "2 units run"
        assert [peer.peer for peer in await remembered(state, 5)] == [PEER]
        assert await state.pauses() == [Pause("", 12.5)]
        assert await state.next_sequence(0) == 5001
        assert not await state.enter_network(7)
        await state.end_job(JobId("0001"), JobState.CANCELLED, 3000.0)
    check_sound(old)


async def test_a_state_of_version_2_is_found_and_can_have_checks_and_bans(second):
    before = dump(second)
    job_id = JobId("0001")
    async with open_state(second) as state:
        assert [job.id for job in await state.running_jobs()] == ["0001", "0002"]
        assert (await state.job(job_id)).priority == 2
        done, *_ = await state.results(job_id, -1, 9)
        assert (done.state, done.provider) == (UnitState.DONE, PEER)
        assert await state.receipt(done.receipt)
        assert await state.tensors(done.outputs.values())
        (waiting,) = await state.units(JobId("0002"), 0, 5)
        assert waiting.awaits["fed"].unit == 1
        assert await state.pauses() == [Pause("", 12.5)]
        assert await state.next_sequence(0) == 5001
        check = Check(job_id, 0, "own", PEER, "agrees", None, 5.0)
        await state.add_checks([check])
        assert await state.checks(job_id) == [check]
        assert await state.unfetched_units_by(PEER) == [(job_id, 0, PEER)]
        assert await state.bans() == []
        assert await state.ledger() == []
    check_sound(second)
    assert dump(second.with_name("state.sqlite.v2.bak")) == before


async def test_a_state_of_version_3_is_found_and_can_have_receipts_to_answer_for(tmp_path):
    path = tmp_path / "state.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.executescript(VERSION_3)
    async with open_state(path) as state:
        (check,) = await state.checks(JobId("0001"))
        assert (check.level, check.verdict) == ("re-run", "agrees")
        assert [ban.peer for ban in await state.bans()] == ["12D3KooWliar"]
        assert await state.open_disputes() == [(7, b"\x80")]
        assert [row.units for row in await state.ledger()] == [2]
        given = Given(b"signed", 60.0, 1 << 30, (b"leaf",), 2000.0)
        await state.save_given_receipts(1, [given], 1)
        assert await state.given_receipts() == [(1, [given])]
    check_sound(path)


async def test_the_older_file_is_kept_beside_it_and_can_be_put_back(old):
    before = dump(old)
    open_database(old).close()
    copy = old.with_name("state.sqlite.v1.bak")
    assert dump(copy) == before
    assert [*old.parent.glob("*.part")] == []
    copy.replace(old)
    assert dump(old) == before
    open_database(old).close()
    assert version_of(old) == TABLES_VERSION


async def test_a_file_from_the_beginnings_of_version_1_gets_what_came_later_too(old):
    with closing(sqlite3.connect(old)) as database:
        for table in ("pauses", "measurements", "proofs"):
            database.execute(f"DROP TABLE {table}")
        for column in ("worked", "met"):
            database.execute(f"ALTER TABLE peers DROP COLUMN {column}")
        database.commit()
    async with open_state(old) as state:
        await state.keep_pauses([Pause("cpu")])
        assert await state.pauses() == [Pause("cpu")]
        assert [(peer.peer, peer.met) for peer in await remembered(state, 5)] == [(PEER, 1)]


@pytest.mark.parametrize("dumped", [VERSION_1, VERSION_2, VERSION_3], ids=["1", "2", "3"])
def test_new_files_and_older_ones_have_the_same_tables(dumped, tmp_path):
    old = tmp_path / "state.sqlite"
    with closing(sqlite3.connect(old)) as database:
        database.executescript(dumped)

    def tables(path):
        with closing(open_database(path)) as database:
            return {
                table: [tuple(row) for row in database.execute(f"PRAGMA table_info({table})")]
                for (table,) in database.execute("SELECT name FROM sqlite_schema")
            }

    assert tables(old) == tables(tmp_path / "new.sqlite")
    with closing(open_database(old)) as database:
        assert database.execute("PRAGMA auto_vacuum").fetchone()[0] == migrations.INCREMENTAL


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "disk_full"), (errno.EIO, "state_unusable")]
)
def test_where_there_is_no_copy_to_be_had_the_file_stays_as_it_is(
    old, monkeypatch, number, code
):
    def fail(_descriptor):
        raise OSError(number, os.strerror(number))

    before = dump(old)
    monkeypatch.setattr(migrations.os, "fsync", fail)
    with pytest.raises(StoreError) as caught:
        open_database(old)
    assert caught.value.code == code
    assert caught.value.hint
    assert dump(old) == before
    assert not old.with_name("state.sqlite.v1.bak").exists()


def test_a_file_that_a_killed_process_left_damaged_is_refused_at_the_start(tmp_path):
    path = tmp_path / "state.sqlite"
    database = open_database(path)
    database.executemany(
        "INSERT INTO counters VALUES (?, 1)", [(f"{n:0500}",) for n in range(2000)]
    )
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    database.execute("INSERT INTO counters VALUES ('last', 1)")  # in the WAL, which stays
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(os.urandom(100_000))
    copy = tmp_path / "copy.sqlite"
    for end in ("", "-wal"):
        copy.with_name(copy.name + end).write_bytes(
            path.with_name(path.name + end).read_bytes()
        )
    database.close()
    with pytest.raises(StoreError) as caught:
        open_database(copy)
    assert caught.value.code == "state_damaged"
    assert "move it away" in caught.value.hint


def test_the_look_through_a_large_file_that_was_not_closed_takes_a_bounded_time(
    tmp_path, monkeypatch
):
    path = tmp_path / "state.sqlite"
    database = open_database(path)
    with state_file.transaction(database):
        rows = [(f"{n:050}",) for n in range(50_000)]
        database.executemany("INSERT INTO counters VALUES (?, 1)", rows)
    interrupted = []
    monkeypatch.setattr(state_file, "CHECK_LIMIT_S", 0.0)
    monkeypatch.setattr(state_file.log, "warning", interrupted.append, raising=False)
    open_database(path).close()  # beside the other one, whose WAL is there
    assert len(interrupted) == 1
    monkeypatch.setattr(state_file, "CHECK_LIMIT_S", 60.0)
    open_database(path).close()
    assert len(interrupted) == 1
    database.close()


KILLED = """
import os, signal, sqlite3, sys
from functools import partial
from pathlib import Path
from shoal.node import state_file

class Killing(sqlite3.Connection):
    left = 0

    def execute(self, *arguments):
        Killing.left -= 1
        if Killing.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(*arguments)

connect = sqlite3.connect
sqlite3.connect = lambda *a, **k: connect(*a, factory=Killing, **k)
for line in sys.stdin:
    path, kill_at = line.split()
    child = os.fork()
    if not child:
        Killing.left = int(kill_at)
        state_file.open_database(Path(path)).close()
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print("ended", code, flush=True)
    if code == 0:
        break  # with less than so many statements: no later one is there to be killed at
"""


@pytest.mark.parametrize(
    ("dumped", "version", "statements"),
    [(VERSION_1, 1, 40), (VERSION_2, 2, 20), (VERSION_3, 3, 5)],
)
async def test_a_migration_killed_at_any_statement_leaves_the_old_or_the_new(
    tmp_path, dumped, version, statements
):
    paths = [tmp_path / f"{number}.sqlite" for number in range(1, 120)]
    with closing(sqlite3.connect(paths[0])) as database:
        database.executescript(dumped)
    for path in paths[1:]:
        shutil.copyfile(paths[0], path)
    before, after = dump(paths[0]), None
    told = await trio.run_process(
        [sys.executable, "-c", KILLED],
        stdin="".join(f"{path} {n}\n" for n, path in enumerate(paths, 1)).encode(),
        capture_stdout=True,
    )
    lines = [line.split() for line in told.stdout.decode().splitlines()]
    codes = [int(line[1]) for line in lines if line[0] == "ended"]
    assert codes == [-signal.SIGKILL] * (len(codes) - 1) + [0]  # the last one lived to the end
    assert codes.count(-signal.SIGKILL) > statements
    versions = set()
    for path in paths[: len(codes)]:
        found = version_of(path)
        versions.add(found)
        if found == version:
            assert dump(path) == before
        else:
            assert dump(path.with_name(f"{path.name}.v{version}.bak")) == before
        open_database(path).close()
        after = after or dump(path)
        assert dump(path) == after
    assert versions == {version, TABLES_VERSION}
