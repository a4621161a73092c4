"""Bulk channels with peers that lie, dawdle or only want to do harm: real sockets and TLS.

The liars are real nodes whose serving thread does what the test says.
"""

import errno
import gc
import os
import resource
import ssl
from dataclasses import replace

import pytest
import trio
import trio.lowlevel
from bulk_lies import LIES, SHORT_S, closes_at_every_chunk, honestly, sends_a_wrong_chunk
from bulk_nodes import (
    LIMIT_BYTES,
    MIB,
    at_rest,
    descriptors,
    dial,
    giver_and_taker,
    open_bulk_node,
    until,
    wire_to,
)
from structlog.testing import capture_logs

from shoal.crypto.content import chunk_list_of
from shoal.node import blob_files
from shoal.node.bulk import listener, serving, wire
from shoal.node.bulk import tokens as tokens_module
from shoal.node.bulk.certificates import context, make_certificate
from shoal.node.bulk.listener import SILENT_LIMIT
from shoal.node.bulk.transfer import CHANNEL_TRIES, Source
from shoal.node.conduct import Conduct
from shoal.node.errors import NetworkError, StoreError
from shoal.node.fetching import fetch_from
from shoal.protocol.channel_messages import (
    MAGIC,
    ChannelRequest,
    ChannelWanted,
    ChunksGiven,
    ChunksRefused,
    ChunksWanted,
)
from shoal.protocol.errors import RemoteProtocolError

DATA = os.urandom(20 * MIB + 5)
CHUNKS = chunk_list_of(DATA)


@pytest.fixture
async def pair(tmp_path):
    async with giver_and_taker(tmp_path) as nodes:
        yield nodes


@pytest.fixture
def lies():
    """Lets servers do ``lie(wire, request, DATA)`` with each request; gives how to end that."""
    patch = pytest.MonkeyPatch()

    def let(lie):
        def serve(wire, _look_up, _disk):
            wire.shake_hands()
            while True:
                lie(wire, wire.receive(ChannelRequest, idle_s=30), DATA)

        patch.setattr(serving, "serve", serve)
        return patch.undo

    yield let
    patch.undo()


def gives_some(lie):
    """Whether a liar sends right chunks first."""
    return any(word in lie.__name__ for word in ("wrong", "few", "many"))


async def chunks_kept(taker, blob_id):
    """How many chunks are kept of a transfer that has ended early."""
    if taker.store._shelf.index.unfinished.get(blob_id) is None:
        return 0
    async with taker.store.receive(blob_id) as reception:
        return len(CHUNKS.digests) - len(reception.missing_chunks())


@pytest.mark.parametrize(("lie", "offence"), LIES)
async def test_a_liar_is_cut_at_once_and_named_and_another_peer_sends_the_rest(
    pair, tmp_path, lies, lie, offence, monkeypatch
):
    giver, taker = pair
    async with open_bulk_node(tmp_path / "honest") as honest:
        await taker.network.connect(honest.peer, honest.network.addresses(), 5)
        await honest.give(taker, DATA)
        blob_id = await giver.give(taker, DATA)
        monkeypatch.setattr(wire, "CHUNK_LIMIT_S", SHORT_S)
        be_honest = lies(lie)
        before = descriptors()
        with pytest.raises(RemoteProtocolError, match=giver.peer):
            await fetch_from(taker.house, blob_id, [Source(giver.peer)], LIMIT_BYTES)
        assert [(peer, what) for peer, what, _ in taker.broken] == [(giver.peer, offence)]
        await until(lambda: at_rest(giver, taker))
        assert descriptors() <= before
        be_honest()
        monkeypatch.undo()
        came, _ = taker.bulk
        kept = await chunks_kept(taker, blob_id)
        assert kept >= (3 if gives_some(lie) else 0)
        await fetch_from(taker.house, blob_id, [Source(honest.peer)], LIMIT_BYTES)
        assert await taker.store.get_bytes(blob_id) == DATA
        received, _ = taker.bulk
        assert received - came < len(DATA) - kept * MIB + 5000
        assert len(taker.broken) == 1
        assert not honest.broken


