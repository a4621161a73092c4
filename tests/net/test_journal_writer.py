"""Group commit: writes of many tasks in few transactions, and each as if it were alone."""

import math
import sqlite3
import threading
from contextlib import contextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from shoal.node import journal_writer
from shoal.node.errors import StoreError
from shoal.node.journal_writer import HERE_IN_A_ROW, JournalWriter
from shoal.node.state_file import connect


@pytest.fixture
def database(tmp_path):
    database = connect(tmp_path / "some.sqlite")
    database.execute("CREATE TABLE things (id INTEGER PRIMARY KEY, text TEXT)")
    database.execute("CREATE TABLE parts (thing INTEGER REFERENCES things (id))")
    yield database
    database.close()


@pytest.fixture
def writer(database, tmp_path, monkeypatch):
    monkeypatch.setattr(journal_writer, "SLOW_S", math.inf)  # this machine may have much to do
    return JournalWriter(database, tmp_path / "some.sqlite")


def put(number, text=""):
    def write(database):
        database.execute("INSERT INTO things VALUES (?, ?)", (number, text))
        return number

    return write


def there(database):
    return [row["id"] for row in database.execute("SELECT id FROM things ORDER BY id")]


@contextmanager
def transactions(database):
    """The statements that begin a transaction, as they are run in the block."""
    begun = []
    database.set_trace_callback(lambda text: begun.append(text) if "BEGIN" in text else None)
    try:
        yield begun
    finally:
        database.set_trace_callback(None)


class Held:
    """A write that holds the thread until it is let go."""

    def __init__(self):
        self.go_on = threading.Event()

    def __call__(self, database):
        assert self.go_on.wait(30)
        return put(0)(database)


async def write(writer, work, ended):
    try:
        ended.append(await writer.write(work))
    except Exception as error:  # noqa: BLE001  # for the test to look at
        ended.append(error)


async def test_writes_that_come_while_one_runs_share_a_transaction(writer, database):
    ended, held = [], Held()
    with transactions(database) as begun:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.write, held)
            await wait_all_tasks_blocked()
            for number in range(1, 101):
                nursery.start_soon(write, writer, put(number), ended)
            await wait_all_tasks_blocked()
            held.go_on.set()
    assert len(begun) == 2
    assert sorted(ended) == list(range(1, 101))
    assert there(database) == list(range(101))


async def grouped(writer, works):
    """Run works in one group; gives how each ended, in their order."""
    ended, held = [[] for _ in works], Held()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.write, held)
        await wait_all_tasks_blocked()
        for work, its in zip(works, ended, strict=True):
            nursery.start_soon(write, writer, work, its)
            await wait_all_tasks_blocked()
        held.go_on.set()
    return [its[0] for its in ended]


async def test_an_error_is_the_callers_own_and_what_it_wrote_is_undone(writer, database):
    def half(database):
        put(7)(database)
        raise LookupError("and then not")

    first, second, third = await grouped(writer, [put(1), half, put(2)])
    assert (first, third) == (1, 2)
    assert isinstance(second, LookupError)
    assert there(database) == [0, 1, 2]


async def test_a_row_that_is_there_already_is_one_callers_error_only(writer, database):
    ends = await grouped(writer, [put(1), put(1), put(2)])
    assert [type(end) for end in ends] == [int, sqlite3.IntegrityError, int]
    assert there(database) == [0, 1, 2]


async def test_only_those_fail_for_which_a_full_disk_has_no_room(writer, database):
    pages = database.execute("PRAGMA page_count").fetchone()[0]
    database.execute(f"PRAGMA max_page_count = {pages + 3}")
    ends = await grouped(writer, [put(1), put(2, "x" * 100_000), put(3)])
    assert [type(end) for end in ends] == [int, StoreError, int]
    assert ends[1].code == "disk_full"
    assert there(database) == [0, 1, 3]


async def test_where_the_commit_itself_fails_each_is_done_again_alone(writer, database):
    def dangling(database):
        database.execute("PRAGMA defer_foreign_keys = ON")
        database.execute("INSERT INTO parts VALUES (99)")  # found out at the commit

    with transactions(database) as begun:
        ends = await grouped(writer, [put(1), dangling, put(2)])
    assert [type(end) for end in ends] == [int, sqlite3.IntegrityError, int]
    assert there(database) == [0, 1, 2]
    assert len(begun) == 1 + 1 + 3


