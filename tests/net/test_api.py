"""The local API on a real socket, asked by the real clients and by curl.

The daemon behind it is a small one in memory: what jobs really do is others'
matter. It "runs" a job by adding 1 to every input.
"""

import io
import json
import os
import socket
import stat
import sys
from contextlib import asynccontextmanager

import anyio
import httpx
import msgspec
import numpy as np
import pytest
import safetensors.numpy
import trio
import trio.testing
from onnx import TensorProto, helper

from shoal.compute.convert import convert
from shoal.compute.devices import Device, Inventory, Missing
from shoal.compute.errors import ProgramError
from shoal.compute.manifest import decode
from shoal.compute.tensor import from_blob, to_blob
from shoal.crypto.content import BlobHasher, BlobId, blob_id_of
from shoal.crypto.peer_id import PeerId
from shoal.node.api import claim_port, make_app, make_metrics_app, serve_api
from shoal.node.api.server import CONNECTIONS_LIMIT, serve_on
from shoal.node.causes import Cause, Explanation, Remedy
from shoal.node.client import AsyncClient, Client
from shoal.node.errors import (
    ConfigError,
    DaemonError,
    DaemonUnreachableError,
    JobError,
    JobFailedError,
    NetworkError,
    PeerError,
    StoreError,
    WaitTimeoutError,
)
from shoal.node.records import (
    Answer,
    CutView,
    Failure,
    Job,
    JobId,
    JobState,
    LogLevelView,
    MisfitView,
    OwnerView,
    PeerView,
    ReloadView,
    StanceView,
    StandingView,
    Status,
    Unit,
    UnitState,
)
from shoal.node.settings_view import SettingView

PEER = PeerId("12D3KooWS4g1ygNaqQbqCrTRs5ENekL3NVAedaxoJDEHNRhQQT9M")
MISSING = BlobId("00" * 32)
QUOTA_BYTES = 8 << 20
RELOADED = ReloadView(changed=("deny",), needs_restart=(), unchanged=20, warnings=("w",))


class MemoryStore:
    """Blobs in a dict, within `QUOTA_BYTES`."""

    def __init__(self):
        self.blobs = {}
        self.unfinished = 0

    async def put(self, chunks):
        hasher, pieces, size_bytes = BlobHasher(), [], 0
        self.unfinished += 1
        try:
            async for piece in chunks:
                await trio.lowlevel.checkpoint()
                hasher.update(piece)
                pieces.append(piece)
                size_bytes += len(piece)
                if size_bytes > QUOTA_BYTES:
                    raise StoreError(
                        "the store is full", code="quota_exceeded", hint="raise it"
                    )
        finally:
            self.unfinished -= 1
        chunk_list = hasher.finish()
        self.blobs[chunk_list.blob_id] = b"".join(pieces)
        return chunk_list

    async def put_bytes(self, data):
        self.blobs[blob_id_of(data)] = bytes(data)
        return blob_id_of(data)

    def holds(self, blob_id):
        return blob_id in self.blobs

    def size_bytes(self, blob_id):
        if blob_id not in self.blobs:
            raise StoreError(f"blob {blob_id} is not held", code="blob_missing")
        return len(self.blobs[blob_id])

    async def get_bytes(self, blob_id):
        self.size_bytes(blob_id)
        return self.blobs[blob_id]

    async def read_chunks(self, blob_id):
        data = await self.get_bytes(blob_id)
        for at in range(0, len(data), 1 << 16):
            await trio.lowlevel.checkpoint()
            yield data[at : at + (1 << 16)]


