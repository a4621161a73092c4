"""`Executor` against what the standard library expects of one, where it applies.

In the spirit of CPython's ``test.test_concurrent_futures``: its tests submit Python
functions, so that they cannot be run as they are.
"""

import concurrent.futures
import gc
import threading
import time
import weakref

import numpy as np
import pytest
import trio
from memory_daemon import MemoryDaemon, model_bytes

import shoal
from shoal.compute.convert import convert
from shoal.compute.errors import ProgramError
from shoal.crypto.content import blob_id_of
from shoal.node.api import make_app, serve_api
from shoal.node.client import gathering
from shoal.node.errors import ConfigError, DaemonUnreachableError, JobFailedError

MODEL = model_bytes()
RESULT_LIMIT_S = 60
"""A machine may be busy."""


class Served:
    """A daemon in memory on a thread of its own, that can stop and come back."""

    def __init__(self, socket):
        self.socket = socket
        self.daemon = MemoryDaemon.__new__(MemoryDaemon)
        self.start(new=True)

    def start(self, *, new=False):
        started = threading.Event()

        async def main():
            if new:
                self.daemon.__init__()
            self.daemon.changed = trio.Condition()
            self.token = trio.lowlevel.current_trio_token()
            async with trio.open_nursery() as nursery:
                self.scope = nursery.cancel_scope
                await nursery.start(serve_api, make_app(self.daemon), self.socket)
                started.set()

        self.thread = threading.Thread(target=trio.run, args=(main,), daemon=True)
        self.thread.start()
        assert started.wait(RESULT_LIMIT_S)

    def call(self, work, *arguments):
        return trio.from_thread.run(work, *arguments, trio_token=self.token)

    def stop(self):
        trio.from_thread.run_sync(self.scope.cancel, trio_token=self.token)
        self.thread.join(20)
        assert not self.thread.is_alive()

    def finish(self):
        """End what is held."""
        for job in [*self.daemon.known_jobs]:
            self.call(self.daemon.finish, job)

    def placed(self, count):
        """Wait until the daemon has so many units."""
        deadline = time.monotonic() + 20
        while sum(map(len, self.daemon.known_units.values())) < count:
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.fixture
def served(tmp_path):
    served = Served(tmp_path / "shoal.sock")
    yield served
    served.stop()


@pytest.fixture
def executor(served):
    with shoal.Executor(socket=served.socket, patience_s=20) as executor:
        yield executor
        served.daemon.hold = False
        served.finish()


def one(value):
    return np.full((1, 4), value, np.float32)


# --- submit, results, exceptions ---


def test_a_submitted_unit_gives_its_outputs_by_name(executor):
    future = executor.submit(MODEL, one(1))
    assert isinstance(executor, concurrent.futures.Executor)
    assert isinstance(future, concurrent.futures.Future)
    np.testing.assert_array_equal(future.result(RESULT_LIMIT_S)["dir/y"], one(2))
    assert future.exception() is None
    assert (future.done(), future.running(), future.cancelled()) == (True, False, False)
    assert future.cancel() is False


def test_inputs_go_by_place_or_by_name_and_twice_is_an_error(executor):
    np.testing.assert_array_equal(
        executor.submit(MODEL, x=one(4)).result(RESULT_LIMIT_S)["dir/y"], one(5)
    )
    for wrong in ((one(1), one(1)), ()):
        with pytest.raises((ConfigError, ProgramError)):
            executor.submit(MODEL, *wrong)
    with pytest.raises(ConfigError, match="given twice"):
        executor.submit(MODEL, one(1), x=one(1))
    with pytest.raises(ProgramError, match="'x' is a"):
        executor.submit(MODEL, np.zeros((1, 5), np.float32))


def test_a_python_function_is_no_program(executor):
    with pytest.raises(ProgramError, match="function is no program") as caught:
        executor.submit(lambda x: x, one(1))
    assert "shoal.remote" in caught.value.hint


