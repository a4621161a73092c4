"""Blobs between two peers, one of whom may lie, dawdle, break off or have no right."""

import os
from functools import partial

import msgpack
import pytest
import trio
from blob_peers import GIVER, MIB, TAKER, Pipe, begin, giver, sends
from trio.testing import lockstep_stream_pair, memory_stream_pair, wait_all_tasks_blocked

from shoal.crypto.content import blob_id_of, chunk_list_of
from shoal.crypto.identity import generate
from shoal.crypto.peer_id import PeerId
from shoal.node import blob_transfer
from shoal.node.blob_transfer import (
    BLOB_PROTOCOL,
    REQUEST_TIME_LIMIT_S,
    SERVED_LIMIT,
    BlobServer,
    Rights,
)
from shoal.node.blob_transfer import fetch_blob as fetch_for
from shoal.node.blobs import open_store
from shoal.node.errors import NetworkError, StoreError
from shoal.node.frames import receive_frame, send_frame
from shoal.node.network import open_network
from shoal.protocol.blob_messages import (
    BlobAnswer,
    BlobRequest,
    BlobSend,
)
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.limits import BLOB_AT_ONCE_LIMIT_BYTES
from shoal.protocol.messages import Done

fetch_blob = partial(fetch_for, own=TAKER)


@pytest.fixture
async def stores(tmp_path):
    """A store that gives and one that takes."""
    async with (
        open_store(tmp_path / "giver", 1 << 30) as giving,
        open_store(tmp_path / "taker", 16 * MIB) as taking,
    ):
        yield giving, taking


@pytest.fixture
def rights():
    return Rights()


def honest(stores, rights, blob_id):
    rights.grant("a lease", TAKER, [blob_id])
    return BlobServer(GIVER, stores[0], rights).serve


@pytest.mark.parametrize("size", [0, 1, MIB, 3 * MIB + 1])
@pytest.mark.parametrize("pair", [memory_stream_pair, lockstep_stream_pair])
async def test_a_blob_arrives_whole(stores, rights, size, pair):
    giving, taking = stores
    data = os.urandom(size)
    blob_id = await giving.put_bytes(data)
    async with giver(honest(stores, rights, blob_id), pair=pair) as peer:
        await fetch_blob(peer.open_stream, blob_id, taking, limit_bytes=10 * MIB)
        assert await taking.get_bytes(blob_id) == data
        assert peer.opened[0].ended == "closed"
        await fetch_blob(peer.open_stream, blob_id, taking, limit_bytes=10 * MIB)
        if size > BLOB_AT_ONCE_LIMIT_BYTES:
            assert peer.opened[1].received_bytes < 300  # a proof and no chunk
    assert not taking._receiving._limiters


async def test_it_is_known_until_when_a_peer_was_sent_something(stores, rights, monkeypatch):
    giving, taking = stores
    server = BlobServer(GIVER, giving, rights)
    began_s = trio.current_time()
    held = await giving.put_bytes(b"private")
    async with giver(server.serve) as peer:
        with pytest.raises(NetworkError):
            await fetch_blob(peer.open_stream, held, taking, limit_bytes=MIB)
    assert server.sent_s == {}
    blob_id = await giving.put_bytes(os.urandom(3 * MIB))
    rights.grant("a lease", TAKER, [blob_id])
    async with giver(server.serve) as peer:
        await fetch_blob(peer.open_stream, blob_id, taking, limit_bytes=10 * MIB)
    assert began_s < server.sent_s[TAKER] <= trio.current_time()
    monkeypatch.setattr(blob_transfer, "PEERS_SERVED_LIMIT", 2)
    for name in ("one", "two"):  # by their channels
        rights.grant("a lease", PeerId(name), [blob_id])
        opened = await server.open_blob(PeerId(name), blob_id, None, None)
        opened.close()
    assert list(server.sent_s) == ["one", "two"]


def with_a_new_field(frame_of):
    """A stream's `send_all` whose frames have a field that nobody here knows."""

    async def send_all(data):
        if int.from_bytes(data[:4], "big") == len(data) - 4:  # a frame, no bytes of a blob
            tree = msgpack.unpackb(data[4:]) | {"new_field": 1}
            grown = msgpack.packb(tree)
            data = len(grown).to_bytes(4, "big") + grown
        await frame_of(data)

    return send_all