class MemoryDaemon:
    """Enough of a daemon to stand behind the API; `finish` ends a held job."""

    def __init__(self):
        self.blobs = MemoryStore()
        self.known_jobs = {}
        self.known_units = {}
        self.changed = trio.Condition()
        self.hold = False
        self.bad_settings = False
        self.ended = None

    def status(self):
        return Status(
            peer=PEER,
            version="0.1.0",
            protocol_version=1,
            pid=os.getpid(),
            home="/home",
            socket="/home/shoal.sock",
            addresses=("/ip4/127.0.0.1/tcp/4711",),
            uptime_s=1.0,
            peers_known=1,
            peers_linked=1,
            jobs_running=0,
            units_served=0,
            blob_bytes=0,
            blob_quota_bytes=QUOTA_BYTES,
        )

    def misfits(self):
        return [MisfitView(PEER, "speaks protocol 2: upgrade this node")]

    def settings(self):
        return (SettingView("listen", ["/ip4/127.0.0.1/tcp/4711"], "flag"),)

    def peers(self):
        return [
            PeerView(
                peer=PEER,
                agent="shoal/0.1.0",
                addresses=(),
                linked=True,
                allowed=False,
                rtt_s=0.001,
                devices=(),
                numeric_classes=("fp32",),
                advert_age_s=1.0,
                advert_expires_in_s=59.0,
                standing=StandingView(0.8, "gossiped too much", {"gossip_flood": 4}),
            )
        ]

    def cuts(self):
        return [CutView(PEER, since=10.0, until=130.0, why="sent nonsense")]

    def forgive(self, peer):
        if peer != PEER:
            raise PeerError("nothing is held against it", code="no_such_offender")
        self.forgiven = peer

    async def devices(self):
        cpu = Device(id="cpu", kind="cpu", name="A", memory_bytes=1, memory_free_bytes=1)
        return Inventory((cpu,), (Missing("amd", "absent", "none"),))

    async def convert_program(self, onnx, precision):
        program = await trio.to_thread.run_sync(convert, onnx)
        for blob in program.blobs.values():
            await self.blobs.put_bytes(blob)
        return program.program_id

    async def register_program(self, program):
        manifest = decode(await self.blobs.get_bytes(program))
        missing = [blob_id for blob_id in manifest.blob_ids if not self.blobs.holds(blob_id)]
        if missing:
            raise StoreError(f"missing: {', '.join(missing)}", code="blobs_missing")
        return manifest

    async def program(self, program):
        return decode(await self.blobs.get_bytes(program))

    async def submit(self, spec):
        job = Job(
            id=JobId(f"{len(self.known_jobs):026}"),
            policy=spec.policy,
            program=spec.program,
            numeric_class=spec.numeric_class,
            label=spec.label,
            state=JobState.RUNNING,
            created_at=0.0,
            ended_at=None,
            units_total=len(spec.units),
            units_done=0,
            units_failed=0,
        )
        self.known_jobs[job.id] = job
        self.known_units[job.id] = [
            Unit(job=job.id, index=index, state=UnitState.QUEUED, inputs=inputs)
            for index, inputs in enumerate(spec.units)
        ]
        if not self.hold:
            await self.finish(job.id)
        return self.known_jobs[job.id]

    async def finish(self, job_id):
        job, units = self.known_jobs[job_id], self.known_units[job_id]
        failure = (
            Failure("nan", "NaN at node 17", "check the input") if job.label == "fail" else None
        )
        for unit in units:
            array = from_blob(await self.blobs.get_bytes(unit.inputs["x"]))
            out = await self.blobs.put_bytes(to_blob(array + array.dtype.type(1)))
            units[unit.index] = msgspec.structs.replace(
                unit,
                state=UnitState.FAILED if failure else UnitState.DONE,
                outputs=None if failure else {"dir/y": out},
                failure=failure,
                provider=PEER,
            )
        await self.change(
            job_id,
            state=JobState.FAILED if failure else JobState.DONE,
            units_done=0 if failure else len(units),
            failure=failure,
            ended_at=1.0,
        )

    async def change(self, job_id, **fields):
        self.known_jobs[job_id] = msgspec.structs.replace(self.known_jobs[job_id], **fields)
        async with self.changed:
            self.changed.notify_all()

    async def jobs(self, limit):
        return sorted(self.known_jobs.values(), key=lambda job: job.id, reverse=True)[:limit]

    async def job(self, job_id):
        if job_id not in self.known_jobs:
            raise JobError(f"there is no job {job_id}", code="no_such_job", hint="`shoal jobs`")
        return self.known_jobs[job_id]

    async def units(self, job_id, offset, limit):
        await self.job(job_id)
        return self.known_units[job_id][offset : offset + limit]

    @asynccontextmanager
    async def watch(self, job_id):
        send, receive = trio.open_memory_channel(100)

        async def tell():
            with send:
                last = None
                while last is None or not last.state.final:
                    if self.known_jobs[job_id] == last:
                        async with self.changed:
                            await self.changed.wait()
                    last = self.known_jobs[job_id]
                    await send.send(last)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            yield receive
            nursery.cancel_scope.cancel()

    async def cancel(self, job_id):
        await self.job(job_id)
        await self.change(job_id, state=JobState.CANCELLED)
        return self.known_jobs[job_id]

    async def why(self, job_id, unit=None):
        answers = (Answer(JobId(job_id), PEER, 1.0, "busy"),)
        cause = Cause("busy", "One peer is busy", "wait", Remedy.WAIT, (PEER,))
        headline = "0 units have ended." if unit is None else f"Unit {unit} waits."
        return Explanation(await self.job(job_id), headline, (cause,), answers)

    async def receipts(self, job_id):
        await self.job(job_id)
        return [blob_id_of(b"envelope")]

    async def receipt(self, receipt_id):
        if receipt_id != blob_id_of(b"envelope"):
            raise JobError("there is no such receipt", code="no_such_receipt")
        return b"envelope"

    async def pause(self, device, for_s):
        if device not in {None, "cpu"}:
            raise ConfigError(f"no device {device}", code="no_such_device", hint="it has cpu")
        self.paused = (device, for_s)
        return owner_view(cause="paused")

    async def resume(self, device):
        self.paused = ("resumed", device)
        return owner_view()

    async def reload(self):
        if self.bad_settings:
            raise ConfigError("deny: no", code="bad_setting", hint="write it well")
        return RELOADED

    def log_level(self):
        return LogLevelView("info", "info", {})

    def set_log_level(self, level, module):
        return LogLevelView(level, "info", {} if module is None else {module: level})

    def end(self, *, now):
        self.ended = now

    def metrics(self):
        return b"# TYPE shoal_tasks gauge\nshoal_tasks 7.0\n"

    async def connect(self, address):
        if "p2p" not in address:
            raise NetworkError(f"{address} cannot be reached", code="dial_failed")
        return PEER


