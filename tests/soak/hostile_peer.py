"""A peer, or a crowd of strangers, that does its worst to one daemon: a process of its own.

    python hostile_peer.py ATTACK ADDRESS [COUNT [SEED]]

Prints what it did as one JSON object. Where the daemon cuts it, it comes back under
a new key, as whoever means harm would.
"""

from __future__ import annotations

import json
import logging
import os
import random
import socket
import struct
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import structlog
import trio
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from attacker import HELLO, make_advert, make_award, make_call, open_greeted

from shoal.crypto import identity
from shoal.node.admission import Bucket
from shoal.node.blob_transfer import BLOB_PROTOCOL
from shoal.node.control import CONTROL_PROTOCOL
from shoal.node.errors import NetworkError
from shoal.node.membership import ADVERT_TOPIC
from shoal.node.network import open_network
from shoal.protocol.blob_messages import BlobProve, BlobRequest, BlobSend
from shoal.protocol.challenge_messages import Challenge, Draw, ProofOffer, ProofsWanted
from shoal.protocol.channel_messages import ChannelWanted
from shoal.protocol.codec import encode
from shoal.protocol.messages import Adverts, Digest, Request
from shoal.protocol.negotiation_messages import Bid, Cancel, Release, UnitRequest, UnitsRequest
from shoal.protocol.reachability_messages import DialBack, Introduce, Introduction

IDENTIFY, GOSSIP, PING = "/ipfs/id/1.0.0", "/meshsub/1.1.0", "/ipfs/ping/1.0.0"
STREAM_LIMIT_S = 5.0
FRAMES_PER_STREAM = 4
ANSWER_LIMIT_S = 0.1
"""What comes after a frame that ended its stream is not read; the first of them is."""

MULTISTREAM = b"\x13/multistream/1.0.0\n"
CALL = "ab" * 16
BEGINNINGS = (b"", MULTISTREAM, MULTISTREAM + b"\x07/noise\n")


def varint(number):
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])


def split(address):
    place, _, peer = address.partition("/p2p/")
    return place, peer, int(place.split("/")[4])


# --- frames: valid ones, and what becomes of them ---------------------------------


def control_frames(key, victim):
    asked = make_call("ab" * 32, CALL)
    bid = Bid(CALL, CALL, "cpu", "onnxruntime", 1.0, 1, 1, 1.0)
    bodies = [
        HELLO,
        Digest(held=bytes(16) + b"\xff" * 16),
        Adverts(adverts=((make_advert(key), 0.0),), wanted=bytes(16)),
        asked,
        make_award(key, victim, asked, bid),
        UnitRequest(call=CALL, unit="j/0", inputs=(("x", "ab" * 32),), blobs=(b"tensor",)),
        UnitsRequest(call=CALL, units=(UnitRequest(CALL, "a", ()), UnitRequest(CALL, "b", ()))),
        Cancel(call=CALL, unit="j/0", others=("a", "b")),
        Release(call=CALL),
        Challenge(CALL, "cpu", "exact", "x20", 1e9, 16, 64, 2),
        Draw(nonce=CALL, places=((0, 0), (1, 3))),
        ProofOffer(nonce=CALL, proof=b"proof"),
        ProofsWanted(),
        DialBack(nonce=CALL, ports=(4711, 1)),
        ChannelWanted(certificate=bytes(99)),
        Introduce(peer=victim, advert=make_advert(key)),
        Introduction(advert=make_advert(key)),
    ]
    return [encode(Request(id=number, body=body)) for number, body in enumerate(bodies)]


def blob_frames():
    words = [BlobRequest(blob="ab" * 32), BlobProve(challenge=bytes(32), chunks=1)]
    return [encode(word) for word in (*words, BlobSend(first_chunk=0))]


def gossip_frames(key):
    rpc = rpc_pb2.RPC()
    rpc.subscriptions.add(subscribe=True, topicid=ADVERT_TOPIC)
    rpc.publish.add(
        from_id=ID.from_base58(key.peer_id).to_bytes(),
        data=make_advert(key),
        seqno=os.urandom(8),
        topicIDs=[ADVERT_TOPIC],
        signature=os.urandom(64),
    )
    control = rpc_pb2.RPC()
    control.control.graft.add(topicID=ADVERT_TOPIC)
    control.control.ihave.add(topicID=ADVERT_TOPIC, messageIDs=[b"a", b"b"])
    control.control.iwant.add(messageIDs=[b"a"] * 50)
    return [rpc.SerializeToString(), control.SerializeToString()]


