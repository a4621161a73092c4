"""What the tests are fed: honest samples, and Hypothesis strategies for the wire.

Samples are functions that give one good thing and take changes by name.
`structs_of` reads the bounds out of the types themselves, so that a new message
is covered by every property on the day it is written.
"""

from __future__ import annotations

from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import strategies as st
from msgspec import inspect

from shoal.crypto.content import blob_id_of
from shoal.crypto.envelope import Statement
from shoal.crypto.identity import Identity
from shoal.protocol.codec import encode
from shoal.protocol.messages import Frame
from shoal.protocol.negotiation_messages import (
    AwardOffer,
    Bid,
    Call,
    UnitRequest,
    UnitResult,
    UnitsRequest,
    UnitsResult,
)
from shoal.protocol.statements import (
    Acknowledgement,
    Advert,
    Award,
    DeviceOffer,
    Receipt,
    Renewal,
    TraceRoot,
)
from shoal.protocol.versions import OWN

ALICE, BOB, CAROL, MALLORY = (
    Identity(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)) for number in range(4)
)
"""A requester, a provider, another peer and an attacker; their keys never change."""

CALL_ID = "c0" * 16
NONCE = "d" * 32
PROGRAM = blob_id_of(b"a program")
INPUT = blob_id_of(b"an input")
OUTPUT = blob_id_of(b"an output")


def a_call(**changes: Any) -> Call:
    call = Call(
        call=CALL_ID,
        program=PROGRAM,
        numeric_class="fp32",
        precision=None,
        units=10,
        input_bytes=1000,
        program_bytes=2000,
        time_limit_s=60.0,
        memory_bytes=1 << 30,
    )
    return msgspec.structs.replace(call, **changes)


def a_bid(**changes: Any) -> Bid:
    bid = Bid(
        call=CALL_ID,
        nonce=NONCE,
        device="cpu",
        executor="onnxruntime",
        price=1.5,
        units_max=5,
        in_flight_max=2,
        valid_s=10.0,
        batch_max=2,
    )
    return msgspec.structs.replace(bid, **changes)


def an_award(**changes: Any) -> Award:
    award = Award(
        protocol=(1, 0),
        call=CALL_ID,
        nonce=NONCE,
        requester=ALICE.peer_id,
        provider=BOB.peer_id,
        program=PROGRAM,
        numeric_class="fp32",
        precision=None,
        units_max=4,
        price=1.5,
        idle_s=30.0,
        issued_at_ms=1_700_000_000_000,
    )
    return msgspec.structs.replace(award, **changes)


def an_offer(signer: Identity = ALICE, **changes: Any) -> AwardOffer:
    envelope = signer.sign(Statement.AWARD, encode(an_award(**changes)))
    return AwardOffer(call=CALL_ID, award=envelope)


def a_unit(name: str = "job/0") -> UnitRequest:
    return UnitRequest(call=CALL_ID, unit=name, inputs=(("x", INPUT),))


def some_units(*names: str) -> UnitsRequest:
    return UnitsRequest(call=CALL_ID, units=tuple(map(a_unit, names)))


def some_results(*names: str) -> UnitsResult:
    return UnitsResult(call=CALL_ID, answers=tuple(map(a_result, names)))


def a_result(name: str = "job/0", blobs: tuple[bytes, ...] = ()) -> UnitResult:
    return UnitResult(call=CALL_ID, unit=name, receipt=b"a receipt", blobs=blobs)


def a_receipt(**changes: Any) -> Receipt:
    receipt = Receipt(
        protocol=(1, 0),
        exact_spec="",
        award="aa" * 32,
        unit="job/0",
        program=PROGRAM,
        numeric_class="fp32",
        precision=None,
        inputs=(("x", INPUT),),
        outputs=(("y", OUTPUT),),
        error=None,
        trace=None,
        provider=BOB.peer_id,
        requester=ALICE.peer_id,
        started_at_ms=1_700_000_000_000,
        ended_at_ms=1_700_000_000_100,
        device="a CPU",
        runtime="onnxruntime 1.32",
    )
    return msgspec.structs.replace(receipt, **changes)


def signed_receipt(signer: Identity = BOB, **changes: Any) -> bytes:
    return signer.sign(Statement.RECEIPT, encode(a_receipt(**changes)))


def an_acknowledgement(**changes: Any) -> Acknowledgement:
    acknowledgement = Acknowledgement(
        protocol=OWN,
        award="aa" * 32,
        receipts=("bb" * 32, "cc" * 32),
        requester=ALICE.peer_id,
        provider=BOB.peer_id,
        issued_at_ms=1_700_000_000_200,
    )
    return msgspec.structs.replace(acknowledgement, **changes)


def signed_acknowledgement(signer: Identity = ALICE, **changes: Any) -> bytes:
    return signer.sign(Statement.ACKNOWLEDGEMENT, encode(an_acknowledgement(**changes)))


