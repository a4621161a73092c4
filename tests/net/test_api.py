"""The local API on a real socket, asked by the real clients and by curl.

The daemon behind it is a small one in memory: see `memory_daemon`.
"""

import io
import json
import os
import socket
import stat
import sys

import anyio
import httpx
import msgspec
import numpy as np
import pytest
import safetensors.numpy
import trio
import trio.testing
from memory_daemon import (
    MISSING,
    OTHER,
    PEER,
    QUOTA_BYTES,
    RELOADED,
    MemoryDaemon,
    model_bytes,
    owner_view,
    rows,
)

from shoal.compute.convert import convert
from shoal.compute.devices import Missing
from shoal.compute.errors import ProgramError
from shoal.compute.tensor import to_blob
from shoal.crypto.content import blob_id_of
from shoal.node.api import claim_port, make_app, make_metrics_app, serve_api
from shoal.node.api.server import CONNECTIONS_LIMIT, serve_on
from shoal.node.causes import Remedy
from shoal.node.client import AsyncClient, Client
from shoal.node.client.files import InputError
from shoal.node.errors import (
    ConfigError,
    DaemonError,
    DaemonUnreachableError,
    JobFailedError,
    WaitTimeoutError,
)
from shoal.node.ledger_file import check_lines
from shoal.node.records import (
    JobState,
    LogLevelView,
    UnitState,
)


@pytest.fixture
def socket_path(tmp_path):
    return tmp_path / "run" / "shoal.sock"


@pytest.fixture
async def daemon(nursery, socket_path):
    daemon = MemoryDaemon()
    await nursery.start(serve_api, make_app(daemon), socket_path)
    return daemon


async def blocking(work):
    """Run a test's blocking part in a thread, under a time limit."""
    with trio.fail_after(30):
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True)


async def curl(socket_path, *arguments):
    """Give curl's status and body."""
    done = await trio.run_process(
        ["curl", "-sS", "--unix-socket", socket_path, "-w", "\n%{http_code}", *arguments],
        capture_stdout=True,
    )
    body, _, code = done.stdout.rpartition(b"\n")
    return int(code), body


# --- the blocking client ---------------------------------------------------------


async def test_a_client_sees_status_peers_and_devices(daemon, socket_path):
    def work():
        with Client(socket_path) as client:
            assert client.status() == daemon.status()
            assert client.peers() == daemon.peers()
            assert client.misfits() == daemon.misfits()
            assert client.settings() == [*daemon.settings()]
            assert [device.id for device in client.devices()] == ["cpu"]
            assert client.inventory().missing == (Missing("amd", "absent", "none"),)

    await blocking(work)


async def test_a_client_sees_who_is_cut_and_lets_one_back_in(daemon, socket_path):
    def work():
        with Client(socket_path) as client:
            assert client.cuts() == daemon.cuts()
            client.forgive(PEER)
            assert daemon.forgiven == PEER
            with pytest.raises(DaemonError) as caught:
                client.forgive("nobody")
            assert (caught.value.code, caught.value.status) == ("no_such_offender", 404)

    await blocking(work)


async def test_a_client_sees_how_a_peer_stands_and_who_did_how_much(daemon, socket_path):
    stands = daemon.standing(OTHER)

    def work():
        with Client(socket_path) as client:
            found = client.standing(OTHER)
            assert found == stands
            (reason,) = found.reasons
            assert (reason.code, reason.count, reason.last) == ("voted_down", 1, 1e9)
            assert client.ledger() == daemon.ledger(None)
            assert len(client.ledger().rows) == 2
            (row,) = client.ledger(OTHER).rows
            assert row.peer == OTHER
            assert client.ledger(OTHER).in_debt == {OTHER: 400.0}
            assert check_lines(client.export_ledger().splitlines()).node == PEER
            for ask in (client.standing, client.ledger, client.export_ledger):
                with pytest.raises(DaemonError) as caught:
                    ask("nobody?")
                assert (caught.value.code, caught.value.status) == ("bad_request", 400)

    await blocking(work)


