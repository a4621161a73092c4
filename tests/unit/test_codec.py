import math
import tracemalloc

import msgpack
import msgspec
import pytest
from strategies import CALL_ID, a_bid, a_call, a_unit

from shoal.protocol import limits
from shoal.protocol.codec import decode, encode
from shoal.protocol.errors import LocalProtocolError, RemoteProtocolError
from shoal.protocol.messages import Adverts, Done, Frame, Problem, Request, Response
from shoal.protocol.negotiation_messages import Bid, Cancel, Release, UnitRequest

BID = msgspec.to_builtins(a_bid())


def refusal_of(data, kind=Frame, limit_bytes=limits.FRAME_LIMIT_BYTES):
    with pytest.raises(RemoteProtocolError) as caught:
        decode(data, kind, limit_bytes)
    assert len(caught.value.message) <= 256, "it must fit the field that may carry it back"
    assert caught.value.message.isprintable()
    return caught.value


def packed(value):
    return msgpack.packb(value, strict_types=False)


def test_a_message_comes_back_as_it_was():
    for frame in (
        Request(id=7, body=a_call()),
        Response(id=7, body=a_bid()),
        Request(id=0, body=a_unit()),
        Response(id=1 << 31, body=Done()),
    ):
        assert decode(encode(frame), Frame) == frame


def test_a_message_looks_on_the_wire_as_other_implementations_expect():
    assert msgpack.unpackb(encode(Request(id=7, body=Release(call=CALL_ID)))) == {
        "type": "request",
        "id": 7,
        "body": {"type": "release", "call": CALL_ID},
    }


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, -1.0, 1e13])
def test_a_price_is_a_number_within_bounds(number):
    assert refusal_of(packed(BID | {"price": number}), Bid).code == "bad_message"


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"price": "1.5"}, "$.price"),
        ({"price": None}, "$.price"),
        ({"price": True}, "$.price"),
        ({"units_max": 1.0}, "$.units_max"),
        ({"units_max": True}, "$.units_max"),
        ({"units_max": 0}, "$.units_max"),
        ({"units_max": limits.LEASE_UNITS_LIMIT + 1}, "$.units_max"),
        ({"units_max": (1 << 64) - 1}, "$.units_max"),
        ({"units_max": -(1 << 63)}, "$.units_max"),
        ({"device": b"cpu"}, "$.device"),
        ({"device": "x" * 65}, "$.device"),
        ({"call": CALL_ID + "\n"}, "$.call"),
        ({"call": CALL_ID.upper()}, "$.call"),
        ({"call": CALL_ID[:-1]}, "$.call"),
        ({"type": "call"}, "type"),
        ({"type": b"bid"}, "type"),
        ({"type": 5}, "type"),
        ({"colour": "red"}, "colour"),
        ({b"price": 1.5}, "key"),
    ],
)
def test_a_field_that_does_not_fit_is_named(change, path):
    error = refusal_of(packed(BID | change), Bid)
    assert error.code == "bad_message"
    assert path in error.message


@pytest.mark.parametrize("missing", sorted(set(BID) - {"batch_max"}))
def test_no_field_may_be_missing(missing):
    value = {name: field for name, field in BID.items() if name != missing}
    if missing == "type":  # a struct asked for by itself needs no tag to be told
        value["type"] = "refusal"
    assert refusal_of(packed(value), Bid).code == "bad_message"


@pytest.mark.parametrize(
    "value",
    [
        None,
        5,
        "bid",
        b"",
        [],
        {},
        [BID],
        {"type": "bid"},
        {"type": "request", "id": 1, "body": BID},
    ],
)
def test_what_is_no_frame_is_refused(value):
    assert refusal_of(packed(value)).code == "bad_message"


def test_a_key_may_stand_only_once():
    twice = b"\x82" + packed("call") + packed(CALL_ID) + packed("call") + packed(CALL_ID)
    assert "twice" in refusal_of(twice, Release).message


@pytest.mark.parametrize(
    "extension",
    [
        b"\xd4\x05\x00",
        b"\xc7\x00\x05",
        b"\xc7\x00\xff",
        b"\xd6\xff" + bytes(4),
        b"\xc9" + b"\xff" * 5,
    ],
)
def test_extension_types_are_refused(extension):
    assert refusal_of(extension).code == "not_msgpack"
    assert refusal_of(b"\x91" + extension).code == "not_msgpack"