def owner_view(cause=None):
    stance = StanceView(device="cpu", peers=cause is None, own=True, cause=cause)
    return OwnerView(
        provide=True,
        serve="anyone",
        sandboxed=False,
        allowed=0,
        denied=0,
        min_price=0.0,
        cores=1,
        memory_bytes=1,
        stances=(stance,),
    )


def model_bytes(weight_elements=0):
    """y = x + 1 over a batch of rows of 4, with a weight of this size beside it."""
    nodes = [helper.make_node("Add", ["x", "one"], ["dir/y"])]
    initializers = [helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])]
    outputs = [helper.make_tensor_value_info("dir/y", TensorProto.FLOAT, ["n", 4])]
    if weight_elements:
        values = np.arange(weight_elements, dtype=np.float32)
        initializers.append(
            helper.make_tensor(
                "w", TensorProto.FLOAT, [weight_elements], values.tobytes(), raw=True
            )
        )
        nodes.append(helper.make_node("Identity", ["w"], ["z"]))
        outputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [weight_elements]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        outputs,
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 8
    return model.SerializeToString()


def rows(count):
    return np.arange(count * 4, dtype=np.float32).reshape(count, 4)


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
            assert first >= 4  # manifest, graph, weight, input
            client.run(model_bytes(100_000), {"x": rows(1)})
            assert len(puts) == first + 1  # the input, too small to ask about

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
        with trio.fail_after(20):
            while not daemon.known_jobs:
                await trio.testing.wait_all_tasks_blocked(0.01)
            (job_id,) = daemon.known_jobs
            units = daemon.known_units[job_id]
            done = await daemon.blobs.put_bytes(to_blob(rows(1)))
            units[0] = msgspec.structs.replace(
                units[0], state=UnitState.DONE, outputs={"dir/y": done}
            )
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
    ],
)
async def test_wrong_inputs_are_refused_before_anything_is_submitted(
    daemon, socket_path, inputs, code
):
    def work():
        with Client(socket_path) as client, pytest.raises(ProgramError) as caught:
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
    with trio.fail_after(10):
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