async def test_a_client_sees_who_is_banned_by_what_and_lifts_a_ban(daemon, socket_path):
    def work():
        with Client(socket_path) as client:
            assert client.bans() == daemon.bans()
            assert client.proofs() == daemon.proofs()
            assert client.proof(client.bans()[0].proof) == b"a proof"
            client.unban(PEER)
            assert daemon.unbanned == PEER
            for wrong in (lambda: client.unban("nobody"), lambda: client.proof("ab" * 32)):
                with pytest.raises(DaemonError) as caught:
                    wrong()
                assert caught.value.status == 404

    await blocking(work)


async def test_a_client_pauses_and_resumes(daemon, socket_path):
    def work():
        with Client(socket_path) as client:
            assert client.pause("cpu", for_s=7.5) == owner_view(cause="paused")
            assert daemon.paused == ("cpu", 7.5)
            client.pause()
            assert daemon.paused == (None, None)
            assert client.resume("cpu") == owner_view()
            assert daemon.paused == ("resumed", "cpu")
            with pytest.raises(DaemonError) as caught:
                client.pause("gpu7")
            assert (caught.value.code, caught.value.status) == ("no_such_device", 400)

    await blocking(work)


async def test_pause_and_resume_take_an_empty_body_and_refuse_a_time_that_is_none(
    daemon, socket_path
):
    for body in ([], ["-d", "{}"]):
        code, _ = await curl(socket_path, "-X", "POST", *body, "http://shoal/v1/pause")
        assert (code, daemon.paused) == (200, (None, None))
    code, _ = await curl(socket_path, "-X", "POST", "http://shoal/v1/resume")
    assert (code, daemon.paused) == (200, ("resumed", None))
    for body in ('{"for_s": 0}', '{"for_s": 1e30}', '{"for_s": "2h"}', '{"gpu": 1}'):
        code, said = await curl(socket_path, "-d", body, "http://shoal/v1/pause")
        assert (code, json.loads(said)["error"]["code"]) == (400, "bad_request"), body


async def test_clients_reload_and_change_the_log_level(daemon, socket_path):
    def work():
        with Client(socket_path) as client:
            assert client.reload() == RELOADED
            assert client.log_level() == LogLevelView("info", "info", {})
            assert client.set_log_level("debug").level == "debug"
            assert client.set_log_level("error", "libp2p").modules == {"libp2p": "error"}
            assert client.metrics() == daemon.metrics().decode()
            daemon.bad_settings = True
            with pytest.raises(DaemonError) as caught:
                client.reload()
            assert (caught.value.code, caught.value.status) == ("bad_setting", 400)
            assert caught.value.hint == "write it well"

    await blocking(work)
    async with AsyncClient(socket_path) as client:
        assert (await client.set_log_level("warning", "shoal.node")).level == "warning"
        assert await client.log_level() == LogLevelView("info", "info", {})
        assert await client.metrics() == daemon.metrics().decode()
        daemon.bad_settings = False
        assert await client.reload() == RELOADED


async def test_a_daemon_that_is_told_to_end_answers_first(daemon, socket_path):
    async with AsyncClient(socket_path) as client:
        for now in (False, True):
            assert await client.end(now=now) == os.getpid()
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert daemon.ended is now
    code, said = await curl(socket_path, "-d", '{"later": 1}', "http://shoal/v1/end")
    assert (code, json.loads(said)["error"]["code"]) == (400, "bad_request")
    for body in ("{}", '{"level": 7}', '{"level": "info", "modules": []}'):
        code, _ = await curl(socket_path, "-X", "PUT", "-d", body, "http://shoal/v1/log-level")
        assert code == 400


async def test_a_port_for_metrics_gives_them_and_nothing_else(daemon, nursery):
    with claim_port(("127.0.0.1", 0)) as listening:
        host, port = listening.getsockname()
        with pytest.raises(ConfigError) as caught, claim_port((host, port)):
            pass
        assert caught.value.code == "port_unusable"
        await nursery.start(serve_on, make_metrics_app(daemon), listening)
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}") as client:
            found = await client.get("/metrics")
            assert (found.status_code, found.content) == (200, daemon.metrics())
            assert found.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
            assert (await client.post("/metrics")).status_code == 405
            for path in ("/", "/v1/status", "/v1/end", "/metrics/"):
                assert (await client.post(path)).status_code in (404, 405, 307)
        nursery.cancel_scope.cancel()
    assert daemon.ended is None


