"""Real worker processes: hostile units end with an error, and the next unit runs."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import trio
from onnx import TensorProto, numpy_helper, parser

from shoal.compute import device_worker, frames, worker_process
from shoal.compute.convert import convert
from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.executors.base import Evidence, NumericClass
from shoal.compute.frames import UnitLimits
from shoal.compute.rooms import ROOM_IDLE_LIMIT_S, SWEEP_INTERVAL_S
from shoal.compute.starting import Room
from shoal.compute.supervisor import open_worker
from shoal.compute.tensor import from_blob, to_blob
from shoal.compute.worker_process import WorkerProcess

LIMITS = UnitLimits(time_s=20.0, memory_bytes=1 << 30, output_bytes=1 << 20)
X = to_blob(np.arange(3, dtype=np.float32))
ANN, BOB = "ann", "bob"


NO_EXACT = """
import os
from shoal.compute.worker import Worker, main

class WithoutExact(Worker):
    def __init__(self, start):
        if start.exact:
            os._exit(3)
        super().__init__(start)

main(WithoutExact)
"""


def program_of(text, precision=None):
    header = '<ir_version: 8, opset_import: ["" : 18]>'
    return convert(parser.parse_model(header + text).SerializeToString(), precision)


DOUBLE = program_of("g (float[n] x) => (float[n] y) { y = Add(x, x) }")
ENDLESS = program_of(
    """g (float[n] x) => (float[n] y) {
        t = Constant<value = bool {1}>()
        y = Loop <body = b (int64 i, bool c, float[n] v) => (bool d, float[n] w) {
            d = Identity(c) w = Neg(v) }> ("", t, x) }"""
)
HUGE = program_of("g (int64[1] size) => (float[n] y) { y = ConstantOfShape(size) }")
HUGE_CONSTANT = program_of(
    """g (int64[1] size) => (float[n] y) {
        s = Constant<value = int64[1] {17179869184}>() y = ConstantOfShape(s) }"""
)


async def run(worker, program, inputs, limits=LIMITS, requester=ANN):
    async def fetch_blobs():
        return program.blobs

    return await worker.run(requester, program.program_id, fetch_blobs, inputs, limits)


async def check_that_the_next_unit_runs(worker):
    execution = await run(worker, DOUBLE, {"x": X})
    assert from_blob(execution.outputs["y"]).tolist() == [0.0, 2.0, 4.0]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
async def worker():
    async with open_worker(threads=1) as opened:
        yield opened


async def test_a_unit_runs_and_says_on_what(worker):
    assert not worker.pids  # nothing starts before it is needed
    assert all(probe.evidence is Evidence.EXECUTED for probe in await worker.probe())
    execution = await run(worker, DOUBLE, {"x": X})
    assert execution.outputs == {"y": to_blob(np.array([0, 2, 4], np.float32))}
    assert execution.runtime.startswith("onnxruntime ")
    assert 0 < execution.compute_s < 1


async def test_a_program_s_blobs_are_sent_once(worker):
    fetched = []

    async def fetch_blobs():
        fetched.append(1)
        return DOUBLE.blobs

    for _ in range(3):
        await worker.run(ANN, DOUBLE.program_id, fetch_blobs, {"x": X}, LIMITS)
    assert worker.holds(ANN, DOUBLE.program_id)
    assert len(fetched) == 1


async def test_programs_beyond_what_a_worker_keeps_are_let_go_oldest_first():
    weight = np.zeros((64, 64), np.float32)
    programs = []
    for index in range(3):
        model = parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 18]>'
            "g (float[n, 64] x) => (float[n, 64] y) { y = MatMul(x, w) }"
        )
        model.graph.initializer.append(numpy_helper.from_array(weight + index, "w"))
        programs.append(convert(model.SerializeToString()))
    inputs = {"x": to_blob(weight)}
    async with open_worker(threads=1, cache_bytes=2 * 18_000) as worker:
        for index in (0, 1, 0, 2):
            await run(worker, programs[index], inputs)
        assert [worker.holds(ANN, p.program_id) for p in programs] == [True, False, True]
        await run(worker, programs[1], inputs)


async def test_a_worker_converts_a_model_as_a_client_does(worker):
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 15]>'
        "g (float[n] x) => (float y) { y = ReduceMax<axes=[0], keepdims=0>(x) }"
    )
    data = model.SerializeToString()
    converted = await worker.convert(ANN, data)
    assert (converted.program_id, converted.blobs) == (
        (expected := convert(data)).program_id,
        expected.blobs,
    )


async def test_an_endless_loop_ends_at_its_time_limit(worker):
    started = time.monotonic()
    with pytest.raises(ComputeError) as ended:
        await run(worker, ENDLESS, {"x": X}, UnitLimits(0.5, 1 << 30, 1 << 20))
    assert ended.value.code == "time_limit"
    assert "0.5 s" in ended.value.message
    assert time.monotonic() - started < 10
    await check_that_the_next_unit_runs(worker)


@pytest.mark.parametrize("program", [HUGE, HUGE_CONSTANT])
@pytest.mark.parametrize("memory_bytes", [0, 1 << 30])
async def test_64_gb_meet_the_memory_limit_and_name_the_operator(worker, program, memory_bytes):
    size = to_blob(np.array([1 << 34]))
    with pytest.raises(ComputeError) as ended:
        await run(worker, program, {"size": size}, UnitLimits(20.0, memory_bytes, 1 << 20))
    assert (ended.value.code, ended.value.operator) == ("memory_limit", "ConstantOfShape")
    await check_that_the_next_unit_runs(worker)


async def test_outputs_over_their_limit_are_not_sent(worker):
    size = to_blob(np.array([1 << 20]))
    with pytest.raises(ComputeError) as ended:
        await run(worker, HUGE, {"size": size})
    assert ended.value.code == "output_limit"
    await check_that_the_next_unit_runs(worker)


@pytest.mark.parametrize("data", [b"", b"\xff" * 1000, b"\x08\x08"])
async def test_bytes_that_are_no_model_are_refused_and_the_worker_stays(worker, data):
    pid = (await worker.probe(), worker.pids[""])[1]
    with pytest.raises(ProgramError) as refused:
        await worker.convert(ANN, data)
    assert refused.value.code in {"empty_model", "malformed_model"}
    await check_that_the_next_unit_runs(worker)
    assert worker.pids[ANN] == pid


async def test_a_peer_s_graph_is_checked_before_it_is_loaded(worker):
    evil = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>'
        "g (float[n] x) => (float[n] y) { y = Add(x, w) }"
    )
    tensor = evil.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    blobs = {**DOUBLE.blobs, DOUBLE.manifest.graph: evil.SerializeToString()}

    async def fetch_blobs():
        return blobs

    with pytest.raises(ProgramError) as refused:
        await worker.run(ANN, DOUBLE.program_id, fetch_blobs, {"x": X}, LIMITS)
    assert refused.value.code == "external_data"
    assert "../../etc/passwd" in refused.value.message
    await check_that_the_next_unit_runs(worker)


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ({}, "missing_input"),
        ({"x": X, "z": X}, "unknown_input"),
        ({"x": to_blob(np.zeros(3))}, "wrong_dtype"),
        ({"x": to_blob(np.zeros((1, 3), np.float32))}, "wrong_shape"),
        ({"x": b"junk"}, "bad_tensor"),
    ],
)
async def test_wrong_inputs_are_refused_in_the_worker_too(worker, inputs, code):
    with pytest.raises(ProgramError) as refused:
        await run(worker, DOUBLE, inputs)
    assert refused.value.code == code
    await check_that_the_next_unit_runs(worker)


async def test_a_worker_killed_in_the_middle_fails_its_unit_only(worker, nursery):
    await worker.probe()
    pid = worker.pids[""]

    async def kill_when_busy():
        while not worker.holds(ANN, ENDLESS.program_id):  # noqa: ASYNC110  # no event tells it
            await trio.sleep(0.01)
        os.kill(pid, signal.SIGKILL)

    nursery.start_soon(kill_when_busy)
    with pytest.raises(ComputeError) as ended:
        await run(worker, ENDLESS, {"x": X})
    assert ended.value.code == "worker_died"
    assert "SIGKILL" in ended.value.message
    await check_that_the_next_unit_runs(worker)
    assert worker.pids[ANN] != pid


async def test_a_worker_that_died_between_two_units_is_replaced_unnoticed(worker):
    await check_that_the_next_unit_runs(worker)
    os.kill(worker.pids[ANN], signal.SIGKILL)
    with trio.fail_after(30):
        while ANN in worker.pids:  # noqa: ASYNC110  # no event tells it
            await trio.sleep(0.01)
    await check_that_the_next_unit_runs(worker)


async def test_a_worker_that_hangs_is_ended_after_its_limit_and_the_grace(worker):
    await check_that_the_next_unit_runs(worker)
    pid = worker.pids[ANN]
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(ComputeError) as ended:
        await run(worker, DOUBLE, {"x": X}, UnitLimits(0.1, 1 << 30, 1 << 20))
    assert ended.value.code == "time_limit"
    assert not is_running(pid)
    await check_that_the_next_unit_runs(worker)


async def test_cancelling_a_run_leaves_no_process_behind(worker):
    await worker.probe()
    pid = worker.pids[""]
    with trio.move_on_after(0.3) as scope:
        await run(worker, ENDLESS, {"x": X})
    assert scope.cancelled_caught
    assert not is_running(pid)
    await check_that_the_next_unit_runs(worker)


async def test_units_of_one_worker_run_one_after_another(worker):
    done = []

    async def one(index):
        await run(worker, DOUBLE, {"x": X})
        done.append(index)

    async with trio.open_nursery() as units:
        for index in range(5):
            units.start_soon(one, index)
    assert sorted(done) == list(range(5))


async def test_no_worker_is_left_when_its_block_is_left():
    async with open_worker(threads=1) as worker:
        await worker.probe()
        pid = worker.pids[""]
        assert is_running(pid)
    assert not is_running(pid)


@pytest.mark.parametrize(
    "said",
    [
        b"\x00" * 64,
        b"\xff" * 64,
        b"".join(frames.encode_answer(frames.Converted("x", ()))),
        b"".join(frames.encode_answer(frames.Ran(("y",), 1.0, ""), [])),
        b"".join(frames.encode_answer(frames.Ran(("y",), 1.0, ""), [b"too much" * (1 << 20)]))[
            :96
        ],
        b"".join(  # more than was lent, said to lie there
            frames.encode_answer(
                frames.Ran(("y",), 1.0, ""), [bytes(LIMITS.output_bytes + 1)], inline=False
            )
        ),
    ],
)
async def test_a_worker_that_answers_nonsense_is_ended(worker, monkeypatch, said):
    await check_that_the_next_unit_runs(worker)
    pid = worker.pids[ANN]
    # What a unit that has taken over its worker could write; the worker itself stands still.
    os.kill(pid, signal.SIGSTOP)
    ours, theirs = socket.socketpair()
    theirs.sendall(said)
    monkeypatch.setattr(
        worker._rooms.free_room(ANN, "").process,
        "_stream",
        trio.SocketStream(trio.socket.from_stdlib_socket(ours)),
    )
    with theirs, pytest.raises(ComputeError) as ended:
        await run(worker, DOUBLE, {"x": X})
    assert ended.value.code == "worker_nonsense"
    assert not is_running(pid)
    await check_that_the_next_unit_runs(worker)


async def test_a_worker_that_cannot_have_the_class_exact_goes_on_without_it(monkeypatch):
    async def nothing_to_compile():
        return

    monkeypatch.setattr(device_worker, "compile_kernels", nothing_to_compile)
    async with open_worker(threads=1, entry=("-c", NO_EXACT)) as worker:
        await worker.probe()
        with pytest.raises(ComputeError) as error:
            await worker.enable_exact()
        assert error.value.code == "worker_start"
        assert [p.numeric_class for p in await worker.probe()] == [NumericClass.FP32]


async def test_a_compiler_with_much_to_say_is_heard_to_its_end(monkeypatch, tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\nhead -c 300000 /dev/zero >&2\necho no room >&2\nexit 1\n")
    compiler.chmod(0o700)
    monkeypatch.setattr(worker_process.sys, "executable", str(compiler))
    with trio.fail_after(60), pytest.raises(ComputeError) as error:
        await worker_process.compile_kernels()
    assert error.value.code == "kernels_missing"
    assert error.value.message.endswith("no room")


def test_a_worker_does_not_outlive_a_killed_daemon():
    script = (
        "import trio\n"
        "from shoal.compute.supervisor import open_worker\n"
        "async def main():\n"
        "    async with open_worker(threads=1) as worker:\n"
        "        await worker.probe()\n"
        "        print(worker.pids[''], flush=True)\n"
        "        await trio.sleep_forever()\n"
        "trio.run(main)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as daemon:
        pid = int(daemon.stdout.readline())
        assert is_running(pid)
        daemon.kill()
    deadline = time.monotonic() + 5
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def test_a_worker_gets_neither_the_daemon_s_environment_nor_its_files(
    monkeypatch, tmp_path
):
    monkeypatch.setenv("SHOAL_SECRET", "hush")
    with (tmp_path / "private").open("w") as private:
        async with open_worker(threads=1) as worker:
            await worker.probe()
            here = Path(f"/proc/{worker.pids['']}")
            assert b"hush" not in (here / "environ").read_bytes()
            opened = [fd.readlink().name for fd in (here / "fd").iterdir()]
    assert opened
    assert Path(private.name).name not in opened


async def test_no_process_sees_two_requesters(worker):
    await run(worker, DOUBLE, {"x": X}, requester=ANN)
    await run(worker, DOUBLE, {"x": X}, requester=BOB)
    await run(worker, DOUBLE, {"x": X}, requester=ANN)
    assert worker.pids[ANN] != worker.pids[BOB]
    assert worker.holds(ANN, DOUBLE.program_id)
    assert not worker.holds("carol", DOUBLE.program_id)


async def test_the_next_requester_gets_the_spare_and_another_one_is_started(worker):
    await worker.probe()
    first = worker.pids[""]
    await run(worker, DOUBLE, {"x": X}, requester=ANN)
    assert worker.pids[ANN] == first
    await worker.probe()  # waits until there is a spare again
    second = worker.pids[""]
    await run(worker, DOUBLE, {"x": X}, requester=BOB)
    assert worker.pids[BOB] == second


async def test_the_requester_who_was_longest_away_makes_room(worker):
    for requester in ("1", "2", "3", "1", "4"):
        await run(worker, DOUBLE, {"x": X}, requester=requester)
    assert worker.pids.keys() - {""} == {"3", "1", "4"}


async def test_a_process_whose_requester_stays_away_is_ended(autojump_clock, worker):
    worker._rooms._rooms.append(room := await _room_of_a_process())
    await trio.sleep(ROOM_IDLE_LIMIT_S - SWEEP_INTERVAL_S)
    assert ANN in worker.pids
    await trio.sleep(2 * SWEEP_INTERVAL_S)
    assert not worker.pids
    assert room.process.ended


async def _room_of_a_process():
    room = Room(WorkerProcess(), (), ANN)
    room.used_at_s = trio.current_time()
    return room


async def test_large_tensors_go_and_come_by_memory_that_both_see(worker):
    x = np.arange(100_000, dtype=np.float32)
    limits = UnitLimits(20.0, 1 << 30, 1 << 30)
    execution = await run(worker, DOUBLE, {"x": to_blob(x)}, limits)
    assert execution.outputs == {"y": to_blob(2 * x)}
    here = Path(f"/proc/{worker.pids[ANN]}")
    assert "memfd" not in (here / "maps").read_text()  # nothing of it is left behind
    assert not [fd for fd in (here / "fd").iterdir() if "memfd" in fd.readlink().name]
    ours = Path("/proc/self/fd")
    assert not [fd for fd in ours.iterdir() if "memfd" in str(fd.resolve())]  # noqa: ASYNC240