async def test_a_liar_is_in_the_log_and_in_its_standing_that_shoal_peers_shows(pair, lies):
    giver, taker = pair
    conduct = Conduct(taker.peer)
    house = replace(taker.house, broke=conduct.broke)
    blob_id = await giver.give(taker, DATA)
    lies(sends_a_wrong_chunk)
    with capture_logs() as logged, pytest.raises(RemoteProtocolError):
        await fetch_from(house, blob_id, [Source(giver.peer)], LIMIT_BYTES)
    assert conduct.standing_of(giver.peer).offences == {"bad_blob": 1}
    [line] = [one for one in logged if one["event"] == "a peer broke the rules"]
    assert (line["peer"], line["offence"]) == (giver.peer, "bad_blob")


async def test_bytes_after_what_was_asked_for_are_held_against_the_peer(pair, lies):
    giver, taker = pair
    await giver.give(taker, DATA)

    def lie(wire, request, data):
        honestly(wire, request, data)
        if request.first + request.count == len(CHUNKS.digests):
            wire.send_bytes(memoryview(b"more"))

    lies(lie)
    share = Checked()
    async with taker.channels.to(giver.peer) as channel:
        await channel.take(CHUNKS, share)
    assert share.came_of == list(range(len(CHUNKS.digests)))  # it is the blob all the same
    await until(lambda: taker.broken)
    assert [what for _, what, _ in taker.broken] == ["bad_frame"]
    await until(lambda: at_rest(giver, taker))


class Checked:
    """A share of all chunks, checked and forgotten."""

    def __init__(self):
        count = len(CHUNKS.digests)
        self._left = [range(at, min(at + 16, count)) for at in range(0, count, 16)]
        self.came_of = []

    def more(self):
        return self._left.pop(0) if self._left else None

    def came(self, index, chunk):
        CHUNKS.check_chunk(index, chunk)
        self.came_of.append(index)


async def test_a_peer_that_closes_at_every_chunk_is_asked_for_the_rest_by_stream(pair, lies):
    giver, taker = pair
    blob_id = await giver.give(taker, DATA)
    lies(closes_at_every_chunk)
    await fetch_from(taker.house, blob_id, [Source(giver.peer)], LIMIT_BYTES)
    assert await taker.store.get_bytes(blob_id) == DATA
    received, _ = taker.bulk
    assert received < CHANNEL_TRIES * MIB + 5000
    assert named(taker) == [(giver.peer, "broke_off")] * CHANNEL_TRIES
    by_stream = taker.network.traffic("blob").received
    assert by_stream < len(DATA) - CHANNEL_TRIES * MIB + 5000  # nothing was sent again
    await until(lambda: at_rest(giver, taker))


async def test_a_peer_that_has_listed_a_blob_and_gives_nothing_of_it_is_no_source(pair, lies):
    giver, taker = pair
    blob_id = await giver.give(taker, DATA)
    lies(lambda wire, request, _data: wire.send(ChunksGiven(first=request.first, count=0)))
    with pytest.raises(NetworkError) as failed:
        await fetch_from(taker.house, blob_id, [Source(giver.peer)], LIMIT_BYTES)
    assert failed.value.code == "not_held"
    await until(lambda: at_rest(giver, taker))


async def test_a_peer_that_refuses_on_the_channel_what_it_listed_is_no_source(pair, lies):
    giver, taker = pair
    blob_id = await giver.give(taker, DATA)
    lies(lambda wire, request, _data: wire.send(ChunksRefused(reason="no_right")))
    with pytest.raises(NetworkError) as failed:
        await fetch_from(taker.house, blob_id, [Source(giver.peer)], LIMIT_BYTES)
    assert failed.value.code == "no_right"


# --- what a taker can do wrong ----------------------------------------------------------