async def test_an_async_client_pauses_and_resumes(daemon, socket_path):
    async with AsyncClient(socket_path) as client:
        assert await client.pause(for_s=3) == owner_view(cause="paused")
        assert daemon.paused == (None, 3)
        assert await client.resume() == owner_view()


async def test_a_model_is_run_from_its_file_bytes_object_and_id(daemon, socket_path, tmp_path):
    import onnx

    def work():
        path = tmp_path / "model.onnx"
        path.write_bytes(model_bytes())
        with Client(socket_path) as client:
            prepared = client.prepare(path)
            for model in (
                path,
                str(path),
                model_bytes(),
                onnx.load(path),
                prepared,
                prepared.program_id,
            ):
                outputs = client.run(model, {"x": rows(2)})
                np.testing.assert_array_equal(outputs["dir/y"], rows(2) + 1)

    await blocking(work)


async def test_blobs_that_the_daemon_holds_are_not_sent_again(daemon, socket_path):
    puts = []
    put = daemon.blobs.put

    async def counting(chunks):
        puts.append(None)
        return await put(chunks)

    daemon.blobs.put = counting

    def work():
        with Client(socket_path) as client:
            client.run(model_bytes(100_000), {"x": rows(1)})
            first = len(puts)
            assert first >= 3  # manifest, graph, weight; the input goes with the job
            client.run(model_bytes(100_000), {"x": rows(1)})
            assert len(puts) == first

    await blocking(work)


async def test_a_map_gives_its_results_in_order(daemon, socket_path, tmp_path):
    def work():
        np.save(tmp_path / "x.npy", rows(10))
        mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
        with Client(socket_path) as client:
            found = [o["dir/y"] for o in client.map(model_bytes(), {"x": mapped}, batch=3)]
        assert [len(part) for part in found] == [3, 3, 3, 1]
        np.testing.assert_array_equal(np.concatenate(found), rows(10) + 1)

    await blocking(work)


async def test_results_come_before_the_whole_job_is_done(daemon, socket_path):
    daemon.hold = True
    first = trio.Event()

    def work():
        with Client(socket_path) as client:
            results = client.map(model_bytes(), {"x": rows(2)})
            next(results)
            trio.from_thread.run_sync(first.set)
            return len(list(results))

    async with trio.open_nursery() as nursery:
        left = []

        async def consume():
            left.append(await blocking(work))

        nursery.start_soon(consume)
        with trio.fail_after(60):
            while not daemon.known_jobs:
                await trio.testing.wait_all_tasks_blocked(0.01)
            (job_id,) = daemon.known_jobs
            units = daemon.known_units[job_id]
            done = await daemon.blobs.put_bytes(to_blob(rows(1)))
            units[0] = msgspec.structs.replace(
                units[0], state=UnitState.DONE, outputs={"dir/y": done}
            )
            await daemon.change(job_id, units_done=1)
            await first.wait()
            await daemon.finish(job_id)
    assert left == [1]


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ({}, "missing_input"),
        ({"x": np.zeros((2, 4))}, "wrong_dtype"),
        ({"x": np.zeros((2, 5), np.float32)}, "wrong_shape"),
        ({"x": rows(1), "z": rows(1)}, "unknown_input"),
        (rows(1), "bad_input"),
    ],
)
async def test_wrong_inputs_are_refused_before_anything_is_submitted(
    daemon, socket_path, inputs, code
):
    def work():
        with Client(socket_path) as client, pytest.raises((InputError, ProgramError)) as caught:
            client.run(model_bytes(), inputs)
        assert caught.value.code == code

    await blocking(work)
    assert not daemon.known_jobs


