"""What a request says beside its route: ids in its path, words in its query, JSON in its body.

Each is checked here, and a `RequestError` names what is wrong with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec

from shoal.crypto.content import BlobId, check_blob_id
from shoal.node.errors import RequestError
from shoal.node.records import JobId
from shoal.protocol.limits import PeerText

if TYPE_CHECKING:
    from starlette.requests import Request

Body = TypeVar("Body")
Word = TypeVar("Word", bound=str)

WAIT_LIMIT_S = 3600.0
"""How long one request may wait for a job; a client may ask again."""


def decode(body: bytes, kind: type[Body]) -> Body:
    """A JSON body as a ``kind``; raises RequestError."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        name = getattr(kind, "__name__", "list").strip("_")
        raise RequestError(
            f"the body is not a {name}: {error}", hint="docs/API.md says what it consists of"
        ) from None


def blob_id_in(request: Request) -> BlobId:
    """The content id in a path; raises VerificationError."""
    return check_blob_id(request.path_params["id"])


def job_id_in(request: Request) -> JobId:
    """The job in a path, which there may not be."""
    return JobId(request.path_params["id"])


def peer_id(text: str) -> str:
    """A peer's id; raises RequestError."""
    try:
        return msgspec.convert(text, PeerText)
    except msgspec.ValidationError:
        raise RequestError(
            f"{text[:80]!r} is no peer's id", hint="`shoal peers` lists those that are known"
        ) from None


def peer_asked_for(request: Request) -> str | None:
    """The peer in a query, where there is one; raises RequestError."""
    text = request.query_params.get("peer")
    return None if text is None else peer_id(text)


def content_type(request: Request) -> str:
    """The type of a body, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip()


def cursor(request: Request) -> int:
    """Where to go on: -1, or a whole number; raises RequestError."""
    if request.query_params.get("after", "-1") == "-1":
        return -1
    return whole_number(request, "after", 0)


def one_of(request: Request, name: str, choices: tuple[Word, ...]) -> Word:
    """One of some words, the first where none is given; raises RequestError."""
    text = request.query_params.get(name, choices[0])
    for choice in choices:
        if text == choice:
            return choice
    raise RequestError(f"{name} is {' or '.join(choices)}, and not {text[:40]!r}")


def whole_number(request: Request, name: str, default: int, limit: int = (1 << 63) - 1) -> int:
    """A whole number in a query; raises RequestError."""
    text = request.query_params.get(name, str(default))
    if not text.isascii() or not text.isdecimal() or int(text[:20]) > limit:
        raise RequestError(f"{name} is a whole number up to {limit}, and not {text[:40]!r}")
    return int(text)


def seconds(request: Request, name: str, default: float) -> float:
    """A time in a query, in seconds; raises RequestError."""
    text = request.query_params.get(name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= WAIT_LIMIT_S:
        raise RequestError(
            f"{name} is a number of seconds from 0 to {WAIT_LIMIT_S:.0f}, and not {text[:40]!r}"
        )
    return value
