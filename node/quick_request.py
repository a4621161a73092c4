"""The request by which one unit comes and its result goes: its words, for both ends.

A program that calls one unit after another makes one for each, and what lies between its
bytes and the daemon takes longer than a trivial unit. It is HTTP as any other, and any HTTP
client may send it; but where it comes whole, and in just these words, `node.api.shortcut`
knows it without an HTTP parser, as does `node.client.lines` its answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

if TYPE_CHECKING:
    from collections.abc import Mapping

BODY_LIMIT_BYTES: Final = 32 << 10
"""A Unix socket takes as much in one piece; for more, an HTTP parser is no great part."""

MSGPACK: Final = "application/msgpack"

_HEAD: Final = re.compile(
    rb"POST /v1/jobs/([0-9A-Za-z]{1,64})/units"
    rb"\?at=(\d{1,18})&after=(-1|\d{1,18})&order=ended&wait_s=(0(?:\.\d{1,6})?) HTTP/1\.1\r\n"
    rb"host: shoal\r\ncontent-type: application/msgpack\r\ncontent-length: (\d{1,5})\r\n\r\n"
)
_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d{1,10})\r\n", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class QuickRequest:
    """A request as it came.

    Attributes:
        job: An id, of a job that there may not be.
        at: The index that the first unit is to have.
        after: Up to where its client has read, in the order in which units end.
        wait_s: How long to wait for the first that ends; under 1 s.
        body: The units.
    """

    job: str
    at: int
    after: int
    wait_s: float
    body: bytes


def encode(path: str, query: Mapping[str, str | int | float], body: bytes) -> bytes:
    """A request's bytes."""
    return (
        f"POST {path}?{urlencode(query)} HTTP/1.1\r\nhost: shoal\r\n"
        f"content-type: {MSGPACK}\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body


def decode(data: bytes) -> QuickRequest | None:
    """The one request that these bytes are, where they are one, whole."""
    head = _HEAD.match(data)
    if head is None or len(data) - head.end() != int(head[5]):
        return None
    body = data[head.end() :]
    return QuickRequest(head[1].decode(), int(head[2]), int(head[3]), float(head[4]), body)


def encode_answer(status: int, content_type: str, body: bytes) -> bytes:
    """An answer's bytes; its status needs no words."""
    return (
        f"HTTP/1.1 {status} \r\ncontent-type: {content_type}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body


def decode_head(head: bytes) -> tuple[int, int] | None:
    """Status and length in bytes of an answer, by its head; None where it says neither.

    Args:
        head: Up to the empty line, the first of its two ends of line among it.
    """
    status, length = _STATUS.match(head), _LENGTH.search(head)
    return (int(status[1]), int(length[1])) if status and length else None