async def test_a_failed_job_raises_with_the_failure_and_its_hint(daemon, socket_path):
    def work():
        with Client(socket_path) as client:
            with pytest.raises(JobFailedError, match="NaN at node 17") as caught:
                client.run(model_bytes(), {"x": rows(1)}, label="fail")
            assert (caught.value.code, caught.value.hint) == ("nan", "check the input")
            with pytest.raises(JobFailedError, match="unit 0 of job"):
                list(client.map(model_bytes(), {"x": rows(2)}, label="fail"))

    await blocking(work)


async def test_a_job_is_forgotten_where_its_results_were_fetched_or_need_not_be(
    daemon, socket_path
):
    def work():
        with Client(socket_path) as client:
            job = client.wait(client.submit(model_bytes(), [{"x": rows(1)}]).id)
            with pytest.raises(DaemonError) as caught:
                client.forget(job.id)
            assert (caught.value.code, caught.value.status) == ("results_unfetched", 409)
            assert client.forget(job.id, unfetched_too=True) == job
            assert client.jobs() == []

    await blocking(work)


async def test_an_unfinished_job_raises_at_the_time_out_and_can_be_cancelled(
    daemon, socket_path
):
    daemon.hold = True

    def work():
        with Client(socket_path) as client:
            with pytest.raises(WaitTimeoutError, match="still running after"):
                client.run(model_bytes(), {"x": rows(1)}, timeout_s=0.1)
            (job,) = client.jobs()
            assert client.wait(job.id, timeout_s=0).state is JobState.RUNNING
            assert client.cancel(job.id).state is JobState.CANCELLED
            assert client.wait(job.id).state is JobState.CANCELLED
            with pytest.raises(JobFailedError, match="unit 0 of job"):
                client.outputs(job.id)

    await blocking(work)


async def test_errors_keep_the_daemons_code_sentence_hint_and_status(daemon, socket_path):
    def work():
        with Client(socket_path) as client:
            with pytest.raises(DaemonError) as caught:
                client.job("nope")
            error = caught.value
            assert (error.code, error.status) == ("no_such_job", 404)
            assert (error.message, error.hint) == ("there is no job nope", "`shoal jobs`")
            with pytest.raises(DaemonError) as caught:
                client.outputs("nope", 0)
            assert caught.value.code == "no_such_job"
            with pytest.raises(DaemonError) as caught:
                client.connect("/ip4/1.2.3.4/tcp/1")
            assert (caught.value.code, caught.value.status) == ("dial_failed", 503)

    await blocking(work)


async def test_why_receipts_and_connect_come_through(daemon, socket_path):
    def work():
        with Client(socket_path) as client:
            job = client.submit(model_bytes(), [{"x": rows(1)}])
            answers, summary = client.why(job.id)
            words = "One peer is busy: wait."
            assert (answers[0].verdict, summary) == ("busy", f"0 units have ended.\n{words}")
            found = client.explanation(job.id, unit=3)
            assert (found.headline, found.job.id) == ("Unit 3 waits.", job.id)
            assert found.causes[0].remedy is Remedy.WAIT
            (receipt_id,) = client.receipts(job.id)
            assert client.receipt(receipt_id) == b"envelope"
            assert client.connect(f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}") == PEER

    await blocking(work)


async def test_events_tell_each_change_until_the_job_is_final(daemon, socket_path):
    daemon.hold = True
    with Client(socket_path) as client:
        job = await blocking(lambda: client.submit(model_bytes(), [{"x": rows(1)}]))
        events = await blocking(lambda: client.watch(job.id))
        assert (await blocking(lambda: next(events))).state is JobState.RUNNING
        await daemon.change(job.id, units_failed=1)
        assert (await blocking(lambda: next(events))).units_failed == 1
        await daemon.finish(job.id)
        assert (await blocking(lambda: next(events))).state is JobState.DONE
        assert await blocking(lambda: next(events, None)) is None


def test_no_daemon_is_one_clear_error(tmp_path):
    with (
        Client(tmp_path / "nothing.sock") as client,
        pytest.raises(DaemonUnreachableError) as caught,
    ):
        client.status()
    assert caught.value.hint == "start it with `shoal up`"