async def a_token(giver, taker):
    return await taker.channels._ask(giver.peer)


def dial_tls(offer, certificate, **versions):
    """Dial as a taker does, with whatever certificate and version."""
    sock = dial(offer.port, MAGIC + offer.token)
    tls = context(certificate, offer.certificate, server=False)
    for name, value in versions.items():
        setattr(tls, name, value)
    return tls.wrap_socket(sock, suppress_ragged_eofs=False)


def is_closed(sock):
    """Whether the other end has closed a connection without a word."""
    try:
        return sock.recv(1) == b""
    except (ConnectionError, ssl.SSLEOFError):
        return True
    finally:
        sock.close()


def named(node):
    """Of whom a node has noted what."""
    return [(peer, what) for peer, what, _ in node.noted]


async def in_thread(work, *args):
    return await trio.to_thread.run_sync(work, *args)


async def test_another_peers_certificate_gets_nothing(pair):
    giver, taker = pair
    blob_id = await giver.give(taker, DATA)
    offer = await a_token(giver, taker)

    def steal():
        stolen = wire_to(giver, offer, make_certificate())
        with stolen.sock:
            stolen.send(ChunksWanted(blob=blob_id, first=0, count=1))
            stolen.receive(ChunksGiven)

    with capture_logs() as logged:
        with pytest.raises((NetworkError, OSError)):
            await in_thread(steal)
        await until(lambda: at_rest(giver))
    [line] = [one for one in logged if one["event"] == "a bulk channel has ended"]
    assert line["peer"] == taker.peer  # whose token it was
    assert named(giver) == [(taker.peer, "other_certificate")]
    assert not giver.broken
    assert giver.bulk[1] == 0
    await fetch_from(taker.house, blob_id, [Source(giver.peer)], LIMIT_BYTES)
    assert taker.bulk[0] > len(DATA)


async def test_a_certificate_that_is_none_opens_nothing(pair):
    giver, taker = pair
    offer = await taker.control.request(giver.peer, ChannelWanted(certificate=bytes(99)), 5)
    with capture_logs() as logged:
        assert await in_thread(is_closed, dial(offer.port, MAGIC + offer.token))
        await until(lambda: at_rest(giver))
    [line] = [one for one in logged if one["event"] == "a bulk channel has ended"]
    assert line["peer"] == taker.peer
    assert "certificate cannot be read" in line["why"]
    assert named(giver) == [(taker.peer, "other_certificate")]


async def test_an_offer_with_a_certificate_that_is_none_is_given_up_for_a_stream(pair):
    giver, taker = pair
    blob_id = await giver.give(taker, DATA)
    giver.channels._certificate = replace(giver.channels._certificate, der=bytes(99))
    await fetch_from(taker.house, blob_id, [Source(giver.peer)], LIMIT_BYTES)
    assert taker.store.holds(blob_id)
    assert taker.bulk == (0, 0)
    assert named(taker) == [(giver.peer, "other_certificate")]


async def test_a_server_with_another_certificate_is_given_up_for_a_stream(pair, monkeypatch):
    giver, taker = pair
    blob_id = await giver.give(taker, DATA)
    answer = giver.channels.answer

    async def answer_and_change(peer, wanted):
        offered = await answer(peer, wanted)
        giver.channels._certificate = make_certificate()
        return offered

    monkeypatch.setattr(giver.channels, "answer", answer_and_change)
    with capture_logs() as logged:
        await fetch_from(taker.house, blob_id, [Source(giver.peer)], LIMIT_BYTES)
    assert taker.store.holds(blob_id)
    assert taker.bulk == (0, 0)
    [line] = [one for one in logged if "so blobs go by stream" in one["event"]]
    assert line["peer"] == giver.peer
    assert "certificate verify failed" in line["why"]
    assert named(taker) == [(giver.peer, "other_certificate")]


