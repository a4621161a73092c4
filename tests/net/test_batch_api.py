"""Many units through the local API: streams in, pages out, and clients that hold little."""

import inspect
import itertools
import json
from contextlib import contextmanager

import anyio
import anyio.lowlevel
import httpx
import msgpack
import msgspec
import numpy as np
import pytest
import safetensors.numpy
import trio
import trio.testing
from memory_daemon import MISSING, MemoryDaemon, model_bytes, rows

from shoal.compute.errors import ProgramError
from shoal.compute.tensor import to_blob
from shoal.crypto.content import blob_id_of
from shoal.node.api import make_app, serve_api
from shoal.node.api.results import ANSWER_LIMIT_BYTES
from shoal.node.api.units import UNIT_LIMIT_BYTES, UNITS_PER_WRITE
from shoal.node.client import AsyncClient, Client
from shoal.node.client.lines import LineBrokenError, Lines
from shoal.node.client.tensors import PIECE_BYTES
from shoal.node.errors import DaemonError, DaemonUnreachableError, JobFailedError
from shoal.node.records import JobState, UnitState, new_job_id


@pytest.fixture
def socket_path(tmp_path):
    return tmp_path / "run" / "shoal.sock"


@pytest.fixture
async def daemon(nursery, socket_path):
    daemon = MemoryDaemon()
    await nursery.start(serve_api, make_app(daemon), socket_path)
    return daemon


@pytest.fixture
async def program(daemon):
    return await daemon.convert_program(model_bytes(), None)


async def blocking(work):
    with trio.fail_after(30):
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True)


def packed(*values):
    return b"".join(map(msgpack.packb, values))


def unit(count=1):
    return {"x": to_blob(rows(count))}


async def curl(socket_path, path, *arguments, body=b""):
    """Give curl's status and body."""
    command = ["curl", "-sS", "--unix-socket", socket_path, "-w", "\n%{http_code}"]
    data = ["--data-binary", "@-"] if body else []
    done = await trio.run_process(
        [*command, *data, *arguments, f"http://shoal{path}"], stdin=body, capture_stdout=True
    )
    answered, _, code = done.stdout.rpartition(b"\n")
    return int(code), answered


MSGPACK = ("-H", "content-type: application/msgpack")


async def open_job(socket_path, program):
    job = json.dumps({"policy": "map", "program": program, "units": [], "open": True})
    code, body = await curl(socket_path, "/v1/jobs", body=job.encode())
    assert code == 201, body
    return json.loads(body)["job"]


# --- in ---


async def test_units_are_added_as_json_and_as_msgpack_until_the_job_is_sealed(
    daemon, socket_path, program
):
    job = await open_job(socket_path, program)
    assert (job["state"], job["open"], job["units_total"]) == ("running", True, 0)
    tensor = await daemon.blobs.put_bytes(to_blob(rows(2)))
    units = f"/v1/jobs/{job['id']}/units"
    code, _ = await curl(socket_path, units, body=json.dumps([{"x": tensor}] * 2).encode())
    assert code == 201
    body = packed(unit(), {"x": tensor})
    code, answered = await curl(socket_path, units, *MSGPACK, body=body)
    assert (code, json.loads(answered)["job"]["units_total"]) == (201, 4)
    assert daemon.known_jobs[job["id"]].state is JobState.RUNNING
    code, answered = await curl(socket_path, f"/v1/jobs/{job['id']}/seal", "-X", "POST")
    assert code == 200
    assert json.loads(answered)["job"]["state"] == "done"
    code, answered = await curl(socket_path, units, *MSGPACK, body=packed(unit()))
    assert (code, json.loads(answered)["error"]["code"]) == (409, "job_sealed")


async def test_a_long_stream_is_written_piece_by_piece(daemon, socket_path, program):
    job = await open_job(socket_path, program)
    body = packed(*[unit()] * (2 * UNITS_PER_WRITE + 3))
    code, _ = await curl(socket_path, f"/v1/jobs/{job['id']}/units", *MSGPACK, body=body)
    assert code == 201
    assert daemon.writes == [0, UNITS_PER_WRITE, UNITS_PER_WRITE, 3]


