"""The local API on a real socket, asked by the real clients.

The daemon behind it is a small one in memory: see `memory_daemon`.
"""

import json
import os

import anyio
import httpx
import msgspec
import numpy as np
import pytest
import trio
import trio.testing
from api_clients import blocking, curl
from memory_daemon import OTHER, PEER, RELOADED, MemoryDaemon, model_bytes, owner_view, rows

from shoal.compute.devices import Missing
from shoal.compute.errors import ProgramError
from shoal.compute.tensor import to_blob
from shoal.node.api import claim_port, make_app, make_metrics_app, serve_api
from shoal.node.api.server import serve_on
from shoal.node.causes import Remedy
from shoal.node.client import AsyncClient, Client, submitting
from shoal.node.client.files import InputError
from shoal.node.client.submitting import UNITS_PER_REQUEST
from shoal.node.errors import (
    ConfigError,
    DaemonError,
    DaemonUnreachableError,
    JobFailedError,
    WaitTimeoutError,
)
from shoal.node.ledger_file import check_lines
from shoal.node.records import JobState, UnitState
from shoal.node.status_views import LogLevelView


@pytest.fixture
def socket_path(tmp_path):
    return tmp_path / "run" / "shoal.sock"


@pytest.fixture
async def daemon(nursery, socket_path):
    daemon = MemoryDaemon()
    await nursery.start(serve_api, make_app(daemon), socket_path)
    return daemon


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
            assert client.conducts() == daemon.conducts()
            assert client.callers() == daemon.callers()
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


async def test_many_units_take_few_requests_both_ways(daemon, socket_path, monkeypatch):
    # A request that is not full goes off after a moment, which on a busy machine is sooner.
    monkeypatch.setattr(submitting, "LINGER_S", float("inf"))
    units, daemon.keeps_small = 8 * UNITS_PER_REQUEST, True

    def work():
        with Client(socket_path) as client:
            asked, exchange = [], client._exchange
            client._exchange = lambda request: asked.append(request) or exchange(request)
            given = ({"x": np.full((1, 4), index, np.float32)} for index in range(units))
            assert sum(1 for _ in client.map(model_bytes(), given)) == units
            return [f"{request.method} {request.path.rpartition('/')[2]}" for request in asked]

    asked = await blocking(work)
    sent = [one for one in asked if one in {"POST jobs", "POST units"}]
    assert len(sent) <= units / UNITS_PER_REQUEST + 2  # the last may be empty
    assert asked.count("GET results") <= 3 * units / UNITS_PER_REQUEST
    assert len(asked) <= 4 * units / UNITS_PER_REQUEST + 8


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
