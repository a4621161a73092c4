"""A libp2p peer in the test's own process that says what no honest node would say.

It uses the daemon's own modules for what is not the point of a test: the
connection, the greeting, signatures.
"""

import secrets
import time
from itertools import count

from shoal.crypto.content import blob_id_of
from shoal.crypto.envelope import Statement
from shoal.node.control import CONTROL_PROTOCOL
from shoal.node.errors import NetworkError
from shoal.node.frames import receive_frame, send_frame
from shoal.protocol.codec import encode
from shoal.protocol.limits import PROTOCOL_MAJOR, PROTOCOL_MINOR
from shoal.protocol.messages import Adverts, Digest, Done, Hello, Request, Response
from shoal.protocol.negotiation_messages import (
    AwardOffer,
    Bid,
    Call,
    Lease,
    UnitRequest,
    UnitResult,
)
from shoal.protocol.statements import Advert, Award, Receipt, open_award, statement_id

HELLO = Hello(protocol=(PROTOCOL_MAJOR, PROTOCOL_MINOR), agent="attacker/1")
STREAM_LIMIT_S = 20.0

_request_ids = count(1)


async def open_control_stream(network, peer):
    """A stream of the control protocol on which nothing was said yet."""
    return await network.open_stream(peer, CONTROL_PROTOCOL, STREAM_LIMIT_S)


async def open_greeted(network, peer):
    """The same after both sides have said hello."""
    stream = await open_control_stream(network, peer)
    assert isinstance(await ask(stream, HELLO), Hello)
    return stream


async def ask(stream, body):
    """Send a request and give the answer to it."""
    number = next(_request_ids)
    await send_frame(stream, Request(id=number, body=body))
    response = await receive_frame(stream, Response)
    assert response.id == number
    return response.body


async def send_raw(stream, payload, length=None):
    """Send a frame of any bytes, with its own or a false length."""
    length = len(payload) if length is None else length
    await stream.send_all(length.to_bytes(4, "big") + payload)


async def is_cut(stream):
    """Whether the daemon ended the stream, without another word."""
    try:
        return await stream.receive_some(1) == b""
    except NetworkError:
        return True


def wall_ms():
    return time.time_ns() // 1_000_000


def make_advert(key, **changes):
    """A signed advert of ``key``'s peer that is soon over."""
    fields = {
        "peer": key.peer_id,
        "sequence": wall_ms(),
        "issued_at_ms": wall_ms(),
        "lifetime_s": 3.0,
        "protocol": HELLO.protocol,
        "agent": HELLO.agent,
        "addresses": (),
        "devices": (),
        "numeric_classes": (),
        "providing": False,
    }
    return key.sign(Statement.ADVERT, encode(Advert(**fields | changes)))


def make_call(program, call, **changes):
    fields = {
        "call": call,
        "program": program,
        "numeric_class": "fp32",
        "precision": None,
        "units": 1,
        "input_bytes": 0,
        "program_bytes": 0,
        "time_limit_s": 10.0,
        "memory_bytes": 1 << 30,
    }
    return Call(**fields | changes)


def make_award(key, by, asked, bid, **changes):
    fields = {
        "call": asked.call,
        "nonce": bid.nonce,
        "protocol": HELLO.protocol,
        "requester": key.peer_id,
        "provider": by,
        "program": asked.program,
        "numeric_class": asked.numeric_class,
        "precision": asked.precision,
        "units_max": 1,
        "price": bid.price,
        "idle_s": 5.0,
        "issued_at_ms": wall_ms(),
    }
    envelope = key.sign(Statement.AWARD, encode(Award(**fields | changes)))
    return AwardOffer(call=asked.call, award=envelope)


async def make_bid(stream, program):
    """Call for bids; gives the call and the bid."""
    call = make_call(program, secrets.token_hex(16))
    bid = await ask(stream, call)
    assert isinstance(bid, Bid), bid
    return call, bid


class Liar:
    """A provider that underbids everybody and answers as it should, as far as it goes.

    What it answers to a unit is a well-formed lie: ``OUTPUT``, whatever was asked.
    Each test replaces one of its answers.
    """

    OUTPUT = b"not even a tensor"

    def __init__(self, key, network):
        self.key = key
        self.network = network
        self.calls = {}
        self.awards = {}

    def advert(self):
        places = [address.rpartition("/p2p/")[0] for address in self.network.addresses()]
        return make_advert(
            self.key,
            addresses=tuple(places),
            numeric_classes=("fp32",),
            providing=True,
            lifetime_s=6.0,
        )

    async def answer(self, peer, body):
        match body:
            case Digest():
                return Adverts(adverts=((self.advert(), 0.0),))
            case Call():
                self.calls[body.call] = body
                return self.bid(body)
            case AwardOffer():
                self.awards[body.call] = body.award
                return self.lease(body)
            case UnitRequest():
                return self.result(body)
        return Done()

    def bid(self, request, **changes):
        fields = {
            "call": request.call,
            "nonce": request.call,
            "device": "cpu",
            "executor": "onnxruntime",
            "price": 0.0,
            "units_max": 8,
            "in_flight_max": 1,
            "valid_s": 10.0,
        }
        return Bid(**fields | changes)

    def lease(self, offer, **changes):
        fields = {"call": offer.call, "award": statement_id(offer.award), "idle_s": 10.0}
        return Lease(**fields | changes)

    def result(self, request, *, blobs=(OUTPUT,), unit=None, receipt=None):
        return UnitResult(
            call=request.call,
            unit=unit or request.unit,
            receipt=receipt or self.receipt(request),
            blobs=blobs,
        )

    def receipt(self, request, key=None, **changes):
        envelope = self.awards[request.call]
        award = open_award(envelope)
        fields = {
            "protocol": HELLO.protocol,
            "exact_spec": "",
            "award": statement_id(envelope),
            "unit": request.unit,
            "program": award.program,
            "numeric_class": award.numeric_class,
            "precision": award.precision,
            "inputs": request.inputs,
            "outputs": (("y", blob_id_of(self.OUTPUT)),),
            "error": None,
            "trace": None,
            "provider": self.key.peer_id,
            "requester": award.requester,
            "started_at_ms": wall_ms(),
            "ended_at_ms": wall_ms(),
            "device": "cpu",
            "runtime": "lies",
        }
        receipt = Receipt(**fields | changes)
        return (key or self.key).sign(Statement.RECEIPT, encode(receipt))
