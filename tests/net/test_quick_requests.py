"""One unit and its result in one request: the daemon's shortcut, and the client's lines."""

import socket
import threading

import httpx
import msgpack
import pytest
import trio
from memory_daemon import MemoryDaemon, model_bytes, rows

from shoal.compute.tensor import to_blob
from shoal.node import quick_request
from shoal.node.api import make_app, serve_api, server
from shoal.node.client import lines
from shoal.node.client.lines import Lines
from shoal.node.records import JobSpec, Policy

LIMIT_S = 20


@pytest.fixture
def socket_path(tmp_path):
    return tmp_path / "shoal.sock"


@pytest.fixture
async def daemon(nursery, socket_path):
    daemon = MemoryDaemon()
    daemon.keeps_small = True
    await nursery.start(serve_api, make_app(daemon), socket_path)
    return daemon


@pytest.fixture
async def job(daemon):
    program = await daemon.convert_program(model_bytes(), None)
    spec = JobSpec(policy=Policy.MAP, program=program, units=(), open=True)
    return (await daemon.submit(spec, ())).id


async def blocking(work, *arguments):
    with trio.fail_after(LIMIT_S):
        return await trio.to_thread.run_sync(work, *arguments, abandon_on_cancel=True)


def request(job, at, after=-1, wait_s=0.1, body=None):
    query = {"at": at, "after": after, "order": "ended", "wait_s": wait_s}
    body = msgpack.packb({"x": to_blob(rows(1))}) if body is None else body
    return quick_request.encode(f"/v1/jobs/{job}/units", query, body)


class NoServer:
    """In place of the HTTP server: a connection that comes to it was not answered before."""

    def __init__(self, *_):
        raise AssertionError("it came to the HTTP server")


async def test_a_quick_request_is_answered_past_the_http_server(
    daemon, job, socket_path, monkeypatch
):
    monkeypatch.setattr(server, "TCPServer", NoServer)
    to_daemon = Lines(socket_path)
    after = -1
    for at in range(3):
        status, body = await blocking(to_daemon.ask, request(job, at, after), LIMIT_S)
        *units, end = _maps(body)
        assert status == 201
        assert [unit["index"] for unit in units] == [at]
        after = end["after"]
    assert daemon.read == [(0, "ended"), (1, "ended")]
    to_daemon.close()


def _maps(body):
    unpacker = msgpack.Unpacker()
    unpacker.feed(body)
    return unpacker


@pytest.mark.parametrize(
    ("of", "status", "code"),
    [
        (lambda job: request("1" * 27, 0), 404, "no_such_job"),
        (lambda job: request(job, 5), 409, "wrong_place"),
        (lambda job: request(job, 0, body=b"\xc1"), 400, "bad_units"),
        (lambda job: request(job, 0, body=msgpack.packb({"x": 1})), 400, "bad_units"),
    ],
)
async def test_an_error_is_told_as_by_the_route_and_the_connection_goes_on(
    daemon, job, socket_path, of, status, code
):
    to_daemon = Lines(socket_path)
    data = of(job)
    told, body = await blocking(to_daemon.ask, data, LIMIT_S)
    by_route = await blocking(_by_http, socket_path, data)
    assert (told, body) == by_route
    assert (told, httpx.Response(200, content=body).json()["error"]["code"]) == (status, code)
    told, _ = await blocking(to_daemon.ask, request(job, 0), LIMIT_S)
    assert told == 201
    to_daemon.close()


def _by_http(path, data):
    """The same request by a client that writes its head otherwise."""
    head, _, body = data.partition(b"\r\n\r\n")
    target = head.split(b" ")[1].decode()
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://s") as web:
        kind = {"content-type": quick_request.MSGPACK}
        answer = web.post(target, content=body, headers=kind)
    return answer.status_code, answer.content


async def test_what_comes_in_two_pieces_is_answered_all_the_same(daemon, job, socket_path):
    def work():
        data = request(job, 0)
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(socket_path))
            line.settimeout(LIMIT_S)
            line.sendall(data[:-3])
            sent.set()
            assert goes_on.wait(LIMIT_S)
            line.sendall(data[-3:])
            return lines._receive(line)

    sent, goes_on = threading.Event(), threading.Event()
    async with trio.open_nursery() as nursery:

        async def ask():
            answers.append(await blocking(work))

        answers = []
        nursery.start_soon(ask)
        await blocking(sent.wait)
        goes_on.set()
    assert answers[0][0] == 201


async def test_a_line_that_the_daemon_closed_is_not_used_again(daemon, job, socket_path):
    to_daemon = Lines(socket_path)
    await blocking(to_daemon.ask, request(job, 0), LIMIT_S)
    (idle,) = to_daemon._idle
    idle.socket.shutdown(socket.SHUT_RDWR)  # the other end closes its own at that
    assert (await blocking(to_daemon.ask, request(job, 1), LIMIT_S))[0] == 201
    assert idle not in to_daemon._idle
    to_daemon.close()


@pytest.mark.parametrize(
    ("says", "error"),
    [
        (b"", ConnectionError),
        (b"HTTP/1.1 200 \r\n", ConnectionError),
        (b"nonsense\r\n\r\n", ConnectionError),
        (b"HTTP/1.1 200 \r\ncontent-length: 9\r\n\r\nshort", ConnectionError),
        (None, TimeoutError),
    ],
)
async def test_what_is_no_whole_answer_is_an_error_and_its_line_is_closed(
    socket_path, says, error
):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(socket_path))
        listening.listen()

        def serve():
            accepted, _ = listening.accept()
            with accepted:
                accepted.recv(1 << 16)
                if says is None:
                    assert over.wait(LIMIT_S)
                else:
                    accepted.sendall(says)

        over = threading.Event()
        to_it = Lines(socket_path)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(blocking, serve)
            with pytest.raises(error):
                await blocking(to_it.ask, request("1" * 27, 0), 0.2 if says is None else 9)
            over.set()
        assert not to_it._idle


async def test_where_nobody_listens_it_is_an_error(socket_path):
    with pytest.raises(OSError, match="No such file"):
        Lines(socket_path).ask(b"", LIMIT_S)