def test_every_kind_of_program_can_be_submitted(executor, tmp_path):
    (tmp_path / "m.onnx").write_bytes(MODEL)
    program = convert(MODEL)
    kinds = [MODEL, tmp_path / "m.onnx", str(tmp_path / "m.onnx"), program, program.program_id]
    futures = [executor.submit(kind, one(1)) for kind in kinds]
    assert all(future.result(RESULT_LIMIT_S)["dir/y"][0, 0] == 2 for future in futures)
    assert len({future.job_id for future in futures}) == 1  # one program, one open job


def test_an_array_may_change_once_it_is_submitted(executor):
    array = one(1)
    future = executor.submit(MODEL, array)
    array[:] = 9
    assert future.result(RESULT_LIMIT_S)["dir/y"][0, 0] == 2


def test_many_submits_go_together_and_each_future_has_its_own_result(executor, served):
    futures = [executor.submit(MODEL, one(value)) for value in range(2000)]
    assert [f.result(RESULT_LIMIT_S)["dir/y"][0, 0] for f in futures] == [
        v + 1 for v in range(2000)
    ]
    assert [f.unit for f in futures] == [*range(2000)]
    assert len(served.daemon.writes) < 400  # gathered, and not one by one
    assert max(served.daemon.writes) > 1


def test_a_future_knows_its_job_and_its_receipt(executor, served):
    served.daemon.hold = True
    future = executor.submit(MODEL, one(1))
    assert future.job_id in served.daemon.known_jobs
    with pytest.raises(TimeoutError):
        future.receipt(0.01)
    served.daemon.signed = blob_id_of(b"envelope")
    served.finish()
    assert future.result(RESULT_LIMIT_S).unit == future.unit == 0
    assert future.receipt() == b"envelope"


def test_a_failed_unit_raises_where_its_result_is_asked_for(served):
    with shoal.Executor(socket=served.socket, label="fail") as executor:
        future = executor.submit(MODEL, one(1))
        with pytest.raises(JobFailedError, match="NaN at node 17") as caught:
            future.result(RESULT_LIMIT_S)
        assert caught.value.code == "nan"
        assert future.exception() is caught.value


def test_a_done_callback_is_called_once_with_the_future(executor):
    called = []
    done = threading.Event()
    future = executor.submit(MODEL, one(1))
    future.add_done_callback(lambda it: (called.append(it), done.set()))
    assert done.wait(RESULT_LIMIT_S)
    assert called == [future]


# --- waiting: CPython's test_wait and test_as_completed ---


def test_wait_returns_at_the_first_that_is_done_and_at_all(executor, served):
    served.daemon.hold = True
    futures = [executor.submit(MODEL, one(value)) for value in range(3)]
    assert futures[2].cancel()
    first = concurrent.futures.wait(futures, 20, concurrent.futures.FIRST_COMPLETED)
    assert (first.done, first.not_done) == ({futures[2]}, set(futures[:2]))
    assert concurrent.futures.wait(futures, 0.05).not_done == set(futures[:2])
    served.placed(2)
    served.finish()
    assert concurrent.futures.wait(futures, 20).not_done == set()


def test_wait_returns_at_the_first_exception(served):
    with shoal.Executor(socket=served.socket, label="fail") as executor:
        futures = [executor.submit(MODEL, one(value)) for value in range(3)]
        found = concurrent.futures.wait(futures, 20, concurrent.futures.FIRST_EXCEPTION)
        assert found.done


def test_as_completed_gives_each_future_once_and_times_out(executor, served):
    futures = {executor.submit(MODEL, one(value)) for value in range(5)}
    assert {*concurrent.futures.as_completed([*futures, *futures], 20)} == futures
    served.daemon.hold = True
    held = executor.submit(MODEL, one(1))
    with pytest.raises(TimeoutError):
        list(concurrent.futures.as_completed([held], 0.05))


def test_a_result_that_is_not_there_in_time_is_a_time_out(executor, served):
    served.daemon.hold = True
    future = executor.submit(MODEL, one(1))
    with pytest.raises(TimeoutError):
        future.result(0.05)
    with pytest.raises(TimeoutError):
        future.exception(0.05)


# --- map: CPython's ExecutorTest ---


