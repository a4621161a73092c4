"""The request by which one unit comes and its result goes, as both ends know it."""

import pytest

from shoal.node import quick_request
from shoal.node.quick_request import QuickRequest

PATH = "/v1/jobs/0123456789abcdefABCDEF01234/units"
QUERY = {"at": 7, "after": -1, "order": "ended", "wait_s": 0.1}
WHOLE = quick_request.encode(PATH, QUERY, b"body")


def test_what_a_client_writes_the_daemon_knows():
    known = quick_request.decode(WHOLE)
    assert known == QuickRequest("0123456789abcdefABCDEF01234", 7, -1, 0.1, b"body")


@pytest.mark.parametrize(
    "data",
    [
        WHOLE[:-1],
        WHOLE + b"P",
        WHOLE + WHOLE,
        WHOLE[:40],
        b"",
        WHOLE.replace(b"POST", b"PUT"),
        WHOLE.replace(b"host: shoal", b"Host: shoal"),
        WHOLE.replace(b"\r\n\r\n", b"\r\nexpect: 100-continue\r\n\r\n"),
        WHOLE.replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\n"),
        WHOLE.replace(b"content-length: 4", b"content-length: 4\r\ncontent-length: 4"),
        WHOLE.replace(b"wait_s=0.1", b"wait_s=1.0"),
        WHOLE.replace(b"at=7", b"at=-7"),
        WHOLE.replace(b"order=ended", b"order=given"),
        WHOLE.replace(b"/units?", b"/../x/units?"),
    ],
)
def test_anything_else_is_left_to_an_http_parser(data):
    assert quick_request.decode(data) is None


def test_an_answer_says_its_status_and_length_in_whatever_case():
    answer = quick_request.encode_answer(201, quick_request.MSGPACK, b"12345")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert quick_request.decode_head(head + b"\r\n") == (201, 5)
    assert body == b"12345"
    other = b"HTTP/1.1 404 Not Found\r\nContent-Length: 17\r\n"
    assert quick_request.decode_head(other) == (404, 17)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 \r\ntransfer-encoding: chunked\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 20\r\ncontent-length: 1\r\n",
        b"HTTP/1.1 200 \r\ncontent-length: -1\r\n",
    ],
)
def test_what_says_no_length_is_no_answer(head):
    assert quick_request.decode_head(head) is None