def identify_frames(key):
    told = Identify(
        protocol_version="ipfs/0.1.0",
        agent_version="hostile",
        public_key=os.urandom(36),
        listen_addrs=[os.urandom(8)],
        protocols=[CONTROL_PROTOCOL, "x" * 300],
    )
    return [told.SerializeToString()]


def frames_of(protocol, key, victim):
    """Valid frames of a protocol, and how each goes on its wire."""

    def four(frame):
        return len(frame).to_bytes(4, "big") + frame

    def var(frame):
        return varint(len(frame)) + frame

    if protocol == CONTROL_PROTOCOL:
        return control_frames(key, victim), four
    if protocol == BLOB_PROTOCOL:
        return blob_frames(), four
    if protocol == GOSSIP:
        return gossip_frames(key), var
    if protocol == PING:
        return [bytes(32)], bytes
    if protocol.startswith("/shoal/"):  # one that this file does not know
        return control_frames(key, victim) + blob_frames(), four
    return identify_frames(key), var


def fuzzed(dice, frames, wire):
    """One frame: a valid one damaged, the same whole, or noise behind some length."""
    kind = dice.random()
    if kind < 0.3:
        junk = dice.randbytes(dice.choice((0, 1, 7, 60, 500, 4000)))
        length = dice.choice((len(junk), 2 * len(junk), 1 << 20, 1 << 31))
        return dice.choice((junk, wire(junk), length.to_bytes(4, "big") + junk))
    frame = bytearray(dice.choice(frames))
    if kind < 0.95 and frame:
        for _ in range(dice.choice((1, 1, 2, 8))):
            place = dice.randrange(len(frame))
            match dice.randrange(4):
                case 0:
                    frame[place] = dice.randrange(256)
                case 1:
                    del frame[place:]
                case 2:
                    frame[place:place] = frame[: dice.randrange(1, 64)]
                case _:
                    frame[place:place] = bytes([dice.randrange(256)])
            if not frame:
                break
    return wire(bytes(frame))


# --- attacks over libp2p -------------------------------------------------------------


@asynccontextmanager
async def a_new_peer(address):
    """A peer under a fresh key, connected if the daemon lets it."""
    place, victim, _ = split(address)
    key = identity.generate()
    async with open_network(key, []) as network:
        with suppress(NetworkError):
            await network.connect(victim, [place], STREAM_LIMIT_S)
        yield key, network


async def protocols_of(address):
    """What the daemon says that it speaks, by identify."""
    _, victim, _ = split(address)
    async with a_new_peer(address) as (_, network):
        stream = await network.open_stream(victim, IDENTIFY, STREAM_LIMIT_S)
        data = b""
        while some := await stream.receive_some(65536):
            data += some
    size = end = 0
    while True:  # a varint
        size |= (data[end] & 127) << 7 * end
        end += 1
        if data[end - 1] < 128:
            break
    told = Identify()
    told.ParseFromString(data[end : end + size])
    return sorted(set(told.protocols))


async def fuzz(address, count, seed):
    """Fuzzed frames on every protocol id that the daemon speaks, all at once."""
    protocols = await protocols_of(address)
    done = {protocol: {"frames": 0, "streams": 0, "keys": 0} for protocol in protocols}
    async with trio.open_nursery() as nursery:
        for protocol in protocols:
            nursery.start_soon(fuzz_one, address, protocol, count, seed, done[protocol])
    return done


async def fuzz_one(address, protocol, count, seed, done):
    _, victim, _ = split(address)
    dice = random.Random(f"{seed}{protocol}")
    while done["frames"] < count:
        async with a_new_peer(address) as (key, network):
            done["keys"] += 1
            frames, wire = frames_of(protocol, key, victim)
            if not network.connected():
                await trio.sleep(0.05)
            while done["frames"] < count and network.connected():
                with suppress(NetworkError):
                    await fuzz_stream(network, victim, protocol, dice, frames, wire, done)


async def fuzz_stream(network, victim, protocol, dice, frames, wire, done):
    if protocol == CONTROL_PROTOCOL and dice.random() < 0.7:
        with suppress(AssertionError):
            stream = await open_greeted(network, victim)
    else:
        stream = await network.open_stream(victim, protocol, STREAM_LIMIT_S)
    done["streams"] += 1
    try:
        for _ in range(FRAMES_PER_STREAM):
            await stream.send_all(fuzzed(dice, frames, wire))
            done["frames"] += 1
        if dice.random() < 0.3:
            with trio.move_on_after(ANSWER_LIMIT_S):  # it may wait for more than was sent
                await stream.receive_some(1000)
    finally:
        with trio.move_on_after(1, shield=True):
            await (stream.aclose() if dice.random() < 0.3 else stream.reset())


