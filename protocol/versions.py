"""Versions of the protocol: who understands whom, and how much of what a peer says.

A version is (major, minor). A node says its own in `Hello`, in every signed statement
and, for people, in libp2p's identify.

**Majors** do not mix. Nodes of different majors refuse each other, and whoever is
refused is told which of the two to upgrade. The major is part of the protocol ids and
of the gossip topic, so a node that knows two majors can serve both.

**Minors** add, and change nothing that is there: new messages, new fields with a
default, new reasons of a refusal. Bounds and meanings stay.

- What is said to one peer goes by that peer's `Hello`: a node says no message, field or
  reason that is younger than its peer (`protocol.vocabulary` holds since when each is
  known). Asking for what a peer is too old for fails at the asking node, by name.
- What is heard of a peer, on a blob stream too, is taken by the same `Hello`, and a signed
  statement by the version that stands in itself. From a version newer than one's own,
  unknown fields are ignored, in whatever struct they stand, and a request that is not
  known is answered by a `Problem` that says so, after which the stream goes on. From
  one's own version and older ones, either is an error: nobody can mean anything by it.
- A statement is signed for everybody and read by nodes of any minor, so nothing in it is
  held back. Whoever ignores a field of it keeps and passes on the bytes as they came.

`Hello` and `Problem` keep their fields in every version, majors included, as do the
frames around them: two nodes that share nothing else must be able to say so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

import msgspec

from shoal.protocol.limits import PROTOCOL_MAJOR, PROTOCOL_MINOR

Version: TypeAlias = tuple[int, int]
"""(major, minor)."""

OWN: Version = (PROTOCOL_MAJOR, PROTOCOL_MINOR)


def is_newer(theirs: Version) -> bool:
    """Whether a peer of this version may say what this node does not know."""
    return theirs > OWN


def misfit(theirs: Version) -> str | None:
    """Why nothing can be said to a node of this version, for this node's operator."""
    if theirs[0] == OWN[0]:
        return None
    advice = "upgrade this node" if theirs > OWN else "its operator must upgrade it"
    return f"speaks protocol {theirs[0]}: {advice}"


def said_version(value: Any) -> Version | None:
    """The version in an unpacked `Hello` or statement, where one stands there."""
    try:
        return msgspec.convert(value, _Versioned, strict=True).protocol
    except msgspec.ValidationError:
        return None


class _Versioned(msgspec.Struct, frozen=True):
    """The one field that is read before all others. Others are ignored."""

    protocol: tuple[int, int]


# --- the part that this version knows ----------------------------------------------

_Cut: TypeAlias = Callable[[Any], Any]


def known_part(value: Any, kind: Any) -> Any:
    """An unpacked ``value`` without what the structs of ``kind`` do not know.

    What does not fit ``kind`` otherwise stays as it is, for the decoder to refuse.
    """
    return _cut_for(kind)(value)


@cache
def _cut_for(kind: Any) -> _Cut:
    return _cut(msgspec.inspect.type_info(kind))


def _cut(kind: msgspec.inspect.Type) -> _Cut:  # a case per kind
    match kind:
        case msgspec.inspect.Metadata():
            return _cut(kind.type)
        case msgspec.inspect.StructType(array_like=True):
            return _cut_tuple([_cut(field.type) for field in kind.fields])
        case msgspec.inspect.StructType():
            cuts = {field.encode_name: _cut(field.type) for field in kind.fields}
            if kind.tag_field is not None:
                cuts[kind.tag_field] = _whole
            return lambda value: (
                {name: cuts[name](part) for name, part in value.items() if name in cuts}
                if isinstance(value, dict)
                else value
            )
        case msgspec.inspect.UnionType():
            return _cut_union(kind)
        case msgspec.inspect.VarTupleType():
            item = _cut(kind.item_type)
            return lambda value: (
                [item(part) for part in value] if isinstance(value, list) else value
            )
        case msgspec.inspect.TupleType():
            items = [_cut(item) for item in kind.item_types]
            return lambda value: (
                [item(part) for item, part in zip(items, value, strict=True)]
                if isinstance(value, list) and len(value) == len(items)
                else value
            )
    return _whole


def _cut_tuple(fields: list[_Cut]) -> _Cut:
    """For a struct that is an array on the wire: new fields come after the known ones."""
    return lambda value: (
        [cut(part) for cut, part in zip(fields, value, strict=False)]
        if isinstance(value, list)
        else value
    )


def _cut_union(kind: msgspec.inspect.UnionType) -> _Cut:
    """Several tagged structs, or one kind of value and nil."""
    tagged = {
        (one.tag_field, one.tag): _cut(one)
        for one in kind.types
        if isinstance(one, msgspec.inspect.StructType) and one.tag is not None
    }
    others = [
        _cut(one)
        for one in kind.types
        if not isinstance(one, msgspec.inspect.NoneType)
        and not (isinstance(one, msgspec.inspect.StructType) and one.tag is not None)
    ]

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            for (field, tag), of_struct in tagged.items():
                if value.get(field) == tag:
                    return of_struct(value)
        for other in others:
            value = other(value)
        return value

    return cut


def _whole(value: Any) -> Any:
    return value
