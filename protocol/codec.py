"""Bytes to frozen structs and back: msgpack with its limits set, then strict types.

Decoding is total: whatever comes in, it gives the struct that was asked for or
raises `RemoteProtocolError` with the field's path in its sentence. There are no
defaults for what is misspelt, no coercions, no duplicate keys, no extension
types. NaN and infinity are outside the bounds that every float field has. Unknown
fields are errors too, but for those of a newer version (`protocol.versions`).

Encoding checks the same types, so that what this node sends is never what its
peers must refuse.
"""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

import msgpack
import msgspec

from shoal.protocol.errors import LocalProtocolError, RemoteProtocolError
from shoal.protocol.limits import CONTAINERS_LIMIT, FRAME_LIMIT_BYTES, LIST_LIMIT, MAP_LIMIT
from shoal.protocol.versions import known_part

T = TypeVar("T")

_SENTENCE_LIMIT = 250
"""An error's sentence may quote the peer, and may be sent back in a `Text` field."""


def encode(message: msgspec.Struct, limit_bytes: int = FRAME_LIMIT_BYTES) -> bytes:
    """Encode one message or payload.

    Raises:
        LocalProtocolError: It is over ``limit_bytes``, or a field is out of bounds.
    """
    try:
        value = msgspec.to_builtins(message, builtin_types=(bytes,))
        msgspec.convert(value, type(message), strict=True)
        data: bytes = msgpack.packb(value)
    except (ValueError, TypeError, OverflowError) as error:  # ValidationError is a ValueError
        raise LocalProtocolError(
            _sentence(f"{type(message).__name__} cannot be encoded: {error}"),
            code="unencodable",
        ) from None
    if len(data) > limit_bytes:
        raise LocalProtocolError(
            f"{type(message).__name__} has {len(data)} bytes, and {limit_bytes} may be sent",
            code="frame_too_large",
        )
    return data


def decode(
    data: bytes,
    kind: type[T] | Any,
    limit_bytes: int = FRAME_LIMIT_BYTES,
    *,
    newer: bool = False,
) -> T:
    """Decode one message or payload of ``kind`` (a struct or a union of tagged ones).

    Args:
        data: The bytes as they came.
        kind: What they are to be.
        limit_bytes: Their number at most.
        newer: Whether whoever wrote them speaks a newer version, whose fields may be
            unknown here and are then ignored.

    Raises:
        RemoteProtocolError: ``frame_too_large``, ``not_msgpack`` or ``bad_message``.
    """
    result: T = fit(unpack(data, limit_bytes), kind, newer=newer)
    return result


def unpack(data: bytes, limit_bytes: int = FRAME_LIMIT_BYTES) -> Any:
    """The first half of `decode`: msgpack's values, of whatever types; raises as that."""
    if len(data) > limit_bytes:
        raise RemoteProtocolError(
            f"a message of {len(data)} bytes, and {limit_bytes} are allowed",
            code="frame_too_large",
        )
    budget = _Budget()
    try:
        return msgpack.unpackb(
            data,
            list_hook=budget.take_list,
            object_pairs_hook=budget.take_map,
            ext_hook=_refuse_extension,
            strict_map_key=True,
            max_str_len=limit_bytes,
            max_bin_len=limit_bytes,
            max_array_len=LIST_LIMIT,  # msgpack makes room for a list before it is read
            max_map_len=MAP_LIMIT,
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(
            _sentence(f"a message is not msgpack within our limits: {error}"),
            code="not_msgpack",
        ) from None


def fit(value: Any, kind: type[T] | Any, *, newer: bool = False) -> T:
    """The second half of `decode`: what was unpacked as a ``kind``; raises as that."""
    if newer:
        value = known_part(value, kind)
    try:
        result: T = msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        raise RemoteProtocolError(
            _sentence(f"a message does not fit the protocol: {error}"), code="bad_message"
        ) from None
    return result


class _Budget:
    """Counts the lists and maps of one message while they are read."""

    def __init__(self) -> None:
        self._left = CONTAINERS_LIMIT

    def take_list(self, items: list[object]) -> list[object]:
        self._take()
        return items

    def take_map(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        self._take()
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key stands twice in one map")
        return result

    def _take(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"more than {CONTAINERS_LIMIT} lists and maps")


def _refuse_extension(code: int, data: bytes) -> NoReturn:  # noqa: ARG001  # msgpack's form
    raise ValueError(f"extension type {code}")


def _sentence(text: str) -> str:
    """One printable line: ``text`` may quote a name that a peer made up."""
    return "".join(c if c.isprintable() else "�" for c in text[:_SENTENCE_LIMIT])
