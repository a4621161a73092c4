"""What a newer minor adds is ignored; what this version does not have is else refused."""

import msgpack
import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import ALICE, BOB, a_receipt, frames, odd_values, structs_of

from shoal.crypto.envelope import Statement
from shoal.crypto.errors import VerificationError
from shoal.protocol import message_form
from shoal.protocol.blob_messages import BlobAnswer, BlobNext, BlobProof, BlobRequest
from shoal.protocol.codec import decode, encode
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.messages import Frame, Request, Response
from shoal.protocol.statements import (
    Acknowledgement,
    Advert,
    Award,
    CapabilityProof,
    Commitment,
    Receipt,
    TraceRoot,
    open_receipt,
)
from shoal.protocol.versions import OWN
from shoal.protocol.vocabulary import UnknownWord, read_frame

KINDS = (
    *(Frame, Advert, Award, Receipt, Commitment, CapabilityProof),
    *(Acknowledgement, TraceRoot),
    *(BlobRequest, BlobAnswer, BlobNext, BlobProof),
)
NEWER = (OWN[0], OWN[1] + 1)


def tree_of(message):
    """The message as msgpack's values; every map in it is a struct."""
    return msgpack.unpackb(encode(message))


def maps_in(tree):
    if isinstance(tree, dict):
        yield tree
    for part in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(part, dict | list):
            yield from maps_in(part)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_an_unknown_field_in_any_struct_is_ignored_from_a_newer_minor_alone(kind, data):
    message = data.draw(structs_of(kind))
    tree = tree_of(message)
    data.draw(st.sampled_from(list(maps_in(tree))))["new_field"] = data.draw(odd_values)
    try:
        wire = msgpack.packb(tree)
        decode(wire, dict)
    except (OverflowError, RemoteProtocolError):  # nothing that could be on the wire
        assume(False)
    assert decode(wire, kind, newer=True) == message
    with pytest.raises(RemoteProtocolError, match="new_field"):
        decode(wire, kind)


@settings(max_examples=25, deadline=None)
@given(structs_of(Advert))
def test_an_array_that_has_grown_is_cut_from_a_newer_minor_alone(advert):
    tree = tree_of(advert)
    grown = [rate for device in tree["devices"] for rate in device.get("rates", ())]
    assume(grown)
    for rate in grown:
        rate.append("new")
    assert decode(msgpack.packb(tree), Advert, newer=True) == advert
    with pytest.raises(RemoteProtocolError):
        decode(msgpack.packb(tree), Advert)


@settings(max_examples=40, deadline=None)
@given(st.data(), frames())
def test_a_newer_minor_may_leave_nothing_out_and_change_nothing(data, frame):
    """Only what is unknown is forgiven: a known field is as it was, or an error."""
    tree = tree_of(frame)
    holder = data.draw(st.sampled_from([m for m in maps_in(tree) if m]))
    name = data.draw(st.sampled_from(sorted(holder)))
    holder[name] = {"of": "another type"}
    with pytest.raises(RemoteProtocolError):
        decode(msgpack.packb(tree), Frame, newer=True)


@settings(deadline=None)
@given(
    st.sampled_from([Request, Response]),
    st.text(max_size=100),
    st.integers(0, 1 << 31),
    st.dictionaries(st.text(min_size=1, max_size=9), st.integers(0, 9), max_size=4),
)
def test_an_unknown_message_is_known_as_such_from_a_newer_minor_alone(kind, tag, number, rest):
    known = {one.__struct_config__.tag for one in message_form.Message.__subclasses__()}
    assume(tag not in known)
    tree = {"type": kind.__struct_config__.tag, "id": number, "body": rest | {"type": tag}}
    wire = msgpack.packb(tree)
    unknown = read_frame(wire, kind, NEWER)
    assert unknown == UnknownWord(number, tag)
    answer = decode(encode(Response(id=unknown.id, body=unknown.problem())), Response)
    assert "upgrade this peer" in answer.body.message
    with pytest.raises(RemoteProtocolError):
        read_frame(wire, kind, OWN)


@settings(deadline=None)
@given(st.data())
def test_a_receipt_of_a_newer_minor_is_read_and_its_bytes_stay_as_they_came(data):
    receipt = a_receipt(protocol=NEWER)
    tree = tree_of(receipt) | {"new_field": data.draw(st.integers(0, 9) | st.text(max_size=9))}
    envelope = BOB.sign(Statement.RECEIPT, msgpack.packb(tree))
    assert open_receipt(envelope) == receipt
    old = msgpack.packb(tree | {"protocol": list(OWN)})
    with pytest.raises(VerificationError, match="new_field"):
        open_receipt(BOB.sign(Statement.RECEIPT, old))


@settings(deadline=None)
@given(st.integers(0, 1 << 31), st.integers(0, 1 << 31))
def test_a_statement_of_another_major_is_refused_by_name_whatever_else_it_says(major, minor):
    assume(major != OWN[0])
    envelope = ALICE.sign(Statement.RECEIPT, msgpack.packb({"protocol": [major, minor]}))
    with pytest.raises(VerificationError, match="upgrade") as refused:
        open_receipt(envelope)
    assert refused.value.code == "version_unsupported"
    assert f"speaks protocol {major}" in refused.value.message


def test_unknown_fields_are_no_way_around_the_limits():
    tree = {"type": "request", "id": 1, "body": {"type": "release", "call": "a" * 32}}
    for unknown in ([[[]] * 3000] * 3, {f"x{n}": n for n in range(40)}):
        with pytest.raises(RemoteProtocolError):
            decode(msgpack.packb(tree | {"new": unknown}), Request, newer=True)


def test_what_a_struct_holds_is_cut_too():
    device = {"id": "cpu", "kind": "cpu", "name": "", "memory_bytes": 1, "new": [1]}
    advert = msgspec.to_builtins(
        Advert(
            peer=ALICE.peer_id,
            sequence=1,
            issued_at_ms=1,
            lifetime_s=1.0,
            protocol=NEWER,
            agent="",
            addresses=(),
            devices=(),
            numeric_classes=(),
            providing=True,
        )
    )
    wire = msgpack.packb(advert | {"devices": [device]})
    assert decode(wire, Advert, newer=True).devices[0].memory_bytes == 1