async def test_a_job_in_one_request_is_written_at_once(daemon, socket_path, program):
    spec = {"policy": "map", "program": program, "label": "whole"}
    body = packed(spec, unit(1), unit(2))
    code, answered = await curl(socket_path, "/v1/jobs", *MSGPACK, body=body)
    assert (code, json.loads(answered)["job"]["state"]) == (201, "done")
    assert daemon.writes == [2]


async def test_a_long_job_in_one_request_is_sealed_at_its_end(daemon, socket_path, program):
    spec = {"policy": "map", "program": program}
    body = packed(spec, *[unit()] * (UNITS_PER_WRITE + 1))
    code, answered = await curl(socket_path, "/v1/jobs", *MSGPACK, body=body)
    job = json.loads(answered)["job"]
    assert (code, job["state"], job["open"]) == (201, "done", False)
    assert daemon.writes == [UNITS_PER_WRITE, 1]


async def test_a_long_job_in_one_request_is_cancelled_where_a_unit_is_in_error(
    daemon, socket_path, program
):
    spec = {"policy": "map", "program": program}
    body = packed(spec, *[unit()] * UNITS_PER_WRITE, {"z": b""})
    code, answered = await curl(socket_path, "/v1/jobs", *MSGPACK, body=body)
    assert code == 400
    assert f"unit {UNITS_PER_WRITE}" in json.loads(answered)["error"]["message"]
    (job,) = daemon.known_jobs.values()
    assert job.state is JobState.CANCELLED


async def test_half_a_stream_leaves_an_open_job_with_whole_units_only(
    daemon, socket_path, program
):
    job = await open_job(socket_path, program)
    body = packed(*[unit()] * UNITS_PER_WRITE) + packed(unit())[:-10]
    head = (
        f"POST /v1/jobs/{job['id']}/units HTTP/1.1\r\nhost: shoal\r\n"
        f"content-type: application/msgpack\r\ncontent-length: {len(body) + 1000}\r\n\r\n"
    )
    async with await trio.open_unix_socket(socket_path) as stream:
        await stream.send_all(head.encode() + body)
        with trio.fail_after(60):
            while daemon.writes != [0, UNITS_PER_WRITE]:
                await trio.testing.wait_all_tasks_blocked(0.01)
    await trio.testing.wait_all_tasks_blocked(0.05)
    left = daemon.known_jobs[job["id"]]
    assert (left.units_total, left.open, left.state) == (UNITS_PER_WRITE, True, "running")
    code, _ = await curl(socket_path, f"/v1/jobs/{job['id']}/seal", "-X", "POST")
    assert code == 200


async def test_a_request_that_is_sent_again_adds_nothing_twice(daemon, socket_path, program):
    job = await open_job(socket_path, program)
    path = f"/v1/jobs/{job['id']}/units?at=0"
    assert (await curl(socket_path, path, *MSGPACK, body=packed(unit())))[0] == 201
    code, answered = await curl(socket_path, path, *MSGPACK, body=packed(unit()))
    assert (code, json.loads(answered)["error"]["code"]) == (409, "wrong_place")
    assert daemon.known_jobs[job["id"]].units_total == 1


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"\xc1", "bad_units"),
        (packed([1]), "bad_units"),
        (packed({"x": 1.5}), "bad_units"),
        (packed({1: b"x"}), "bad_units"),
        (packed({"x" * 2000: b"x"}), "bad_units"),
        (packed({"x": "no id"}), "bad_blob_id"),
        (packed({"x": {"job": "j", "unit": -1, "output": "y"}}), "bad_units"),
        (packed({"x": {"job": "j", "unit": 1}}), "bad_units"),
        (packed({"x": msgpack.ExtType(1, b"")}), "bad_units"),
        (packed(unit())[:-1], "bad_units"),
        (packed({"x": {"a": {"b": {"c": 1}}}}), "bad_units"),
        (b"\xdf\xff\xff\xff\xff", "bad_units"),
    ],
)
async def test_a_stream_that_is_no_units_is_one_named_error(
    daemon, socket_path, program, body, code
):
    job = await open_job(socket_path, program)
    path = f"/v1/jobs/{job['id']}/units"
    status, answered = await curl(socket_path, path, *MSGPACK, body=body)
    assert (status, json.loads(answered)["error"]["code"]) == (400, code)
    assert daemon.known_jobs[job["id"]].units_total == 0