@pytest.mark.parametrize("newer", [True, False])
async def test_a_newer_minors_words_about_a_blob_are_understood(stores, rights, newer):
    giving, taking = stores
    data = os.urandom(MIB + 1)
    blob_id = await giving.put_bytes(data)
    rights.grant("lease", TAKER, [blob_id])
    server = BlobServer(GIVER, giving, rights, newer=lambda _peer: newer)

    async def serve(stream):
        stream.send_all = with_a_new_field(stream.send_all)
        await server.serve(stream)

    async with giver(serve) as peer:

        async def open_stream():
            stream = await peer.open_stream()
            stream.send_all = with_a_new_field(stream.send_all)
            return stream

        fetching = partial(fetch_blob, open_stream, blob_id, taking, limit_bytes=10 * MIB)
        if newer:
            await fetching(newer=True)
            await fetching(newer=True)  # now it is held, and has to be proved
            assert len(peer.opened) == 2
            assert peer.opened[1].received_bytes < 400
            assert await taking.get_bytes(blob_id) == data
        else:
            with pytest.raises((RemoteProtocolError, NetworkError)):
                await fetching()


async def test_nobody_without_a_right_learns_whether_a_blob_is_held(stores, rights):
    giving, taking = stores
    held = await giving.put_bytes(b"private")
    for blob_id in (held, blob_id_of(b"not held")):
        async with giver(BlobServer(GIVER, giving, rights).serve) as peer:
            with pytest.raises(NetworkError, match="no right") as caught:
                await fetch_blob(peer.open_stream, blob_id, taking, own=TAKER, limit_bytes=MIB)
        assert caught.value.code == "no_right"


async def test_a_blob_that_is_gone_is_refused_as_not_held(stores, rights):
    giving, taking = stores
    data = os.urandom(100)
    blob_id = await giving.put_bytes(data)
    serve = honest(stores, rights, blob_id)
    path = next(p for p in giving._shelf.files.directory.rglob(blob_id))
    path.write_bytes(b"damaged")
    for _ in ("found damaged", "not held any more"):
        async with giver(serve) as peer:
            with pytest.raises(NetworkError) as caught:
                await fetch_blob(peer.open_stream, blob_id, taking, own=TAKER, limit_bytes=MIB)
        assert caught.value.code == "not_held"


async def test_a_wrong_byte_names_the_peer_and_what_came_before_it_is_kept(stores, rights):
    giving, taking = stores
    data = os.urandom(4 * MIB)
    blob_id = await giving.put_bytes(data)
    async with giver(sends(data, wrong_chunk=2)) as liar:
        with pytest.raises(RemoteProtocolError, match=GIVER) as caught:
            await fetch_blob(liar.open_stream, blob_id, taking, limit_bytes=10 * MIB)
        assert caught.value.code == "bad_chunk"
        assert liar.opened[0].ended == "reset"
    assert not taking.holds(blob_id)
    async with taking.receive(blob_id) as reception:
        assert reception.missing_chunks() == [2, 3]
    async with giver(honest(stores, rights, blob_id)) as peer:
        await fetch_blob(peer.open_stream, blob_id, taking, limit_bytes=10 * MIB)
        assert 2 * MIB < peer.opened[0].received_bytes < 2 * MIB + 500  # it proved the rest
    assert await taking.get_bytes(blob_id) == data


async def test_a_broken_transfer_resumes_at_its_first_missing_chunk_after_a_restart(
    stores, tmp_path
):
    data = os.urandom(4 * MIB)
    blob_id = blob_id_of(data)
    asked = []

    async def serve(stream):
        await sends(data, until=None if asked else 2 * MIB + 99, asked=asked)(stream)

    async with giver(serve) as peer:
        async with open_store(tmp_path / "third", 16 * MIB) as store:
            with pytest.raises(NetworkError):
                await fetch_blob(peer.open_stream, blob_id, store, limit_bytes=10 * MIB)
        async with open_store(tmp_path / "third", 16 * MIB) as store:
            await fetch_blob(peer.open_stream, blob_id, store, limit_bytes=10 * MIB)
            assert await store.get_bytes(blob_id) == data
    assert asked == [("send", 0), ("prove", 2), ("send", 2)]


async def test_a_list_that_is_not_the_blobs_is_refused_before_any_byte_is_kept(stores):
    data = os.urandom(2 * MIB)
    async with giver(sends(data, chunks=chunk_list_of(b"another"))) as liar:
        with pytest.raises(RemoteProtocolError, match=GIVER) as caught:
            await fetch_blob(
                liar.open_stream, blob_id_of(data), stores[1], limit_bytes=10 * MIB
            )
    assert caught.value.code == "bad_chunk_list"
    assert stores[1].used_bytes == 0