async def test_tls_1_2_gets_nothing(pair):
    giver, taker = pair
    offer = await a_token(giver, taker)
    old = ssl.TLSVersion.TLSv1_2

    def speak_old():
        dial_tls(
            offer, taker.channels._certificate, minimum_version=old, maximum_version=old
        ).close()

    with capture_logs() as logged:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await in_thread(speak_old)
        await until(lambda: at_rest(giver))
    [line] = [one for one in logged if one["event"] == "a bulk channel has ended"]
    assert line["peer"] == taker.peer
    assert "unsupported protocol" in line["why"]
    assert named(giver) == [(taker.peer, "no_tls")]
    assert not giver.broken


async def test_a_token_opens_one_channel_and_no_second(pair):
    giver, taker = pair
    offer = await a_token(giver, taker)
    with await in_thread(dial_tls, offer, taker.channels._certificate):
        assert await in_thread(is_closed, dial(offer.port, MAGIC + offer.token))


async def test_a_token_that_is_late_opens_nothing(pair, monkeypatch):
    giver, taker = pair
    monkeypatch.setattr(tokens_module, "TOKEN_LIFETIME_S", 0.0)
    offer = await a_token(giver, taker)
    assert await in_thread(is_closed, dial(offer.port, MAGIC + offer.token))


@pytest.mark.parametrize(
    ("said", "what"),
    [
        (b"GET / HTTP/1.1\r\n", "it spoke another protocol"),
        (b"\x16\x03\x01\x02\x00", "it spoke another protocol"),
        (MAGIC + bytes(24), "its token was unknown, used or late"),
    ],
)
async def test_what_is_no_good_token_is_closed_at_once_and_its_address_noted(pair, said, what):
    giver, _ = pair
    assert await in_thread(is_closed, dial(giver.channels.port, said))
    await until(lambda: giver.channels.door.silent == 0)
    assert giver.callers == [("127.0.0.1", what)]


async def test_who_says_nothing_is_closed_after_a_while(pair, monkeypatch):
    giver, _ = pair
    monkeypatch.setattr(listener, "TOKEN_LIMIT_S", 0.1)
    assert await in_thread(is_closed, dial(giver.channels.port, MAGIC[:3]))
    assert giver.callers == [("127.0.0.1", "it broke off")]