async def test_a_unit_that_is_too_large_is_refused_before_it_is_read_whole(
    daemon, socket_path, program
):
    job = await open_job(socket_path, program)
    body = packed({f"x{i}": bytes(UNIT_LIMIT_BYTES // 4) for i in range(6)})
    path = f"/v1/jobs/{job['id']}/units"
    status, answered = await curl(socket_path, path, *MSGPACK, body=body)
    assert (status, json.loads(answered)["error"]["code"]) == (413, "unit_too_large")


# --- out ---


async def test_results_come_in_order_with_small_outputs_inside(daemon, socket_path, program):
    small = to_blob(rows(3))
    daemon.small[blob_id_of(to_blob(rows(2) + 1))] = small
    spec = {"policy": "map", "program": program}
    body = packed(spec, unit(1), unit(2))
    job = json.loads((await curl(socket_path, "/v1/jobs", *MSGPACK, body=body))[1])["job"]
    code, answered = await curl(socket_path, f"/v1/jobs/{job['id']}/results")
    first, second, end = unpacked(answered)
    assert code == 200
    assert (first["index"], first["state"]) == (0, "done")
    assert first["outputs"] == {"dir/y": blob_id_of(to_blob(rows(1) + 1))}
    assert second["outputs"] == {"dir/y": small}
    assert (end["after"], end["job"]["state"]) == (1, "done")
    assert daemon.read == []
    code, answered = await curl(socket_path, f"/v1/jobs/{job['id']}/results?after=1")
    (end,) = unpacked(answered)
    assert end["after"] == 1
    assert daemon.read == [(1, "given")]


def unpacked(body):
    unpacker = msgpack.Unpacker()
    unpacker.feed(body)
    return list(unpacker)


async def test_results_as_they_ended_and_a_gap_holds_up_those_in_order(
    daemon, socket_path, program
):
    daemon.hold = True
    body = packed({"policy": "map", "program": program}, unit(1), unit(2), unit(3))
    job = json.loads((await curl(socket_path, "/v1/jobs", *MSGPACK, body=body))[1])["job"]
    units = daemon.known_units[job["id"]]
    done = await daemon.blobs.put_bytes(to_blob(rows(1)))
    for index in (2, 0):
        units[index] = msgspec.structs.replace(
            units[index], state=UnitState.DONE, outputs={"dir/y": done}
        )
        daemon.ending[job["id"]].append(index)
    path = f"/v1/jobs/{job['id']}/results"
    *given, end = unpacked((await curl(socket_path, path))[1])
    assert ([one["index"] for one in given], end["after"]) == ([0], 0)
    *ended, end = unpacked((await curl(socket_path, f"{path}?order=ended&limit=1"))[1])
    assert ([one["index"] for one in ended], end["after"]) == ([2], 0)
    *ended, end = unpacked((await curl(socket_path, f"{path}?order=ended&after=0"))[1])
    assert ([one["index"] for one in ended], end["after"]) == ([0], 1)


async def test_an_answer_is_bounded_in_bytes(daemon, socket_path, program):
    large = bytes(ANSWER_LIMIT_BYTES // 100)
    body = packed({"policy": "map", "program": program}, *[unit()] * 300)
    job = json.loads((await curl(socket_path, "/v1/jobs", *MSGPACK, body=body))[1])["job"]
    daemon.small[blob_id_of(to_blob(rows(1) + 1))] = large
    *given, end = unpacked((await curl(socket_path, f"/v1/jobs/{job['id']}/results"))[1])
    assert 100 <= len(given) < 300
    assert end["after"] == len(given) - 1


async def test_waiting_for_results_ends_with_the_first_or_with_the_time(
    daemon, socket_path, program, nursery
):
    daemon.hold = True
    body = packed({"policy": "map", "program": program}, unit())
    job = json.loads((await curl(socket_path, "/v1/jobs", *MSGPACK, body=body))[1])["job"]
    path = f"/v1/jobs/{job['id']}/results"
    (end,) = unpacked((await curl(socket_path, f"{path}?wait_s=0.05"))[1])
    assert (end["after"], end["job"]["state"]) == (-1, "running")
    came = []

    async def wait():
        came.extend(unpacked((await curl(socket_path, f"{path}?wait_s=30"))[1]))

    with trio.fail_after(20):
        async with trio.open_nursery() as waiting:
            waiting.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked(0.1)
            await daemon.finish(job["id"])
    assert [one.get("index") for one in came] == [0, None]


@pytest.mark.parametrize(
    "query", ["after=x", "after=-2", "order=best", "limit=1001", "wait_s=-1"]
)
async def test_a_bad_query_for_results_is_a_named_error(daemon, socket_path, query):
    code, answered = await curl(socket_path, f"/v1/jobs/J/results?{query}")
    assert (code, json.loads(answered)["error"]["code"]) == (400, "bad_request")


async def test_small_tensors_are_found_as_blobs_tensors_and_outputs(
    daemon, socket_path, program
):
    tensor = to_blob(rows(2))
    blob_id = blob_id_of(tensor)
    daemon.small[blob_id] = tensor
    assert await curl(socket_path, f"/v1/blobs/{blob_id}") == (200, tensor)
    code, npy = await curl(socket_path, f"/v1/tensors/{blob_id}")
    assert code == 200
    assert npy.startswith(b"\x93NUMPY")
    code, saved = await curl(socket_path, f"/v1/tensors/{blob_id}?format=safetensors")
    np.testing.assert_array_equal(safetensors.numpy.load(saved)["tensor"], rows(2))
    assert (await curl(socket_path, f"/v1/blobs/{MISSING}"))[0] == 404


async def test_single_units_are_cancelled_where_nobody_runs_them(daemon, socket_path, program):
    daemon.hold = True

    def work():
        with Client(socket_path) as client:
            job = client.submit(program, [{"x": rows(1)}] * 3)
            assert client.cancel_units(job.id, [1, 7]) == [1]

    await blocking(work)


async def test_units_of_a_job_are_submitted_once_more(daemon, socket_path, program):
    daemon.hold = True

    def work():
        with Client(socket_path) as client:
            job = client.submit(program, [{"x": rows(n)} for n in (1, 2, 3)])
            again = client.again(job.id, [2, 0], verify="quorum:2")
            assert again.id != job.id
            assert again.label == "quorum:2"
            first, *_, last = client.units(job.id)
            assert [u.inputs for u in client.units(again.id)] == [last.inputs, first.inputs]
            with pytest.raises(DaemonError) as caught:
                client.again(job.id, [-1])
            assert caught.value.code == "bad_request"

    await blocking(work)


@pytest.mark.parametrize("index", [-1, 1 << 62, 1 << 63])
async def test_what_is_no_index_of_a_unit_is_refused_by_name(
    daemon, socket_path, program, index
):
    def work():
        with Client(socket_path) as client:
            job = client.submit(program, [{"x": rows(1)}])
            with pytest.raises(DaemonError) as caught:
                client.cancel_units(job.id, [index])
            assert caught.value.code == "bad_request"

    await blocking(work)


# --- clients ---


async def test_a_lazy_map_takes_its_inputs_as_results_are_taken(daemon, socket_path):
    taken = itertools.count()

    def endless():
        for number in taken:
            yield {"x": np.full((1, 4), number, np.float32)}

    def work():
        with Client(socket_path) as client:
            results = client.map(model_bytes(), endless(), ahead=40)
            found = [float(next(results)["dir/y"][0, 0]) for _ in range(100)]
            assert found == [number + 1.0 for number in range(100)]
            results.close()

    await blocking(work)
    assert 100 <= next(taken) <= 100 + 2 * 40
    (job,) = daemon.known_jobs.values()
    assert job.state is JobState.CANCELLED  # nobody takes what is left


async def test_a_map_over_an_iterator_ends_with_it(daemon, socket_path):
    def work():
        with Client(socket_path) as client:
            inputs = ({"x": rows(number % 3 + 1)} for number in range(700))
            results = list(client.map(model_bytes(), inputs, ordered=False, ahead=100))
            assert sorted(one.unit for one in results) == [*range(700)]
            assert all(len(one["dir/y"]) == one.unit % 3 + 1 for one in results)
            assert list(client.map(model_bytes(), iter([]))) == []

    await blocking(work)
    (job,) = daemon.known_jobs.values()
    assert (job.state, job.open, job.units_total) == (JobState.DONE, False, 700)


async def test_a_unit_in_error_in_the_middle_of_a_map_is_named_and_ends_the_job(
    daemon, socket_path
):
    daemon.hold = True

    def inputs():
        yield from ({"x": rows(1)} for _ in range(300))
        yield {"x": np.zeros((1, 5), np.float32)}

    def work():
        with Client(socket_path) as client:
            with pytest.raises(ProgramError, match="unit 300: input 'x'"):
                list(client.map(model_bytes(), inputs()))
            with pytest.raises(ProgramError, match="unit 300: input 'x'") as caught:
                client.submit(model_bytes(), inputs())
            assert caught.value.code == "wrong_shape"

    await blocking(work)
    assert [job.state for job in daemon.known_jobs.values()] == [JobState.CANCELLED] * 2


async def test_a_submitter_whose_own_iterator_fails_leaves_no_open_job(daemon, socket_path):
    def inputs():
        yield from ({"x": rows(1)} for _ in range(300))
        raise KeyboardInterrupt

    def work():
        with Client(socket_path) as client, pytest.raises(KeyboardInterrupt):
            client.submit(model_bytes(), inputs())

    await blocking(work)
    (job,) = daemon.known_jobs.values()
    assert job.state is JobState.CANCELLED


class Losing(Lines):
    """Carries a submission to the daemon, and loses its answer."""

    lost = None

    @contextmanager
    def answer(self, request, limit_s):
        with super().answer(request, limit_s) as answer:
            if (request.method, request.path) == ("POST", "/v1/jobs") and self.lost is not None:
                assert b"".join(answer.pieces)
                raise self.lost
            yield answer


def losing(client, lost):
    """Make a client lose the answers to its submissions."""
    client._lines = Losing(client.place.socket)
    client._lines.lost = lost


async def test_a_submission_that_is_interrupted_leaves_no_job_that_runs(daemon, socket_path):
    daemon.hold = True

    def work():
        with Client(socket_path) as client:
            losing(client, KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                client.submit(model_bytes(), [{"x": rows(1)}])

    await blocking(work)
    (job,) = daemon.known_jobs.values()
    assert job.state is JobState.CANCELLED


@pytest.mark.parametrize("units", [3, 600])
async def test_a_job_whose_id_was_named_outlives_the_interruption_of_one_who_names_it_again(
    daemon, socket_path, units
):
    daemon.hold = True
    job_id = new_job_id()

    def work():
        with Client(socket_path) as client:
            client.submit(model_bytes(), [{"x": rows(1)}] * units, id=job_id)
            losing(client, KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                client.submit(model_bytes(), [{"x": rows(1)}], id=job_id)

    await blocking(work)
    (job,) = daemon.known_jobs.values()
    assert (job.id, job.state) == (job_id, JobState.RUNNING)


async def test_a_job_that_an_interrupted_user_named_is_handed_over_by_a_repetition(
    daemon, socket_path
):
    daemon.hold = True
    job_id = new_job_id()

    def units(end):
        yield from ({"x": rows(1)} for _ in range(300))
        if end is not None:
            raise end

    def work():
        with Client(socket_path) as client:
            with pytest.raises(KeyboardInterrupt):
                client.submit(model_bytes(), units(KeyboardInterrupt()), id=job_id)
            job = client.job(job_id)
            assert (job.open, job.state) == (True, JobState.RUNNING)
            job = client.submit(model_bytes(), units(None), id=job_id)
            assert (job.id, job.open, job.units_total) == (job_id, False, 300)

    await blocking(work)


@pytest.mark.parametrize("units", [3, 600])
async def test_a_submission_whose_answer_was_lost_is_the_same_job_when_it_is_repeated(
    daemon, socket_path, units
):
    daemon.hold = True

    def work():
        job_id, given = new_job_id(), [{"x": rows(1)}] * units
        with Client(socket_path) as client:
            losing(client, LineBrokenError("it is gone"))
            with pytest.raises(DaemonUnreachableError) as caught:
                client.submit(model_bytes(), given, id=job_id)
            assert any(job_id in note for note in caught.value.__notes__)
            client._lines.lost = None
            for _ in range(2):
                assert client.submit(model_bytes(), given, id=job_id).id == job_id

    await blocking(work)
    (job,) = daemon.known_jobs.values()
    assert (job.units_total, job.open) == (units, False)


async def test_a_stream_of_several_writes_has_no_id_of_its_own(daemon, socket_path, program):
    unit = {"x": to_blob(rows(1))}
    spec = {"policy": "map", "program": program, "id": new_job_id()}
    body = b"".join(map(msgpack.packb, [spec, *[unit] * (UNITS_PER_WRITE + 1)]))

    def work():
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket_path))) as web:
            return web.post(
                "http://shoal/v1/jobs",
                content=body,
                headers={"content-type": "application/msgpack"},
            )

    answer = await blocking(work)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "bad_job"
    assert daemon.known_jobs == {}


async def test_results_come_unordered_and_a_failed_unit_raises(daemon, socket_path, program):
    def work():
        with Client(socket_path) as client:
            job = client.submit(program, [{"x": rows(n)} for n in (1, 2, 3)])
            found = [
                (one.unit, len(one["dir/y"])) for one in client.results(job.id, ordered=False)
            ]
            assert found == [(2, 3), (1, 2), (0, 1)]
            job = client.submit(program, [{"x": rows(1)}], label="fail")
            with pytest.raises(JobFailedError, match=r"unit 0 of job .*NaN at node 17"):
                next(client.results(job.id, ordered=False))

    await blocking(work)


async def test_large_inputs_are_put_once_piece_by_piece_and_never_inline(
    daemon, socket_path, program, tmp_path
):
    large = np.arange(PIECE_BYTES, dtype=np.float32).reshape(-1, 4)
    np.save(tmp_path / "x.npy", large)

    def work():
        with Client(socket_path) as client:
            units = [{"x": tmp_path / "x.npy"}, {"x": large}, {"x": large[::2]}]
            for one, wanted in zip(
                client.map(program, iter(units)), (large, large, large[::2]), strict=True
            ):
                np.testing.assert_array_equal(one["dir/y"], wanted + 1)

    await blocking(work)
    assert {blob_id_of(to_blob(large)), blob_id_of(to_blob(large[::2]))} <= {
        *daemon.blobs.blobs
    }


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
async def test_the_async_client_maps_over_both_kinds_of_iterators(daemon, socket_path, backend):
    async def inputs():
        for number in range(300):
            await anyio.lowlevel.checkpoint()
            yield {"x": np.full((1, 4), number, np.float32)}

    async def main():
        async with AsyncClient(socket_path) as client:
            found = [one async for one in client.map(model_bytes(), inputs(), ahead=64)]
            assert [float(one["dir/y"][0, 0]) for one in found] == [n + 1.0 for n in range(300)]
            ordinary = ({"x": rows(1)} for _ in range(3))
            async for one in client.map(model_bytes(), ordinary, ordered=False):
                np.testing.assert_array_equal(one["dir/y"], rows(1) + 1)
            left = client.map(model_bytes(), ({"x": rows(1)} for _ in itertools.count()))
            async for _ in left:
                break
            await left.aclose()
            big = np.zeros((PIECE_BYTES, 4), np.float32)[: PIECE_BYTES // 4]
            assert (await client.run(model_bytes(), {"x": big}))["dir/y"].shape == big.shape

    await blocking(lambda: anyio.run(main, backend=backend))
    assert JobState.CANCELLED in {job.state for job in daemon.known_jobs.values()}


async def test_a_submission_that_is_cancelled_leaves_no_open_job(daemon, socket_path, program):
    async def inputs():
        for _ in range(300):
            yield {"x": rows(1)}
        await trio.sleep_forever()

    async with AsyncClient(socket_path) as client:
        with trio.move_on_after(2) as limit:
            daemon.hold = True
            async for _ in client.map(program, inputs()):
                pass
        assert limit.cancelled_caught
    (job,) = daemon.known_jobs.values()
    assert job.state is JobState.CANCELLED


async def test_results_of_no_job_are_one_clear_error(socket_path, daemon):
    def work():
        with Client(socket_path) as client, pytest.raises(DaemonError) as caught:
            list(client.results("0" * 27))
        assert caught.value.code == "no_such_job"

    await blocking(work)


def test_every_call_of_the_client_has_its_twin_in_the_async_client():
    def calls(kind):
        return {
            name: call
            for name, call in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_") and name not in {"close", "aclose"}
        }

    ordinary, twin = calls(Client), calls(AsyncClient)
    assert ordinary.keys() == twin.keys()
    for name, call in ordinary.items():
        mine, its = inspect.signature(call), inspect.signature(twin[name])
        assert list(mine.parameters) == list(its.parameters), name
        for parameter in mine.parameters.values():
            other = its.parameters[parameter.name]
            assert (parameter.kind, parameter.default) == (other.kind, other.default), name
