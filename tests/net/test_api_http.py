"""The local API as plain HTTP, asked by curl and by whoever is no client of ours.

The daemon behind it is a small one in memory: see `memory_daemon`.
"""

import io
import json
import os
import socket
from contextlib import suppress

import httpx
import numpy as np
import pytest
import safetensors.numpy
import trio
import trio.testing
from api_clients import blocking, curl
from memory_daemon import MISSING, PEER, QUOTA_BYTES, MemoryDaemon, model_bytes, rows

from shoal.compute.convert import convert
from shoal.compute.tensor import to_blob
from shoal.crypto.content import blob_id_of
from shoal.node.api import make_app, serve_api
from shoal.node.api.server import CONNECTIONS_LIMIT, reading_away
from shoal.node.client import Client


@pytest.fixture
def socket_path(tmp_path):
    return tmp_path / "run" / "shoal.sock"


@pytest.fixture
async def daemon(nursery, socket_path):
    daemon = MemoryDaemon()
    await nursery.start(serve_api, make_app(daemon), socket_path)
    return daemon


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


async def test_a_body_that_is_refused_half_way_is_answered_though_much_of_it_is_still_to_come(
    daemon, socket_path
):
    def work():
        transport = httpx.HTTPTransport(uds=str(socket_path))
        with httpx.Client(transport=transport, base_url="http://shoal") as web:
            pieces = (bytes(1 << 20) for _ in range(4 * (QUOTA_BYTES >> 20)))
            got = web.put("/v1/blobs", content=pieces)
            assert (got.status_code, got.json()["error"]["code"]) == (507, "quota_exceeded")
            assert web.get("/v1/status").status_code == 200

    await blocking(work)
    assert daemon.blobs.unfinished == 0


async def test_an_answer_before_the_body_was_read_makes_room_for_its_own_end():
    """As with the HTTP server, whose end of a request goes the way of the body."""
    into, out = trio.open_memory_channel(1)
    piece = {"type": "http.request", "body": b"x", "more_body": True}

    async def refuse_unread(_scope, _receive, send):
        await send({"type": "http.response.body", "body": b"no"})

    async def end(_message):
        await into.send({"type": "http.disconnect"})

    async def keep_sending():
        with suppress(trio.BrokenResourceError):
            while True:
                await into.send(piece)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_sending)
        await trio.testing.wait_all_tasks_blocked()
        scope = {"type": "http", "method": "PUT"}
        with trio.fail_after(2):
            await reading_away(refuse_unread)(scope, out.receive, end)
        out.close()


@pytest.mark.parametrize(
    ("job", "where"),
    [
        ({"program": "x", "units": []}, "program: 'x' is not a content id"),
        (
            {"program": MISSING, "units": [{"a": MISSING}, {"a": MISSING, "b": "x"}]},
            "unit 1, input 'b': 'x' is not a content id",
        ),
    ],
)
async def test_an_id_in_a_job_that_is_none_is_named_with_its_place(
    daemon, socket_path, job, where
):
    data = json.dumps({"policy": "run", **job})
    status, body = await curl(socket_path, "--json", data, "http://shoal/v1/jobs")
    told = json.loads(body)["error"]
    assert (status, told["code"], told["message"]) == (400, "bad_blob_id", where)


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
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_api, make_app(daemon), socket_path)
            raw.connect(str(socket_path))
            raw.sendall(f"GET /v1/blobs/{blob_id} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            stream = trio.socket.from_stdlib_socket(raw)
            await stream.recv(1)  # it has begun, and now nobody reads on
            nursery.cancel_scope.cancel()
    stream.close()
    assert not socket_path.exists()