async def streams(address, count, _seed):
    """Very many streams of one peer: half of them greeted, all of them kept."""
    _, victim, _ = split(address)
    opened = refused = keys = 0
    kept = []
    while opened + refused < count and keys < 60:
        async with a_new_peer(address) as (_, network):
            keys += 1
            for connection in network._swarm.get_connections(ID.from_base58(victim)):
                muxer = connection.muxed_conn  # stock libp2p would open 256 and no more
                muxer.stream_backlog_limit = count + 1
                muxer.stream_backlog_semaphore = trio.Semaphore(count + 1)
                muxer._own_openings = Bucket(1e9, 1e9, 0.0)  # ours would wait
            while opened + refused < count and network.connected():
                protocol = random.choice((CONTROL_PROTOCOL, BLOB_PROTOCOL, PING, GOSSIP))
                try:
                    kept.append(await network.open_stream(victim, protocol, STREAM_LIMIT_S))
                    opened += 1
                except NetworkError:
                    refused += 1
            if network.connected():
                await trio.sleep(3)
    return {"opened": opened, "refused": refused, "keys": keys}


async def dribble(address, count, _seed):
    """One byte per second: of a message on a control stream, and of a handshake."""
    _, victim, port = split(address)
    ended = []

    async def on_a_stream():
        async with a_new_peer(address) as (_, network):
            stream = await open_greeted(network, victim)
            began = trio.current_time()
            with suppress(NetworkError):
                for byte in b"\x00\x00\x02\x00" + bytes(count):
                    await stream.send_all(bytes([byte]))
                    await trio.sleep(1)
            ended.append(("frame", round(trio.current_time() - began, 1)))

    async def in_a_handshake():
        stranger = await trio.open_tcp_stream("127.0.0.1", port)
        began = trio.current_time()
        with suppress(trio.BrokenResourceError):
            for byte in (MULTISTREAM + b"\x07/noise\n" + bytes(count))[:count]:
                await stranger.send_all(bytes([byte]))
                await trio.sleep(1)
        ended.append(("handshake", round(trio.current_time() - began, 1)))

    with trio.move_on_after(count):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(on_a_stream)
                nursery.start_soon(in_a_handshake)
    return {"cut_off_after_s": sorted(ended)}


# --- attacks on the port ---------------------------------------------------------------


async def garbage(address, count, seed):
    """TCP connections that say nonsense, from the first byte or after a right beginning."""
    _, _, port = split(address)
    dice, refused = random.Random(seed), 0
    for number in range(count):
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as raw:
                raw.sendall(BEGINNINGS[number % 3] + dice.randbytes(dice.randrange(2000)))
        except OSError:
            refused += 1
        await trio.sleep(0.002)
    return {"connections": count, "refused": refused}


async def silent(address, count, _seed):
    """Sockets that connect and say nothing; held until the daemon has hung up on them."""
    _, _, port = split(address)
    held, refused = [], 0
    for _ in range(count):
        try:
            held.append(socket.create_connection(("127.0.0.1", port), timeout=5))
        except OSError:
            refused += 1
        await trio.sleep(0.001)
    began, open_ones = trio.current_time(), set(held)
    while open_ones and trio.current_time() - began < 20:
        await trio.sleep(0.5)
        for one in list(open_ones):
            one.setblocking(False)
            with suppress(BlockingIOError):
                try:
                    if one.recv(100) == b"":
                        open_ones.discard(one)
                except ConnectionError:
                    open_ones.discard(one)
    lasted_s = round(trio.current_time() - began, 1)
    for one in held:
        one.close()
    left = len(open_ones)
    return {"connected": len(held), "refused": refused, "left": left, "after_s": lasted_s}


async def resets(address, count, _seed):
    """Connections that are reset in the middle of the handshake."""
    _, _, port = split(address)
    for number in range(count):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as raw:
            raw.sendall(
                (MULTISTREAM + b"\x07/noise\n" + b"\x00\x20" + bytes(32))[: 20 + number]
            )
            await trio.sleep(0.01)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return {"reset": count}


ATTACKS = {
    attack.__name__: attack for attack in (fuzz, streams, dribble, garbage, silent, resets)
}

if __name__ == "__main__":
    os.nice(15)  # what is measured is the daemon
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    name, where, number, *more = sys.argv[1:]
    print(json.dumps(trio.run(ATTACKS[name], where, int(number), *(more or ["1"]))))
