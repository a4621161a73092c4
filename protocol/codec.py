"""Bytes to frozen structs and back: msgpack with its limits set, then strict types.

Decoding is total: whatever comes in, it gives the struct that was asked for or
raises `RemoteProtocolError` with the field's path in its sentence. There are no
defaults for what is misspelt, no coercions, no NaN, no duplicate keys.
"""

from __future__ import annotations

from math import isfinite
from typing import Any, TypeVar

import msgpack
import msgspec

from shoal.protocol.errors import LocalProtocolError, RemoteProtocolError
from shoal.protocol.limits import FRAME_LIMIT_BYTES, NESTING_LIMIT

T = TypeVar("T")


def encode(message: msgspec.Struct, limit_bytes: int = FRAME_LIMIT_BYTES) -> bytes:
    """Encode one message or payload.

    Raises:
        LocalProtocolError: It is over ``limit_bytes``, or holds NaN.
    """
    value = msgspec.to_builtins(message, builtin_types=(bytes,))
    try:
        _check(value)
        data: bytes = msgpack.packb(value)
    except (ValueError, TypeError) as error:
        raise LocalProtocolError(
            f"{type(message).__name__} cannot be encoded: {error}", code="unencodable"
        ) from None
    if len(data) > limit_bytes:
        raise LocalProtocolError(
            f"{type(message).__name__} has {len(data)} bytes, and {limit_bytes} may be sent",
            code="frame_too_large",
        )
    return data


def decode(data: bytes, kind: type[T] | Any, limit_bytes: int = FRAME_LIMIT_BYTES) -> T:
    """Decode one message or payload of ``kind`` (a struct or a union of tagged ones).

    Raises:
        RemoteProtocolError: ``frame_too_large``, ``not_msgpack`` or ``bad_message``.
    """
    if len(data) > limit_bytes:
        raise RemoteProtocolError(
            f"a message of {len(data)} bytes, and {limit_bytes} are allowed",
            code="frame_too_large",
        )
    try:
        value = msgpack.unpackb(
            data,
            object_pairs_hook=_unique_keys,
            strict_map_key=True,
            max_str_len=limit_bytes,
            max_bin_len=limit_bytes,
            max_array_len=limit_bytes // 2,
            max_map_len=256,
            max_ext_len=0,
        )
        _check(value)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise RemoteProtocolError(
            f"a message is not msgpack within our limits: {error}"[:400], code="not_msgpack"
        ) from None
    try:
        result: T = msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        raise RemoteProtocolError(
            f"a message does not fit the protocol: {error}"[:400], code="bad_message"
        ) from None
    return result


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one map")
    return result


def _check(value: object, depth: int = 0) -> None:
    """Refuse NaN, infinity and deep nesting anywhere in a decoded value."""
    if depth > NESTING_LIMIT:
        raise ValueError(f"nested deeper than {NESTING_LIMIT}")
    match value:
        case float() if not isfinite(value):
            raise ValueError(f"{value} is not a finite number")
        case list() | tuple():
            for item in value:
                _check(item, depth + 1)
        case dict():
            for item in value.values():
                _check(item, depth + 1)