# --- the non-blocking client -----------------------------------------------------


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
async def test_the_async_client_runs_maps_and_watches(daemon, socket_path, backend):
    async def use():
        async with AsyncClient(socket_path) as client:
            assert await client.status() == daemon.status()
            outputs = await client.run(model_bytes(), {"x": rows(2)})
            np.testing.assert_array_equal(outputs["dir/y"], rows(2) + 1)
            parts = [
                o["dir/y"] async for o in client.map(model_bytes(), {"x": rows(5)}, batch=2)
            ]
            np.testing.assert_array_equal(np.concatenate(parts), rows(5) + 1)
            job = (await client.jobs())[0]
            assert [seen.state async for seen in client.watch(job.id)] == [JobState.DONE]
            with pytest.raises(DaemonError, match="there is no job nope"):
                await client.job("nope")

    if backend == "trio":
        await use()
    else:
        await blocking(lambda: anyio.run(use, backend="asyncio"))


# --- plain HTTP ------------------------------------------------------------------


async def test_curl_submits_a_job_and_fetches_its_output(daemon, socket_path, tmp_path):
    (tmp_path / "m.onnx").write_bytes(model_bytes())
    np.save(tmp_path / "x.npy", rows(2))
    base = "http://shoal/v1"
    status, body = await curl(socket_path, f"{base}/status")
    assert (status, json.loads(body)["peer"]) == (200, PEER)
    status, body = await curl(
        socket_path, "--data-binary", f"@{tmp_path}/m.onnx", f"{base}/programs"
    )
    program = json.loads(body)
    assert status == 201
    assert program["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["n", 4]}]
    status, body = await curl(socket_path, "-T", tmp_path / "x.npy", f"{base}/tensors")
    assert status == 201
    tensor = json.loads(body)["tensors"]["tensor"]
    assert tensor == blob_id_of(to_blob(rows(2)))
    spec = {"policy": "run", "program": program["program"], "units": [{"x": tensor}]}
    status, body = await curl(socket_path, "-d", json.dumps(spec), f"{base}/jobs")
    assert status == 201
    job = json.loads(body)["job"]
    status, body = await curl(socket_path, f"{base}/jobs/{job['id']}/wait?timeout_s=5")
    assert json.loads(body)["job"]["state"] == "done"
    status, body = await curl(socket_path, f"{base}/jobs/{job['id']}/outputs/dir/y")
    assert status == 200
    np.testing.assert_array_equal(np.load(io.BytesIO(body)), rows(2) + 1)
    assert all(json.loads(b)["schema_version"] == 1 for b in (json.dumps(program),))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int64).reshape(2, 3),
        np.array(True),
        np.zeros((0, 3), np.float16),
        np.arange(300_000, dtype=np.float64),
        np.array([[True, False]]),
    ],
    ids=str,
)
async def test_a_tensor_goes_in_and_out_as_npy_and_safetensors(daemon, socket_path, array):
    def work():
        transport = httpx.HTTPTransport(uds=str(socket_path))
        with httpx.Client(transport=transport, base_url="http://shoal") as web:
            npy = io.BytesIO()
            np.save(npy, array)
            put = web.put("/v1/tensors", content=npy.getvalue())
            assert put.json()["tensors"] == {"tensor": blob_id_of(to_blob(array))}
            packed = safetensors.numpy.save({"b": array, "a": rows(3)})
            put = web.put(
                "/v1/tensors",
                content=packed,
                headers={"content-type": "application/x-safetensors"},
            )
            ids = put.json()["tensors"]
            assert ids == {"a": blob_id_of(to_blob(rows(3))), "b": blob_id_of(to_blob(array))}
            got = web.get(f"/v1/tensors/{ids['b']}")
            np.testing.assert_array_equal(np.load(io.BytesIO(got.content)), array)
            got = web.get(f"/v1/tensors/{ids['b']}", params={"format": "safetensors"})
            np.testing.assert_array_equal(safetensors.numpy.load(got.content)["tensor"], array)

    await blocking(work)


