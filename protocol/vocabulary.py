"""Since which minor version each word is known, and how a stream goes by it.

A new message gets a line in `SINCE`, a new field of an old message one in
`FIELDS_SINCE`, a new reason one in `REASONS_SINCE`: that is all there is to do for
peers that do not know it yet. The rules are in `protocol.versions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from shoal.protocol.challenge_messages import (
    Challenge,
    Committed,
    Draw,
    Opened,
    ProofOffer,
    Proofs,
    ProofsWanted,
)
from shoal.protocol.channel_messages import ChannelOffered, ChannelWanted, NoChannel
from shoal.protocol.checking_messages import (
    Accusation,
    Accusations,
    AccusationsWanted,
    Acknowledge,
    LeafGiven,
    LeafWanted,
    NodesGiven,
    NodesWanted,
    Reveal,
    TraceGiven,
    TraceWanted,
)
from shoal.protocol.codec import fit, unpack
from shoal.protocol.errors import VersionError
from shoal.protocol.limits import PROTOCOL_MAJOR, Count
from shoal.protocol.messages import Adverts, Digest, Done, Hello, Problem, Request, Response
from shoal.protocol.negotiation_messages import (
    AwardOffer,
    Bid,
    Call,
    Cancel,
    Drop,
    Lease,
    Reason,
    Refusal,
    Release,
    Share,
    Shared,
    UnitRefusal,
    UnitRequest,
    UnitResult,
    UnitsRequest,
    UnitsResult,
)
from shoal.protocol.reachability_messages import (
    DialBack,
    DialedBack,
    Introduce,
    Introduction,
    NotIntroduced,
)
from shoal.protocol.versions import OWN, Version, is_newer, misfit, said_version

if TYPE_CHECKING:
    from collections.abc import Mapping

SINCE: Mapping[type[msgspec.Struct], int] = {
    Hello: 0,
    Digest: 0,
    Adverts: 0,
    Call: 0,
    Bid: 0,
    Refusal: 0,
    AwardOffer: 0,
    Lease: 0,
    UnitRequest: 0,
    UnitResult: 0,
    Cancel: 0,
    Release: 0,
    Done: 0,
    Problem: 0,
    Challenge: 1,
    Committed: 1,
    Draw: 1,
    Opened: 1,
    ProofOffer: 1,
    DialBack: 2,
    DialedBack: 2,
    Introduce: 2,
    Introduction: 2,
    NotIntroduced: 2,
    ProofsWanted: 2,
    Proofs: 2,
    Share: 3,
    Shared: 3,
    Drop: 3,
    UnitsRequest: 3,
    UnitsResult: 3,
    Acknowledge: 4,
    Reveal: 4,
    TraceWanted: 4,
    TraceGiven: 4,
    NodesWanted: 4,
    NodesGiven: 4,
    LeafWanted: 4,
    LeafGiven: 4,
    Accusation: 4,
    AccusationsWanted: 4,
    Accusations: 4,
    ChannelWanted: 5,
    ChannelOffered: 5,
    NoChannel: 5,
}
"""The minor that brought each message."""

FIELDS_SINCE: Mapping[tuple[type[msgspec.Struct], str], int] = {
    (Refusal, "missing"): 3,
    (UnitRequest, "keep"): 3,
    (UnitRequest, "sources"): 3,
    (UnitResult, "kept"): 3,
    (Bid, "batch_max"): 3,
    (Cancel, "others"): 3,
    (UnitRequest, "trace"): 4,
    (AwardOffer, "sources"): 5,
    (UnitResult, "times"): 5,
    (Bid, "at_once"): 6,
}
"""The minor that brought a field, where it is younger than its message. It has a default."""

REASONS_SINCE: Mapping[Reason, int] = {
    Reason.BANNED: 4,
    Reason.UNSETTLED: 4,
}
"""The minor that brought a reason, where it is not of 1.0. Older peers hear `INTERNAL`."""

UNITS_WITH_AWARD_SINCE = 5
"""The minor from which on a provider takes what one stream brings in order, so that units may
follow an award before its lease has come."""

SIGNED_TOGETHER_SINCE: Version = (PROTOCOL_MAJOR, 5)
"""The version that reads statements under one signature (`crypto.envelope.seal_many`)."""

Body = TypeVar("Body", bound=msgspec.Struct)
Frame = TypeVar("Frame", Request, Response)


def knows(theirs: Version, message: type[msgspec.Struct]) -> bool:
    """Whether a node of this version knows a message."""
    return theirs >= (PROTOCOL_MAJOR, SINCE[message])


def knows_field(theirs: Version, message: type[msgspec.Struct], name: str) -> bool:
    """Whether a node of this version knows a field of a message."""
    return theirs >= (PROTOCOL_MAJOR, FIELDS_SINCE[message, name])


def takes_units_with_award(theirs: Version) -> bool:
    """Whether units may be said to a provider of this version right behind an award."""
    return theirs >= (PROTOCOL_MAJOR, UNITS_WITH_AWARD_SINCE)


def said_to(theirs: Version, body: Body) -> Body:
    """``body`` in words that a peer of this version knows.

    Raises:
        VersionError: ``peer_too_old`` for this message altogether.
    """
    kind = type(body)
    if not knows(theirs, kind):
        raise VersionError(
            f"a peer of protocol {theirs[0]}.{theirs[1]} does not know {kind.__name__}, which "
            f"came with {PROTOCOL_MAJOR}.{SINCE[kind]}",
            code="peer_too_old",
            hint="its operator can upgrade it",
        )
    if theirs >= OWN:
        return body
    match body:
        case UnitsRequest():
            units = tuple(_in_words_of(theirs, unit) for unit in body.units)
            return body if units == body.units else msgspec.structs.replace(body, units=units)
        case UnitsResult():
            answers = tuple(_in_words_of(theirs, answer) for answer in body.answers)
            if answers != body.answers:
                return msgspec.structs.replace(body, answers=answers)
    return _in_words_of(theirs, body)


def _in_words_of(theirs: Version, body: Body) -> Body:
    """A struct alone without the fields, and the reason, that a peer does not know."""
    kind = type(body)
    for (holder, name), since in FIELDS_SINCE.items():
        if holder is kind and since > theirs[1]:
            default = _default(kind, name)
            if getattr(body, name) != default:
                body = msgspec.structs.replace(body, **{name: default})
    if not isinstance(body, Refusal | UnitRefusal):
        return body
    since = REASONS_SINCE.get(body.reason, 0)
    return msgspec.structs.replace(body, reason=Reason.INTERNAL) if since > theirs[1] else body


@dataclass(frozen=True, slots=True)
class UnknownWord:
    """A frame of a newer peer whose tag this version does not know."""

    id: int
    tag: str

    def problem(self) -> Problem:
        """The answer to it."""
        return Problem(
            code="unknown_message",
            message=f"this peer speaks protocol {OWN[0]}.{OWN[1]}, which has no message "
            f"{self.tag!r:.60}: upgrade this peer",
        )


def read_greeting(data: bytes, kind: type[Frame]) -> Frame:
    """Read the first frame of a stream, in which the peer's version stands or nothing is said.

    Raises:
        RemoteProtocolError: As `protocol.codec.decode`.
    """
    value = unpack(data)
    theirs = said_version(value.get("body") if isinstance(value, dict) else None)
    if theirs is None:  # a problem names no version, and whoever has one with us may be of any
        unknown = kind is Response
    else:
        unknown = is_newer(theirs) or misfit(theirs) is not None
    return _fit(value, kind, newer=unknown)


def read_frame(data: bytes, kind: type[Frame], theirs: Version) -> Frame | UnknownWord:
    """Read a later frame of a peer whose version is known.

    Raises:
        RemoteProtocolError: As `protocol.codec.decode`.
    """
    value, newer = unpack(data), is_newer(theirs)
    if newer and (unknown := _unknown_word(value, kind)) is not None:
        return unknown
    return _fit(value, kind, newer=newer)


def _fit(value: Any, kind: type[Frame], *, newer: bool) -> Frame:
    frame: Frame = fit(value, kind, newer=newer)
    return frame


class _Tagged(msgspec.Struct, frozen=True):
    """What can be read of a body that is not known."""

    type: str


class _Envelope(msgspec.Struct, frozen=True):
    """What can be read of a frame around it."""

    type: str
    id: Count
    body: _Tagged


_TAGS = {kind.__struct_config__.tag for kind in SINCE}


def _unknown_word(value: Any, kind: type[Request | Response]) -> UnknownWord | None:
    try:
        frame = msgspec.convert(value, _Envelope, strict=True)
    except msgspec.ValidationError:
        return None
    if frame.type != kind.__struct_config__.tag or frame.body.type in _TAGS:
        return None
    return UnknownWord(frame.id, frame.body.type)


def _default(kind: type[msgspec.Struct], name: str) -> Any:
    return next(field.default for field in msgspec.structs.fields(kind) if field.name == name)
