from contextlib import suppress

import msgpack
import msgspec
import pytest
from effort import examples
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import frames, odd_values, one_byte_changed, structs_of

from shoal.protocol.blob_messages import BlobAnswer, BlobNext, BlobProof, BlobRequest
from shoal.protocol.channel_messages import ChannelAnswer, ChannelRequest
from shoal.protocol.codec import decode, encode
from shoal.protocol.errors import LocalProtocolError, RemoteProtocolError
from shoal.protocol.messages import Frame
from shoal.protocol.statements import (
    Acknowledgement,
    Advert,
    Award,
    CapabilityProof,
    Commitment,
    Receipt,
    TraceRoot,
)

KINDS = (
    *(Frame, Advert, Award, Receipt, Commitment, CapabilityProof),
    *(Acknowledgement, TraceRoot),
    *(BlobRequest, BlobAnswer, BlobNext, BlobProof),
    *(ChannelRequest, ChannelAnswer),
)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@settings(max_examples=examples(60, least=30), deadline=None)
@given(data=st.data())
def test_whatever_fits_the_types_comes_back_as_it_was(kind, data):
    message = data.draw(structs_of(kind))
    assert decode(encode(message), kind) == message


def decodes_or_is_refused(data, kind=Frame):
    """Any other exception ends the test."""
    try:
        message = decode(data, kind)
    except RemoteProtocolError:
        return
    assert decode(encode(message), kind) == message


@given(st.binary(max_size=200), st.sampled_from(KINDS))
def test_random_bytes_raise_nothing_else(data, kind):
    decodes_or_is_refused(data, kind)


@given(odd_values, st.sampled_from(KINDS))
def test_random_msgpack_raises_nothing_else(value, kind):
    decodes_or_is_refused(msgpack.packb(value), kind)


@settings(max_examples=examples(200, least=100), deadline=None)
@given(st.data(), frames())
def test_a_message_with_one_byte_changed_raises_nothing_else(data, frame):
    decodes_or_is_refused(data.draw(one_byte_changed(encode(frame))))


@given(st.data(), frames())
def test_a_message_cut_short_is_refused(data, frame):
    whole = encode(frame)
    with pytest.raises(RemoteProtocolError):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))], Frame)


@settings(max_examples=examples(200, least=100), deadline=None)
@given(st.data(), frames(), odd_values)
def test_any_value_in_the_place_of_any_other_raises_nothing_else(data, frame, odd):
    tree = msgspec.to_builtins(frame, builtin_types=(bytes,))
    places = list(_places(tree))
    holder, key = data.draw(st.sampled_from(places))
    holder[key] = odd
    decodes_or_is_refused(msgpack.packb(tree))


@settings(max_examples=100, deadline=None)
@given(st.data(), frames(), odd_values)
def test_what_we_refuse_to_send_is_what_peers_refuse_to_take(data, frame, odd):
    assume(frame.body.__struct_fields__)
    name = data.draw(st.sampled_from(frame.body.__struct_fields__))
    body = frame.body
    with suppress(ValueError, TypeError, AttributeError):  # what is checked when it is made
        body = msgspec.structs.replace(body, **{name: odd})
    changed = msgspec.structs.replace(frame, body=body)
    wire = msgpack.packb(msgspec.to_builtins(changed, builtin_types=(bytes,)))
    try:
        encode(changed)
    except LocalProtocolError:
        with pytest.raises(RemoteProtocolError):
            decode(wire, type(frame))
    else:
        decode(wire, type(frame))


def _places(tree):
    """Every (container, key) of a tree of dicts and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(items):
        yield tree, key
        if isinstance(value, list | tuple):
            tree[key] = list(value)
        if isinstance(value, dict | list | tuple):
            yield from _places(tree[key])