async def test_a_write_that_is_cancelled_before_its_turn_leaves_nothing(writer, database):
    held, ended = Held(), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.write, held)
        await wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            nursery.start_soon(write, writer, put(2), ended)
            async with trio.open_nursery() as others:
                others.start_soon(writer.write, put(1))
                await wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught
        held.go_on.set()
    assert ended == [2]
    assert there(database) == [0, 2]


async def test_a_write_that_is_cancelled_while_it_runs_is_waited_for(writer, database):
    held, ended = Held(), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, writer, held, ended)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        held.go_on.set()
    assert ended == [0]
    assert there(database) == [0]


async def test_one_in_a_group_that_runs_is_waited_for_too_and_the_next_group_follows(
    writer, database
):
    first, second, ended = Held(), threading.Event(), []

    def leads(database):
        assert second.wait(30)
        return put(4)(database)

    async def cancelled(scope):
        with scope:
            await write(writer, put(5), ended)

    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.write, first)
        await wait_all_tasks_blocked()
        nursery.start_soon(writer.write, leads)
        await wait_all_tasks_blocked()
        nursery.start_soon(cancelled, scope)
        await wait_all_tasks_blocked()
        first.go_on.set()
        while writer._waiting:  # noqa: ASYNC110  # the thread tells nobody
            await trio.sleep(0.001)
        scope.cancel()
        nursery.start_soon(writer.write, put(6))
        await wait_all_tasks_blocked()
        second.set()
    assert ended == [5]
    assert there(database) == [0, 4, 5, 6]


# --- small writes, in the daemon's own thread ---


def threads(writer):
    """A function that makes a small write, and a list of whether this thread did it."""
    here = []

    async def small(work):
        def noted(database):
            here.append(threading.current_thread() is threading.main_thread())
            return work(database)

        return await writer.write(noted, small=True)

    return small, here


async def test_a_small_write_is_made_in_this_thread_and_on_disk_when_it_returns(
    writer, database, tmp_path
):
    small, here = threads(writer)
    assert await small(put(1)) == 1
    assert here == [True]
    other = connect(tmp_path / "some.sqlite")
    assert there(other) == [1]
    other.close()


async def test_while_others_write_a_small_write_waits_for_the_thread(writer, database):
    small, here = threads(writer)
    held = Held()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.write, held)
        await wait_all_tasks_blocked()
        nursery.start_soon(small, put(1))
        await wait_all_tasks_blocked()
        held.go_on.set()
    assert here == [False]
    assert there(database) == [0, 1]


async def test_an_error_of_a_small_write_is_the_callers_and_undoes_it(writer, database):
    def half(database):
        put(7)(database)
        raise LookupError("and then not")

    def dangling(database):
        database.execute("PRAGMA defer_foreign_keys = ON")
        database.execute("INSERT INTO parts VALUES (99)")  # found out at the commit

    small, here = threads(writer)
    for work, error in ((half, LookupError), (dangling, sqlite3.IntegrityError)):
        with pytest.raises(error):
            await small(work)
    assert await small(put(1)) == 1
    assert here == [True] * 3
    assert there(database) == [1]


async def test_a_full_disk_is_told_of_by_a_small_write_too(writer, database):
    pages = database.execute("PRAGMA page_count").fetchone()[0]
    database.execute(f"PRAGMA max_page_count = {pages + 3}")
    small, _ = threads(writer)
    with pytest.raises(StoreError) as raised:
        await small(put(2, "x" * 100_000))
    assert raised.value.code == "disk_full"
    assert await small(put(3)) == 3


async def test_while_another_process_writes_the_thread_waits_and_not_the_loop(
    writer, database, tmp_path
):
    other = connect(tmp_path / "some.sqlite")
    other.execute("BEGIN IMMEDIATE")
    small, here = threads(writer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(small, put(1))
        await wait_all_tasks_blocked()  # the loop goes on
        other.execute("COMMIT")
        other.close()
    assert here == [False]
    assert there(database) == [1]


async def test_now_and_then_one_goes_through_the_thread_which_moves_the_pages(writer, database):
    small, here = threads(writer)
    for number in range(2 * HERE_IN_A_ROW + 2):
        await small(put(number))
    in_a_row = [True] * HERE_IN_A_ROW + [False]
    assert here == in_a_row * 2


async def test_where_one_was_slow_the_thread_has_the_next_ones(writer, database, monkeypatch):
    monkeypatch.setattr(journal_writer, "SLOW_S", -1.0)
    small, here = threads(writer)
    await small(put(1))
    await small(put(2))
    monkeypatch.setattr(journal_writer, "SLOW_S", math.inf)
    writer._slow_until_s = 0.0
    await small(put(3))
    await small(put(4))
    assert here == [True, False, True, True]