def test_map_gives_results_in_order_and_stops_at_the_shortest(executor):
    found = executor.map(MODEL, (one(value) for value in range(10)))
    assert [outputs["dir/y"][0, 0] for outputs in found] == [v + 1 for v in range(10)]
    with pytest.raises(ValueError, match="chunksize"):
        executor.map(MODEL, [one(1)], chunksize=0)
    assert list(executor.map(MODEL, [], chunksize=3)) == []


def test_map_raises_where_a_unit_failed(served):
    with shoal.Executor(socket=served.socket, label="fail") as executor:
        found = executor.map(MODEL, [one(1), one(2)])
        with pytest.raises(JobFailedError):
            next(found)


def test_map_times_out_and_cancels_what_nobody_runs(executor, served):
    served.daemon.hold = True
    found = executor.map(MODEL, [one(value) for value in range(20)], timeout=0.1)
    with pytest.raises(TimeoutError):
        next(found)
    states = {unit.state for units in served.daemon.known_units.values() for unit in units}
    assert states <= {"cancelled"}  # none where the time was over before any was sent


# --- cancel ---


def test_cancel_takes_back_what_was_not_sent(served):
    with shoal.Executor(socket=served.socket, flush_s=30) as executor:
        future = executor.submit(MODEL, one(1))
        assert future.cancel()
        assert (future.cancelled(), future.done()) == (True, True)
        assert future.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            future.result()
        with pytest.raises(JobFailedError) as caught:
            _ = future.job_id
        assert caught.value.code == "not_handed_over"
    assert served.daemon.known_jobs == {}


def test_cancel_cancels_a_unit_that_waits_in_the_daemon_and_leaves_the_others(executor, served):
    served.daemon.hold = True
    first, second = executor.submit(MODEL, one(1)), executor.submit(MODEL, one(2))
    assert first.job_id == second.job_id
    assert first.cancel()
    (units,) = served.daemon.known_units.values()
    assert [unit.state for unit in units] == ["cancelled", "queued"]
    served.finish()
    assert second.result(RESULT_LIMIT_S)["dir/y"][0, 0] == 3
    assert not second.cancel()


def test_a_job_that_is_cancelled_from_outside_cancels_its_futures(executor, served):
    served.daemon.hold = True
    future = executor.submit(MODEL, one(1))
    served.call(served.daemon.cancel, future.job_id)
    with pytest.raises((concurrent.futures.CancelledError, JobFailedError)):
        future.result(RESULT_LIMIT_S)
    served.daemon.hold = False
    again = executor.submit(MODEL, one(2))  # in another job
    assert again.result(RESULT_LIMIT_S)["dir/y"][0, 0] == 3
    assert again.job_id != future.job_id


def test_a_job_that_is_sealed_from_outside_keeps_its_futures(executor, served):
    served.daemon.hold = True
    first = executor.submit(MODEL, one(1))
    served.call(served.daemon.seal, first.job_id)
    second = executor.submit(MODEL, one(2))
    assert second.job_id != first.job_id
    served.daemon.hold = False
    served.finish()
    assert [f.result(RESULT_LIMIT_S)["dir/y"][0, 0] for f in (first, second)] == [2, 3]


# --- shutdown: CPython's test_shutdown ---


def test_nothing_is_taken_after_shutdown(served):
    executor = shoal.Executor(socket=served.socket)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(MODEL, one(1))
    executor.shutdown()  # twice is once


def test_shutdown_waits_for_what_was_submitted_and_seals_the_job(served):
    executor = shoal.Executor(socket=served.socket)
    futures = [executor.submit(MODEL, one(value)) for value in range(50)]
    executor.shutdown()
    assert all(future.done() for future in futures)
    (job,) = served.daemon.known_jobs.values()
    assert (job.open, job.state) == (False, "done")


def test_shutdown_without_waiting_returns_at_once_and_futures_come_all_the_same(served):
    served.daemon.hold = True
    executor = shoal.Executor(socket=served.socket)
    future = executor.submit(MODEL, one(1))
    executor.shutdown(wait=False)
    assert not future.done()
    served.placed(1)
    served.daemon.hold = False
    deadline = time.monotonic() + 20
    while not future.done():
        served.finish()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert future.result()["dir/y"][0, 0] == 2