def test_an_empty_extension_does_not_pass_for_a_pair():
    adverts = {"type": "adverts", "adverts": [], "wanted": []}
    data = packed(adverts).replace(
        packed("adverts") + b"\x90", packed("adverts") + b"\x91\xc7\x00\x05"
    )
    assert refusal_of(data, Adverts).code == "not_msgpack"


@pytest.mark.parametrize("text", [b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80"])
def test_text_is_utf8_without_surrogates(text):
    assert refusal_of(bytes([0xA0 | len(text)]) + text).code == "not_msgpack"


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x81", b"\x81\xa1", b"\xdd\xff\xff\xff\xff"])
def test_bytes_that_are_no_msgpack_are_refused(data):
    assert refusal_of(data).code == "not_msgpack"


@pytest.mark.parametrize("tail", [b"\0", b"\xc0", b"\xc1"])
def test_nothing_may_follow_a_message(tail):
    assert refusal_of(encode(Response(id=1, body=Done())) + tail).code == "not_msgpack"


@pytest.mark.parametrize("key", [1, 1.5, None, True, [1], {"a": 1}])
def test_keys_are_text(key):
    assert refusal_of(b"\x81" + packed(key) + b"\x01").code in {"not_msgpack", "bad_message"}


def test_a_message_over_the_limit_is_not_even_read():
    assert refusal_of(bytes(101), limit_bytes=100).code == "frame_too_large"
    assert "101" in refusal_of(bytes(101), limit_bytes=100).message


def array32(size):
    return b"\xdd" + size.to_bytes(4, "big")


HOSTILE = {
    "nested lists": b"\x91" * 100_000,
    "nested maps": b"\x81\xa1a" * 100_000,
    "lists that announce the most items, nested": array32(limits.LIST_LIMIT) * 1000,
    "lists that announce far too many items": array32(1 << 19) * 1000,
    "empty lists": array32(4096) + (array32(255) + b"\x90" * 255) * 4000,
    "empty maps": array32(4096) + (array32(255) + b"\x80" * 255) * 4000,
    "nils": array32(256) + (array32(4000) + b"\xc0" * 4000) * 256,
    "one long text": b"\xdb" + (1 << 20).to_bytes(4, "big") + b"x" * (1 << 20),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_frame_made_to_cost_much_costs_little_memory(name):
    data = HOSTILE[name][: limits.FRAME_LIMIT_BYTES]
    tracemalloc.start()
    try:
        refusal_of(data)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 40 << 20


def test_the_peers_words_are_quoted_as_one_printable_line():
    error = refusal_of(packed(BID | {"\x1b[2J\nprice\u202e": 1.0}), Bid)
    assert "price" in error.message


def test_blobs_inside_one_message_are_bounded_in_all():
    half = bytes(limits.INLINE_LIMIT_BYTES // 2)
    unit = {"type": "unit", "call": CALL_ID, "unit": "u", "inputs": [], "blobs": [half, half]}
    assert decode(packed(unit), UnitRequest).blobs == (half, half)
    unit["blobs"] = [half, half, b"\0"]
    assert refusal_of(packed(unit), UnitRequest).code == "bad_message"


@pytest.mark.parametrize(
    "message",
    [
        a_bid(price=math.nan),
        a_bid(price=-1.0),
        a_bid(device="x" * 65),
        a_bid(device="\ud800"),
        Request(id=1 << 70, body=Done()),
        Request(id=-1, body=Cancel(call=CALL_ID, unit="u")),
        Problem(code="c", message="x" * 257),
        Response(id=1, body="no struct at all"),
    ],
    ids=repr,
)
def test_we_never_say_what_peers_must_refuse(message):
    with pytest.raises(LocalProtocolError) as caught:
        encode(message)
    assert caught.value.code == "unencodable"


def test_we_never_say_more_than_fits():
    with pytest.raises(LocalProtocolError) as caught:
        encode(a_call(), limit_bytes=50)
    assert caught.value.code == "frame_too_large"