def a_trace_root(**changes: Any) -> TraceRoot:
    root = TraceRoot(
        protocol=OWN,
        receipt="bb" * 32,
        stage=None,
        root=bytes(32),
        leaves=3,
        provider=BOB.peer_id,
    )
    return msgspec.structs.replace(root, **changes)


def signed_trace_root(signer: Identity = BOB, **changes: Any) -> bytes:
    return signer.sign(Statement.TRACE_ROOT, encode(a_trace_root(**changes)))


WALL_MS = 1_700_000_000_000
"""The tests' wall clock."""


def signed_advert(
    node: Identity = ALICE, signer: Identity | None = None, **changes: Any
) -> bytes:
    advert = Advert(
        peer=node.peer_id,
        sequence=1,
        issued_at_ms=WALL_MS,
        lifetime_s=60.0,
        protocol=(1, 0),
        agent="shoal/test",
        addresses=("/ip4/127.0.0.1/tcp/4001",),
        devices=(DeviceOffer(id="cpu", kind="cpu", name="a CPU", memory_bytes=1 << 33),),
        numeric_classes=("fp32",),
        providing=True,
    )
    advert = msgspec.structs.replace(advert, **changes)
    return (signer or node).sign(Statement.ADVERT, encode(advert))


def signed_renewal(node: Identity = ALICE, **changes: Any) -> bytes:
    renewal = Renewal(sequence=1, number=1, issued_at_ms=WALL_MS, lifetime_s=60.0)
    renewal = msgspec.structs.replace(renewal, **changes)
    return node.sign(Statement.RENEWAL, encode(renewal))


# --- strategies -----------------------------------------------------------------

_TEXT = st.characters(codec="utf-8")
_LIST_LENGTH = 3
"""Lists longer than this tell nothing new and make examples slow."""


def structs_of(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a struct, or of a union of structs, all within their bounds."""
    return _values(inspect.type_info(kind)).map(
        lambda value: msgspec.convert(value, kind, strict=True)
    )


def frames() -> st.SearchStrategy[Any]:
    """Everything that a control stream carries."""
    return structs_of(Frame)


def _values(kind: inspect.Type) -> st.SearchStrategy[Any]:  # noqa: C901  # a case per kind
    """Builtin values that fit ``kind``, as the codec makes of a struct."""
    match kind:
        case inspect.Metadata():
            return _values(kind.type)
        case inspect.NoneType():
            return st.none()
        case inspect.BoolType():
            return st.booleans()
        case inspect.IntType(multiple_of=int(step)):
            return st.integers(-(-kind.ge // step), kind.le // step).map(lambda n: n * step)
        case inspect.IntType():
            return st.integers(kind.ge, kind.le)
        case inspect.FloatType():
            low, strictly = (kind.ge, False) if kind.gt is None else (kind.gt, True)
            return st.floats(low, kind.le, exclude_min=strictly, allow_nan=False)
        case inspect.StrType(pattern=str(pattern)):
            return st.from_regex(pattern, fullmatch=True)
        case inspect.StrType():
            return st.text(_TEXT, min_size=kind.min_length or 0, max_size=kind.max_length)
        case inspect.BytesType():
            low = kind.min_length or 0
            return st.binary(min_size=low, max_size=min(kind.max_length or 100, 100))
        case inspect.EnumType():
            return st.sampled_from([member.value for member in kind.cls])
        case inspect.TupleType():
            return st.tuples(*map(_values, kind.item_types))
        case inspect.VarTupleType():
            most = min(_LIST_LENGTH, kind.max_length or _LIST_LENGTH)
            least = kind.min_length or 0
            return st.lists(_values(kind.item_type), min_size=least, max_size=most)
        case inspect.UnionType():
            return st.one_of(*map(_values, kind.types))
        case inspect.StructType(array_like=True):
            return st.tuples(*(_values(field.type) for field in kind.fields))
        case inspect.StructType():
            fields = {field.encode_name: _values(field.type) for field in kind.fields}
            if kind.tag is not None:
                fields[kind.tag_field] = st.just(kind.tag)
            return st.fixed_dictionaries(fields)
    raise AssertionError(f"no strategy for {kind}")


def one_byte_changed(data: bytes) -> st.SearchStrategy[bytes]:
    """``data`` with exactly one of its bytes different."""
    return st.builds(
        lambda at, by: data[:at] + bytes([data[at] ^ by]) + data[at + 1 :],
        st.integers(0, len(data) - 1),
        st.integers(1, 255),
    )


_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(_TEXT, max_size=80)
    | st.binary(max_size=80)
)

odd_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(_TEXT) | st.binary(), inner, max_size=4)
    ),
    max_leaves=8,
)
"""Anything that msgpack can write, fitting or not."""