async def test_a_blob_over_the_limit_or_the_quota_is_refused_from_its_list(stores, rights):
    giving, taking = stores
    blob_id = await giving.put_bytes(bytes(20 * MIB))
    async with giver(honest(stores, rights, blob_id), pair=lockstep_stream_pair) as peer:
        for limit_bytes, code in ((19 * MIB, "blob_too_large"), (64 * MIB, "quota_exceeded")):
            with pytest.raises(StoreError) as caught:
                await fetch_blob(peer.open_stream, blob_id, taking, limit_bytes=limit_bytes)
            assert caught.value.code == code
            assert peer.opened[-1].ended == "reset"
    assert taking.used_bytes == 0


async def test_a_blob_stays_while_it_is_served(stores, rights, tmp_path):
    data = os.urandom(3 * MIB)
    async with open_store(tmp_path / "small", 4 * MIB) as small:
        blob_id = await small.put_bytes(data)
        serve = honest((small, None), rights, blob_id)

        async def serve_in_need_of_room(stream):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve, stream)
                await wait_all_tasks_blocked()
                with pytest.raises(StoreError, match="no room"):
                    await small.put_bytes(bytes(2 * MIB))
                began.set()

        began = trio.Event()
        ours, theirs = lockstep_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_in_need_of_room, Pipe(TAKER, theirs))
            stream = Pipe(GIVER, ours)
            await send_frame(stream, BlobRequest(blob=blob_id))
            await receive_frame(stream, BlobAnswer)
            listed = chunk_list_of(data).encode()
            assert await stream.receive_exactly(len(listed)) == listed
            await send_frame(stream, BlobSend(first_chunk=0))
            await began.wait()
            assert await stream.receive_exactly(len(data)) == data


async def test_a_peer_that_sends_slowly_keeps_no_other_peer_from_sending_the_same(stores):
    data = os.urandom(3 * MIB)
    blob_id = blob_id_of(data)
    stalled = trio.Event()

    async def stalls(stream):
        await sends(data, until=MIB + 1)(stream)
        stalled.set()
        await trio.sleep_forever()

    async with (
        giver(stalls, pair=lockstep_stream_pair) as slow,
        giver(sends(data)) as peer,
        trio.open_nursery() as nursery,
    ):
        fetch = partial(fetch_blob, blob_id=blob_id, store=stores[1], limit_bytes=8 * MIB)
        nursery.start_soon(fetch, slow.open_stream)
        await stalled.wait()
        await fetch(peer.open_stream)
        assert peer.opened[0].received_bytes > len(data)  # nothing that the slow one sent
        assert await stores[1].get_bytes(blob_id) == data
        nursery.cancel_scope.cancel()
    assert stores[1].used_bytes == len(data)


async def test_a_peer_that_sends_a_byte_a_second_is_cut(stores, mock_clock):
    mock_clock.rate = 500.0
    data = os.urandom(MIB)

    async def dribbles(stream):
        await begin(stream, chunk_list_of(data))
        for byte in data:
            await trio.sleep(1)
            await stream.send_all(bytes([byte]))

    async with giver(dribbles) as peer:
        with pytest.raises(NetworkError) as caught:
            await fetch_blob(peer.open_stream, blob_id_of(data), stores[1], limit_bytes=8 * MIB)
        assert peer.opened[0].ended == "reset"
    assert caught.value.code == "too_slow"
    assert stores[1].used_bytes == 0


@pytest.mark.parametrize("first_words", ["none", "a request", "two"])
async def test_a_peer_that_asks_nothing_or_takes_nothing_is_cut(
    stores, rights, mock_clock, first_words
):
    blob_id = await stores[0].put_bytes(os.urandom(MIB))
    serve = honest(stores, rights, blob_id)
    ours, theirs = lockstep_stream_pair()

    async def silent():
        stream = Pipe(GIVER, ours)
        if first_words != "none":
            await send_frame(stream, BlobRequest(blob=blob_id))
            await receive_frame(stream, BlobAnswer)
        if first_words == "two":
            await stream.receive_exactly(8 + 32)
            await send_frame(stream, BlobSend(first_chunk=0))
        mock_clock.rate = 500.0  # no time passed until here
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(silent)
        with pytest.raises(NetworkError) as caught:
            await serve(Pipe(TAKER, theirs))
        assert caught.value.code == "too_slow"
        nursery.cancel_scope.cancel()
    await stores[0].put_bytes(bytes(2 * MIB))
    assert not stores[0]._shelf.index._pins  # the blob is not kept for it