def test_shutdown_can_cancel_what_nobody_runs(served):
    served.daemon.hold = True
    executor = shoal.Executor(socket=served.socket)
    futures = [executor.submit(MODEL, one(value)) for value in range(20)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in futures)
    served.daemon.hold = False
    served.finish()
    executor.shutdown()  # else its threads may look for the daemon in the next test still


def test_an_executor_that_is_dropped_ends_its_threads(served):
    others = set(threading.enumerate())  # some of tests before may look for their daemon still
    executor = shoal.Executor(socket=served.socket)
    future = executor.submit(MODEL, one(1))
    assert future.result(RESULT_LIMIT_S)
    own = [t for t in set(threading.enumerate()) - others if t.name.startswith("shoal-")]
    assert own
    reference = weakref.ref(executor)
    del executor
    gc.collect()
    assert reference() is None
    deadline = time.monotonic() + 20
    while any(thread.is_alive() for thread in own):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_no_result_is_kept_once_its_future_is_gone(executor):
    future = executor.submit(MODEL, one(1))
    kept = weakref.ref(future)
    future.result(RESULT_LIMIT_S)
    del future
    for _ in range(100):
        gc.collect()
        if kept() is None:
            break
        time.sleep(0.02)
    assert kept() is None


# --- the daemon ---


def test_futures_go_on_where_the_daemon_restarts(executor, served):
    served.daemon.hold = True
    before = [executor.submit(MODEL, one(value)) for value in range(5)]
    assert before[-1].job_id
    served.stop()
    during = executor.submit(MODEL, one(7))
    time.sleep(0.3)
    served.start()
    served.placed(6)
    served.finish()
    assert [f.result(RESULT_LIMIT_S)["dir/y"][0, 0] for f in (*before, during)] == [
        1,
        2,
        3,
        4,
        5,
        8,
    ]
    assert len({f.job_id for f in (*before, during)}) == 1


def test_a_daemon_that_stays_away_fails_its_futures(tmp_path):
    served = Served(tmp_path / "shoal.sock")
    served.daemon.hold = True
    executor = shoal.Executor(socket=served.socket, patience_s=0.2)
    future = executor.submit(MODEL, one(1))
    assert future.job_id
    served.stop()
    with pytest.raises(DaemonUnreachableError):
        future.result(RESULT_LIMIT_S)
    later = executor.submit(MODEL, one(2))
    with pytest.raises(DaemonUnreachableError):
        later.result(RESULT_LIMIT_S)
    executor.shutdown()


def test_an_answer_that_was_lost_adds_no_unit_twice(executor, served, monkeypatch):
    added = served.daemon.add_units
    lost = []

    async def lose_the_first_answer(job_id, units, at):
        job = await added(job_id, units, at)
        if not lost:
            lost.append(job)
            raise trio.BrokenResourceError
        return job

    monkeypatch.setattr(served.daemon, "add_units", lose_the_first_answer)
    first = executor.submit(MODEL, one(1))
    concurrent.futures.wait([first], 20)
    assert executor.submit(MODEL, one(2)).result(RESULT_LIMIT_S)["dir/y"][0, 0] == 3
    assert first.exception() or first.result()["dir/y"][0, 0] == 2
    assert sum(map(len, served.daemon.known_units.values())) == 2


def test_an_idle_job_is_sealed_and_the_next_unit_opens_another(executor, served, monkeypatch):
    monkeypatch.setattr(gathering, "IDLE_S", 0.05)
    first = executor.submit(MODEL, one(1))
    assert first.result(RESULT_LIMIT_S)
    deadline = time.monotonic() + 20
    while served.daemon.known_jobs[first.job_id].open:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    second = executor.submit(MODEL, one(2))
    assert second.result(RESULT_LIMIT_S)
    assert second.job_id != first.job_id


def test_a_job_gets_no_more_units_than_its_bound(executor, monkeypatch):
    monkeypatch.setattr(gathering, "UNITS_PER_JOB", 3)
    jobs = []
    for value in range(8):
        future = executor.submit(MODEL, one(value))
        assert future.result(RESULT_LIMIT_S)
        jobs.append(future.job_id)
    assert [jobs.count(job) for job in dict.fromkeys(jobs)] == [3, 3, 2]