async def test_a_thousand_who_open_the_port_and_say_nothing_harm_nobody(pair):
    giver, taker = pair
    blob_id = await giver.give(taker, DATA)
    gc.collect()
    before, most_kib = descriptors(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    silent = []
    try:
        for _ in range(1000):
            silent.append(dial(giver.channels.port))
            await trio.lowlevel.checkpoint()
        await until(lambda: giver.channels.door.silent == SILENT_LIMIT)
        with trio.fail_after(60):
            await fetch_from(taker.house, blob_id, [Source(giver.peer)], LIMIT_BYTES)
        assert taker.bulk[0] > len(DATA)
        assert descriptors() <= before + len(silent) + SILENT_LIMIT + 8
        most_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most_kib
        assert most_kib < 32 << 10
    finally:
        for sock in silent:
            sock.close()
    await until(lambda: giver.channels.door.silent == 0)
    await until(lambda: len(giver.callers) == len(silent))
    assert set(giver.callers) == {("127.0.0.1", "it said nothing")}


@pytest.mark.parametrize(
    ("said", "offence"),
    [
        (b"\xff\xff\xff\xff", "bad_frame"),
        (b"\0\0\0\3abc", "bad_frame"),
        (b"\0\0\0\x50" + bytes(10), "slow_frame"),
    ],
)
async def test_who_sends_garbage_on_a_channel_is_named(pair, said, offence, monkeypatch):
    giver, taker = pair
    monkeypatch.setattr(wire, "CHUNK_LIMIT_S", SHORT_S)
    offer = await a_token(giver, taker)
    with await in_thread(dial_tls, offer, taker.channels._certificate) as sock:
        sock.send(said)
        await until(lambda: giver.broken)
    assert [(peer, what) for peer, what, _ in giver.broken] == [(taker.peer, offence)]
    await until(lambda: at_rest(giver))


async def test_who_asks_and_does_not_read_is_cut(pair, monkeypatch):
    giver, taker = pair
    blob_id = await giver.give(taker, DATA)
    offer = await a_token(giver, taker)
    asker = await in_thread(wire_to, giver, offer, taker.channels._certificate)
    monkeypatch.setattr(wire, "CHUNK_LIMIT_S", SHORT_S)
    with asker.sock:
        for first in (0, 16):
            asker.send(ChunksWanted(blob=blob_id, first=first, count=5))
        await until(lambda: giver.broken)
    assert giver.broken[0][:2] == (taker.peer, "slow_frame")
    await until(lambda: at_rest(giver))


async def test_who_asks_for_nothing_again_and_again_waits(pair, monkeypatch):
    giver, taker = pair
    blob_id = await giver.store.put_bytes(DATA)
    waits = []
    monkeypatch.setattr(serving, "SMALL_PER_S", 1e-3)
    monkeypatch.setattr(serving, "SMALL_BURST", 20.0)
    monkeypatch.setattr(serving.time, "sleep", waits.append)
    offer = await a_token(giver, taker)

    def ask():
        asker = wire_to(giver, offer, taker.channels._certificate)
        with asker.sock:
            for _ in range(30):
                asker.send(ChunksWanted(blob=blob_id, first=0, count=1))
                assert asker.receive(ChunksRefused).reason == "no_right"

    await in_thread(ask)
    await until(lambda: at_rest(giver))
    assert [wait_s > 0 for wait_s in waits[:30]] == [False] * 20 + [True] * 10


async def test_a_right_that_is_withdrawn_ends_the_transfer(pair, monkeypatch):
    giver, taker = pair
    blob_id = await giver.give(taker, DATA)
    allowed = giver.blobs._allows
    asked = []

    def allows_once(*args):
        asked.append(args)
        return len(asked) <= 2 and allowed(*args)  # the list, and the first chunks

    monkeypatch.setattr(giver.blobs, "_allows", allows_once)
    with pytest.raises(NetworkError) as refused:
        await fetch_from(taker.house, blob_id, [Source(giver.peer)], LIMIT_BYTES)
    assert refused.value.code == "no_right"


# --- what a disk can do wrong -----------------------------------------------------------


async def test_a_disk_that_fills_ends_the_transfer_by_name_and_keeps_what_came(
    pair, monkeypatch
):
    giver, taker = pair
    blob_id = await giver.give(taker, DATA)
    write, written = os.pwrite, []

    def pwrite(handle, view, offset):
        if len(written) == 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(offset)
        return write(handle, view, offset)

    with monkeypatch.context() as full:
        full.setattr(blob_files.os, "pwrite", pwrite)
        with pytest.raises(StoreError) as failed:
            await fetch_from(taker.house, blob_id, [Source(giver.peer)], LIMIT_BYTES)
    assert failed.value.code == "disk_full"
    assert not taker.broken
    await until(lambda: at_rest(giver, taker))
    came, _ = taker.bulk
    await fetch_from(taker.house, blob_id, [Source(giver.peer)], LIMIT_BYTES)
    assert await taker.store.get_bytes(blob_id) == DATA
    received, _ = taker.bulk
    assert received - came < len(DATA) - 9 * MIB + 5000


async def test_a_file_that_is_cut_short_at_the_server_is_never_taken_for_the_blob(pair):
    giver, taker = pair
    blob_id = await giver.give(taker, DATA)
    path = giver.store._shelf.files._path(blob_id)
    os.truncate(path, 7 * MIB)
    with pytest.raises((NetworkError, RemoteProtocolError)):
        await fetch_from(taker.house, blob_id, [Source(giver.peer)], LIMIT_BYTES)
    assert not taker.store.holds(blob_id)
    await until(lambda: at_rest(giver, taker))