async def test_blobs_are_streamed_in_and_out_and_head_gives_their_size(daemon, socket_path):
    data = os.urandom(3_000_000)

    def work():
        transport = httpx.HTTPTransport(uds=str(socket_path))
        with httpx.Client(transport=transport, base_url="http://shoal") as web:
            pieces = (data[at : at + 70_000] for at in range(0, len(data), 70_000))
            put = web.put("/v1/blobs", content=pieces)
            assert put.status_code == 201
            assert put.json()["id"] == blob_id_of(data)
            assert web.get(f"/v1/blobs/{blob_id_of(data)}").content == data
            head = web.head(f"/v1/blobs/{blob_id_of(data)}")
            assert (head.status_code, head.headers["content-length"]) == (200, str(len(data)))
            assert web.head(f"/v1/blobs/{MISSING}").status_code == 404

    await blocking(work)


def npy_of(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


BAD_REQUESTS = {
    "no such route": ("GET", "/v1/nothing", b"", 404, "no_such_route"),
    "wrong method": ("DELETE", "/v1/status", b"", 405, "no_such_route"),
    "bad blob id": ("GET", "/v1/blobs/xyz", b"", 400, "bad_blob_id"),
    "blob not held": ("GET", f"/v1/blobs/{MISSING}", b"", 404, "blob_missing"),
    "empty npy": ("PUT", "/v1/tensors", b"", 400, "body_too_short"),
    "not npy": ("PUT", "/v1/tensors", b"hello, this is no array", 400, "bad_npy"),
    "npy cut short": ("PUT", "/v1/tensors", npy_of(rows(9))[:-1], 400, "body_too_short"),
    "npy too long": ("PUT", "/v1/tensors", npy_of(rows(9)) + b"x", 400, "body_too_long"),
    "pickled npy": ("PUT", "/v1/tensors", npy_of(np.array([{}])), 400, "bad_npy"),
    "fortran npy": ("PUT", "/v1/tensors", npy_of(rows(9).T), 400, "bad_npy"),
    "big-endian npy": ("PUT", "/v1/tensors", npy_of(rows(9).astype(">f4")), 400, "bad_npy"),
    "npy of 8 TB": (
        "PUT",
        "/v1/tensors",
        npy_of(rows(9)).replace(b"(9, 4)", b"(9999999999999,)"),
        400,
        "bad_tensor",
    ),
    "npy header of code": (
        "PUT",
        "/v1/tensors",
        npy_of(rows(9)).replace(b"'descr'", b"exit(1)"),
        400,
        "bad_npy",
    ),
    "huge npy header": ("PUT", "/v1/tensors", b"\x93NUMPY\2\0\xff\xff\xff\xff", 400, "bad_npy"),
    "empty model": ("POST", "/v1/programs", b"", 400, None),
    "random model": ("POST", "/v1/programs", b"\xff" * 100, 400, None),
    "program not held": ("PUT", f"/v1/programs/{MISSING}", b"", 404, "blob_missing"),
    "job not JSON": ("POST", "/v1/jobs", b"{", 400, "bad_request"),
    "job not an object": ("POST", "/v1/jobs", b"[]", 400, "bad_request"),
    "job nested": ("POST", "/v1/jobs", b"[" * 100_000, 400, "bad_request"),
    "job unknown field": (
        "POST",
        "/v1/jobs",
        b'{"policy":"run","program":"x","units":[],"prise":1}',
        400,
        "bad_request",
    ),
    "job bad program": (
        "POST",
        "/v1/jobs",
        b'{"policy":"run","program":"x","units":[]}',
        400,
        "bad_blob_id",
    ),
    **{
        f"a unit of {seconds.decode()} s": (
            "POST",
            "/v1/jobs",
            b'{"policy":"run","program":"x","units":[],"time_limit_s":%b}' % seconds,
            400,
            "bad_request",
        )
        for seconds in (b"-1", b"0", b"1e9", b"NaN", b"null")
    },
    "bad limit": ("GET", "/v1/jobs?limit=-1", b"", 400, "bad_request"),
    "limit too big": ("GET", "/v1/jobs?limit=1e9", b"", 400, "bad_request"),
    "bad time-out": ("GET", "/v1/jobs/x/wait?timeout_s=nan", b"", 400, "bad_request"),
    "no such job": ("GET", "/v1/jobs/x/events", b"", 404, "no_such_job"),
    "no such receipt": ("GET", f"/v1/receipts/{MISSING}", b"", 404, "no_such_receipt"),
    "address too long": (
        "POST",
        "/v1/connect",
        b'"' + b"x" * 9000 + b'"',
        413,
        "body_too_large",
    ),
    "over the quota": ("PUT", "/v1/blobs", bytes(QUOTA_BYTES + 1), 507, "quota_exceeded"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
async def test_a_bad_request_is_one_named_error(daemon, socket_path, name):
    method, path, body, status, code = BAD_REQUESTS[name]

    def work():
        transport = httpx.HTTPTransport(uds=str(socket_path))
        with httpx.Client(transport=transport, base_url="http://shoal") as web:
            got = web.request(method, path, content=body)
            assert got.status_code == status
            told = got.json()
            assert told["schema_version"] == 1
            assert code is None or told["error"]["code"] == code
            assert told["error"]["message"]
            assert "Traceback" not in got.text
            assert web.get("/v1/status").status_code == 200

    await blocking(work)
    assert daemon.blobs.unfinished == 0
    assert not daemon.blobs.blobs


async def test_a_program_with_blobs_missing_is_a_conflict_that_names_them(daemon, socket_path):
    program = convert(model_bytes(1000))
    await daemon.blobs.put_bytes(program.blobs[program.program_id])
    status, body = await curl(
        socket_path, "-X", "PUT", f"http://shoal/v1/programs/{program.program_id}"
    )
    assert status == 409
    assert program.manifest.graph in json.loads(body)["error"]["message"]


async def test_an_unexpected_error_tells_no_details_and_the_daemon_goes_on(daemon, socket_path):
    daemon.peers = lambda: 1 / 0
    status, body = await curl(socket_path, "http://shoal/v1/peers")
    assert (status, json.loads(body)["error"]["code"]) == (500, "internal_error")
    assert b"ZeroDivision" not in body
    status, _ = await curl(socket_path, "http://shoal/v1/status")
    assert status == 200


async def test_a_client_that_leaves_in_the_middle_leaves_nothing(daemon, socket_path):
    def work():
        for path in ("/v1/blobs", "/v1/tensors"):
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(str(socket_path))
                raw.sendall(f"PUT {path} HTTP/1.1\r\nhost: x\r\n".encode())
                raw.sendall(b"content-length: 1000000\r\n\r\n")
                raw.sendall(npy_of(np.zeros(100_000))[:400_000])

    await blocking(work)
    with trio.fail_after(30):
        await until(lambda: daemon.blobs.unfinished == 0)
    assert not daemon.blobs.blobs


async def test_clients_that_come_and_go_do_not_use_up_the_connections(daemon, socket_path):
    def work():
        for _ in range(CONNECTIONS_LIMIT + 10):
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(str(socket_path))
                raw.sendall(b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n")
                assert raw.recv(100).startswith(b"HTTP/1.1 200")

    await blocking(work)


async def until(condition):
    while not condition():
        await trio.testing.wait_all_tasks_blocked(0.01)


async def test_random_bytes_on_the_socket_leave_the_daemon_answering(daemon, socket_path):
    def work():
        for start in (b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n", b"\x00"):
            with socket.socket(socket.AF_UNIX) as raw:
                raw.settimeout(5)
                raw.connect(str(socket_path))
                try:
                    raw.sendall(start + os.urandom(4096))
                    raw.shutdown(socket.SHUT_WR)
                    while raw.recv(4096):
                        pass
                except OSError:
                    pass  # the server may cut us off at any point
        with Client(socket_path) as client:
            return client.status().peer

    assert await blocking(work) == PEER


async def test_the_server_ends_though_a_client_does_not_read(socket_path):
    daemon = MemoryDaemon()
    blob_id = await daemon.blobs.put_bytes(bytes(5_000_000))
    raw = socket.socket(socket.AF_UNIX)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_api, make_app(daemon), socket_path)
            raw.connect(str(socket_path))
            raw.sendall(f"GET /v1/blobs/{blob_id} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            stream = trio.socket.from_stdlib_socket(raw)
            await stream.recv(1)  # it has begun, and now nobody reads on
            nursery.cancel_scope.cancel()
    stream.close()
    assert not socket_path.exists()


# --- the socket ------------------------------------------------------------------


async def test_the_socket_is_for_its_owner_only_from_the_moment_of_bind(
    socket_path, monkeypatch
):
    modes = []
    listen = socket.socket.listen

    def noting(self, backlog):
        modes.append(stat.S_IMODE(socket_path.stat().st_mode))
        return listen(self, backlog)

    monkeypatch.setattr(socket.socket, "listen", noting)
    before = os.umask(0)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_api, make_app(MemoryDaemon()), socket_path)
            modes.append(stat.S_IMODE(socket_path.stat().st_mode))
            nursery.cancel_scope.cancel()
    finally:
        os.umask(before)
    assert modes == [0o600, 0o600]
    assert stat.S_IMODE(socket_path.parent.stat().st_mode) == 0o700


async def test_a_group_may_use_the_system_services_socket(socket_path):
    import grp

    group = grp.getgrgid(os.getgid()).gr_name
    async with trio.open_nursery() as nursery:
        await nursery.start(
            lambda task_status: serve_api(
                make_app(MemoryDaemon()), socket_path, group=group, task_status=task_status
            )
        )
        assert stat.S_IMODE(socket_path.stat().st_mode) == 0o660
        nursery.cancel_scope.cancel()


async def test_a_group_that_does_not_exist_leaves_no_socket(socket_path):
    with pytest.raises(ConfigError, match="no-such-group") as caught:
        await serve_api(make_app(MemoryDaemon()), socket_path, group="no-such-group")
    assert caught.value.code == "no_such_group"
    assert not socket_path.exists()


async def test_a_regular_file_at_the_socket_path_is_refused_and_kept(tmp_path):
    path = tmp_path / "precious.txt"
    path.write_text("precious")
    with pytest.raises(ConfigError) as caught:
        await serve_api(make_app(MemoryDaemon()), path)
    assert caught.value.code == "socket_path_taken"
    assert [file.name for file in tmp_path.iterdir()] == ["precious.txt"]
    assert path.read_text() == "precious"


async def test_a_second_daemon_on_one_socket_is_refused_and_the_first_goes_on(
    daemon, socket_path
):
    with pytest.raises(ConfigError, match=f"process {os.getpid()}") as caught:
        await serve_api(make_app(MemoryDaemon()), socket_path)
    assert caught.value.code == "daemon_running"
    status, _ = await curl(socket_path, "http://shoal/v1/status")
    assert status == 200


async def test_the_socket_of_another_program_is_refused(socket_path):
    socket_path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(socket_path))
        other.listen()
        with pytest.raises(ConfigError) as caught:
            await serve_api(make_app(MemoryDaemon()), socket_path)
    assert caught.value.code == "daemon_running"


async def test_the_socket_of_a_killed_daemon_is_replaced(socket_path, nursery):
    claim = (
        "import sys, os, pathlib; from shoal.node.api import claim_socket\n"
        "with claim_socket(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    killed = await trio.run_process(
        [sys.executable, "-c", claim, str(socket_path)], check=False
    )
    assert killed.returncode == -9
    assert socket_path.is_socket()
    await nursery.start(serve_api, make_app(MemoryDaemon()), socket_path)
    status, _ = await curl(socket_path, "http://shoal/v1/status")
    assert status == 200


async def test_a_place_where_no_socket_can_be_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        await serve_api(make_app(MemoryDaemon()), tmp_path / "file" / "shoal.sock")
    assert caught.value.code == "socket_unwritable"
