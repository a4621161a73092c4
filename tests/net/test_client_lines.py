"""How the blocking client speaks HTTP to a daemon, and to what is none."""

import socket
import threading
from contextlib import contextmanager

import pytest

from shoal.node.client import Client, lines
from shoal.node.client.exchange import Request
from shoal.node.client.lines import LineBrokenError, Lines
from shoal.node.errors import DaemonError, DaemonUnreachableError, WaitTimeoutError

LIMIT_S = 30.0


@pytest.fixture
def socket_path(tmp_path):
    return tmp_path / "shoal.sock"


@contextmanager
def serving(path, *answers):
    """Take one connection and serve it: each answer is bytes, or is called with the socket."""
    said = []

    def serve():
        accepted, _ = listening.accept()
        with accepted:
            accepted.settimeout(LIMIT_S)
            for answer in answers:
                said.append(accepted.recv(1 << 16))
                if callable(answer):
                    answer(accepted)
                else:
                    accepted.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.settimeout(LIMIT_S)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield said
        finally:
            thread.join(LIMIT_S)
            assert not thread.is_alive()


def exchange(to_daemon, request, limit_s=LIMIT_S):
    with to_daemon.answer(request, limit_s) as answer:
        return answer.status, b"".join(answer.pieces)


def chunked(*pieces):
    head = b"HTTP/1.1 200 \r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in pieces)


def test_requests_follow_one_another_on_one_line(socket_path):
    to_daemon = Lines(socket_path)
    first = b"HTTP/1.1 200 \r\ncontent-length: 2\r\n\r\nhi"
    with serving(socket_path, first, chunked(b"and ", b"so on", b"")) as said:
        assert exchange(to_daemon, Request("GET", "/a b", {"wait_s": 0.5})) == (200, b"hi")
        assert exchange(to_daemon, Request("POST", "/c", body=b"x")) == (200, b"and so on")
        to_daemon.close()
    assert said[0].startswith(b"GET /a%20b?wait_s=0.5 HTTP/1.1\r\nhost: shoal\r\n")
    assert b"\r\ncontent-length: 1\r\n\r\n" in said[1].lower()


def test_no_more_lines_are_kept_than_leave_room_for_other_clients(socket_path, monkeypatch):
    monkeypatch.setattr(lines, "IDLE_LIMIT", 0)
    to_daemon = Lines(socket_path)
    gone = []
    with serving(socket_path, chunked(b""), lambda _line: gone.append(True)) as said:
        exchange(to_daemon, Request("GET", "/"))
    assert (gone, said[1]) == ([True], b"")  # it was closed


def test_a_line_that_was_idle_for_long_is_not_used_again(socket_path, monkeypatch):
    to_daemon = Lines(socket_path)
    with serving(socket_path, chunked(b"")):
        exchange(to_daemon, Request("GET", "/"))
        (idle,) = to_daemon._idle
        monkeypatch.setattr(lines, "IDLE_LIMIT_S", 0.0)
        fresh = to_daemon._take()
        assert fresh is not idle
        assert idle.socket.fileno() == -1
        fresh.socket.close()


def test_a_refusal_of_an_upload_that_is_not_over_is_an_answer(socket_path):
    taken = threading.Event()

    def refuse(accepted):
        body = b'{"error": {"code": "no_room", "message": "no", "hint": ""}}'
        accepted.sendall(b"HTTP/1.1 507 \r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        accepted.shutdown(socket.SHUT_RD)
        taken.set()

    def endless():
        yield b"x"
        assert taken.wait(LIMIT_S)
        while True:
            yield bytes(1 << 16)

    with serving(socket_path, refuse), Client(socket_path) as client:
        with pytest.raises(DaemonError) as caught:
            client._exchange(Request("PUT", "/v1/blobs", body=endless))
        assert (caught.value.code, caught.value.status) == ("no_room", 507)
        assert not client._lines._idle


def test_an_error_of_what_is_sent_is_not_taken_for_the_daemons(socket_path):
    def broken():
        yield b"x"
        raise OSError(5, "the disk is broken")

    ended = []
    with (
        serving(socket_path, lambda accepted: ended.append(_rest(accepted))),
        Client(socket_path) as client,
        pytest.raises(OSError, match="the disk is broken"),
    ):
        client._exchange(Request("PUT", "/v1/blobs", body=broken))
    assert len(ended) == 1  # the line was closed at that, so that no half of a body counts


def _rest(accepted):
    while accepted.recv(1 << 16):
        pass


@pytest.mark.parametrize(
    "says",
    [
        b"",
        b"HTTP/1.1 2",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 \r\ncontent-length: 9\r\n\r\nshort",
        chunked(b"whole", b"half")[:-4],
        chunked(b"whole"),
    ],
)
def test_an_answer_that_breaks_off_is_no_answer(socket_path, says):
    to_daemon = Lines(socket_path)
    with serving(socket_path, says), pytest.raises(LineBrokenError):
        exchange(to_daemon, Request("GET", "/"))
    assert not to_daemon._idle


def test_a_watch_that_breaks_off_does_not_end_as_if_it_were_over(socket_path):
    with (
        serving(socket_path, chunked()),
        Client(socket_path) as client,
        pytest.raises(DaemonUnreachableError),
    ):
        list(client.watch("1" * 27))


def test_a_daemon_that_is_silent_is_told_from_one_that_is_gone(socket_path):
    over = threading.Event()
    with serving(socket_path, lambda _: over.wait(LIMIT_S)), Client(socket_path) as client:
        with pytest.raises(WaitTimeoutError) as caught:
            client._exchange(Request("GET", "/v1/status", answer_limit_s=0.2))
        assert caught.value.code == "daemon_silent"
        over.set()
    with pytest.raises(DaemonUnreachableError):
        client.status()


def test_an_answer_may_take_its_time_where_no_limit_is_given(socket_path):
    to_daemon = Lines(socket_path)
    with serving(socket_path, chunked(b"{}\n", b"")):
        assert exchange(to_daemon, Request("GET", "/"), None) == (200, b"{}\n")
        to_daemon.close()