@pytest.mark.parametrize(
    "nonsense",
    [b"\xff" * 64, b"\0\0\0\x05hello", b"\0\0\0\0"],
    ids=["over the limit", "not msgpack", "empty"],
)
async def test_nonsense_resets_the_stream_and_harms_nothing(stores, rights, nonsense):
    ours, theirs = memory_stream_pair()
    await Pipe(GIVER, ours).send_all(nonsense)
    stream = Pipe(TAKER, theirs)
    await BlobServer(GIVER, stores[0], rights).serve(stream)
    assert stream.ended == "reset"

    async def answers(stream):
        await receive_frame(stream, BlobRequest)
        await stream.send_all(nonsense)

    async with giver(answers) as peer:
        with pytest.raises(RemoteProtocolError, match=r"message|msgpack"):
            await fetch_blob(peer.open_stream, blob_id_of(b""), stores[1], limit_bytes=MIB)
        assert peer.opened[0].ended == "reset"


async def test_a_message_of_another_protocol_is_no_answer(stores):
    async def answers(stream):
        await receive_frame(stream, BlobRequest)
        await send_frame(stream, Done())

    async with giver(answers) as peer:
        with pytest.raises(RemoteProtocolError):
            await fetch_blob(peer.open_stream, blob_id_of(b""), stores[1], limit_bytes=MIB)


async def test_a_blob_crosses_a_real_network_and_one_that_is_cut_resumes(stores, rights):
    giving, taking = stores
    data = os.urandom(6 * MIB + 1)
    blob_id = await giving.put_bytes(data)
    listen = ["/ip4/127.0.0.1/tcp/0"]
    async with (
        open_network(generate(), listen) as anna,
        open_network(generate(), listen) as bert,
    ):
        rights.grant("a lease", bert.peer_id, [blob_id])
        cut = trio.Event()

        async def serve(stream):
            if not cut.is_set():
                cut.set()
                await sends(data, until=3 * MIB)(stream)
            else:
                await BlobServer(anna.peer_id, giving, rights).serve(stream)

        anna.handle(BLOB_PROTOCOL, serve)
        await bert.connect(anna.peer_id, anna.addresses(), 10)
        fetch = partial(
            fetch_blob,
            partial(bert.open_stream, anna.peer_id, BLOB_PROTOCOL, 10),
            blob_id,
            taking,
            limit_bytes=10 * MIB,
        )
        with pytest.raises(NetworkError):
            await fetch()
        await fetch()
        assert await taking.get_bytes(blob_id) == data
        rights.withdraw("a lease")
        with pytest.raises(NetworkError, match="no right"):
            await fetch_blob(
                partial(bert.open_stream, anna.peer_id, BLOB_PROTOCOL, 10),
                blob_id_of(b"other"),
                taking,
                limit_bytes=MIB,
            )


# --- what a peer may ask, and what it may not ------------------------------------------


class Told(list):
    """What the server reported of its peers."""

    def __call__(self, peer, offence, _detail):
        self.append((peer, str(offence)))


async def test_a_stream_on_which_nothing_is_asked_is_ended_and_no_offence(
    stores, rights, autojump_clock
):
    told = Told()
    async with giver(BlobServer(GIVER, stores[0], rights, broke=told).serve) as peer:
        stream = await peer.open_stream()
        with pytest.raises(NetworkError):
            await stream.receive_exactly(1)
        assert trio.current_time() <= REQUEST_TIME_LIMIT_S + 1.0
    assert not told


@pytest.mark.parametrize("words", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x01\xc1"])
async def test_nonsense_on_a_blob_stream_is_an_offence(stores, rights, words):
    told = Told()
    async with giver(BlobServer(GIVER, stores[0], rights, broke=told).serve) as peer:
        stream = await peer.open_stream()
        await stream.send_all(words)
        with pytest.raises(NetworkError):
            await stream.receive_exactly(1)
    assert told == [(TAKER, "bad_frame")]


async def test_so_many_chunks_are_in_memory_for_one_peer_and_the_other_streams_wait(
    stores, rights
):
    giving, _ = stores
    data = os.urandom(2 * MIB)
    blob_id = await giving.put_bytes(data)
    rights.grant("a lease", TAKER, [blob_id])
    server = BlobServer(GIVER, giving, rights)
    async with giver(server.serve, pair=lockstep_stream_pair) as peer:
        streams = [await peer.open_stream() for _ in range(SERVED_LIMIT + 5)]
        for stream in streams:
            await send_frame(stream, BlobRequest(blob=blob_id))
        await wait_all_tasks_blocked(0.1)
        (of_taker,) = server._sending._limiters.values()
        assert of_taker.borrowed_tokens == SERVED_LIMIT
        assert of_taker.statistics().tasks_waiting == 5
        for stream in streams[:5]:
            await stream.reset()
        await wait_all_tasks_blocked(0.1)
        assert of_taker.statistics().tasks_waiting == 0
        for stream in streams[5:]:  # a message that nobody takes is waited for
            await stream.reset()
