"""Who proves to have a blob, who cannot, and that the two look the same from outside.

Everywhere the taker holds the blob, or some of it, from somebody else.
"""

import os
import secrets
from functools import partial

import pytest
import trio
from blob_peers import GIVER, MIB, TAKER, Pipe, begin, giver, proof_of, sends
from trio.testing import memory_stream_pair

from shoal.crypto.content import ChunkList, chunk_list_of
from shoal.crypto.peer_id import PeerId
from shoal.node.blob_transfer import BlobServer, Rights, fetch_blob
from shoal.node.blobs import open_store
from shoal.node.errors import NetworkError
from shoal.node.frames import receive_frame, send_frame
from shoal.protocol.blob_messages import (
    BlobAnswer,
    BlobFound,
    BlobProof,
    BlobProve,
    BlobRefused,
    BlobRequest,
    BlobSend,
    WhyNot,
)
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.limits import BLOB_AT_ONCE_LIMIT_BYTES

SECRET = os.urandom(2 * MIB + 77)
"""What the taker holds and a stranger would like to use."""
CHUNKS = chunk_list_of(SECRET)
VICTIM = PeerId("victim")


@pytest.fixture
async def store(tmp_path):
    async with open_store(tmp_path / "taker", 16 * MIB) as store:
        yield store


def fetch(peer, store, blob_id=CHUNKS.blob_id):
    return fetch_blob(peer.open_stream, blob_id, store, own=TAKER, limit_bytes=8 * MIB)


async def refuses(stream):
    await receive_frame(stream, BlobRequest)
    await send_frame(stream, BlobRefused(reason=WhyNot.NOT_HELD))


async def closes(stream):
    await receive_frame(stream, BlobRequest)


async def makes_up_a_list(stream):
    await begin(stream, ChunkList(CHUNKS.size_bytes, (secrets.token_bytes(32),) * 3))


@pytest.mark.parametrize("serve", [refuses, closes, makes_up_a_list])
async def test_whoever_knows_an_id_alone_sees_and_hears_the_same_held_or_not(
    store, tmp_path, serve
):
    """All that it sees are the taker's words; they are compared byte by byte."""
    await store.put_bytes(SECRET)
    seen = []
    async with open_store(tmp_path / "empty", 16 * MIB) as empty:
        for of in (store, empty):
            async with giver(serve) as peer:
                with pytest.raises((NetworkError, RemoteProtocolError)) as caught:
                    await fetch(peer, of)
            words = [(stream.sent, stream.ended) for stream in peer.opened]
            seen.append((words, caught.value.code, caught.value.message))
    assert seen[0] == seen[1]


# --- whoever has the chunk list, and not the bytes -----------------------------------------


async def answer(stream, reply):
    """Give the list, and let ``reply`` answer the demand for a proof that must follow."""
    await receive_frame(stream, BlobRequest)
    listed = CHUNKS.encode()
    await send_frame(stream, BlobFound(list_bytes=len(listed)))
    await stream.send_all(listed)
    await reply(stream, await receive_frame(stream, BlobProve))


async def guesses(stream, _):
    await send_frame(stream, BlobProof(proof=secrets.token_bytes(32)))


async def hashes_the_list(stream, demand):
    proof = proof_of(CHUNKS.encode(), BlobProve(challenge=demand.challenge, chunks=1))
    await send_frame(stream, BlobProof(proof=proof))


async def answers_an_old_demand(stream, _):
    old = BlobProve(challenge=bytes(32), chunks=3)
    await send_frame(stream, BlobProof(proof=proof_of(SECRET, old)))


async def proves_less(stream, demand):
    less = BlobProve(challenge=demand.challenge, chunks=2)
    await send_frame(stream, BlobProof(proof=proof_of(SECRET, less)))


async def answers_too_short(stream, _):
    await stream.send_all(b"\0\0\0\x16\x82\xa4type\xa5proof\xa5proof\xc4\x02ab")


async def answers_too_long(stream, _):
    await stream.send_all(b"\xff\xff\xff\xff" + bytes(1000))


async def answers_with_another_word(stream, _):
    await send_frame(stream, BlobSend(first_chunk=0))


async def stays_silent(_stream, _demand):
    await trio.sleep_forever()


async def answers_right_and_too_late(stream, demand):
    await trio.sleep(3600)
    await send_frame(stream, BlobProof(proof=proof_of(SECRET, demand)))


async def goes_away(stream, _):
    await stream.reset()


HOSTILE = [
    guesses,
    hashes_the_list,
    answers_an_old_demand,
    proves_less,
    answers_too_short,
    answers_too_long,
    answers_with_another_word,
    stays_silent,
    answers_right_and_too_late,
    goes_away,
]
LATE = {stays_silent, answers_right_and_too_late}


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.__name__)
async def test_without_a_proof_all_bytes_are_wanted_and_their_lack_looks_like_any_other(
    store, mock_clock, hostile
):
    await store.put_bytes(SECRET)

    async def late_or_not(stream, demand):
        mock_clock.rate = 1000.0 if hostile in LATE else 0.0
        await hostile(stream, demand)

    async def serve(stream):
        mock_clock.rate = 0.0
        if len(peer.opened) > 1:
            await refuses(stream)
        else:
            await answer(stream, late_or_not)

    async with giver(serve) as peer:
        with pytest.raises(NetworkError) as caught:
            await fetch(peer, store)
        assert caught.value.code == "not_held"
        assert peer.opened[0].ended == "reset"
    assert store.holds(CHUNKS.blob_id)
    assert store.used_bytes == len(SECRET)


@pytest.mark.parametrize("hostile", [guesses, answers_too_long, goes_away])
async def test_a_peer_whose_proof_fails_and_that_sends_the_bytes_has_shown_to_have_them(
    store, hostile
):
    await store.put_bytes(SECRET)
    sent = []

    async def serve(stream):
        if len(peer.opened) > 1:
            await sends(SECRET, asked=sent)(stream)
        else:
            await answer(stream, hostile)

    async with giver(serve) as peer:
        await fetch(peer, store)
    assert sent == [("send", 0)]
    assert store.used_bytes == len(SECRET)


async def test_a_false_byte_after_a_failed_proof_is_found_though_the_right_one_is_held(store):
    await store.put_bytes(SECRET)

    async def serve(stream):
        if len(peer.opened) > 1:
            await sends(SECRET, wrong_chunk=1)(stream)
        else:
            await answer(stream, guesses)

    async with giver(serve) as peer:
        with pytest.raises(RemoteProtocolError) as caught:
            await fetch(peer, store)
    assert caught.value.code == "bad_chunk"


async def test_what_another_peer_sent_of_a_blob_is_not_made_whole_by_who_has_only_the_rest(
    store,
):
    async with giver(sends(SECRET, until=2 * MIB)) as peer:
        with pytest.raises(NetworkError):
            await fetch(peer, store)
    demanded = []

    async def sends_the_rest(stream):
        async def note(stream, demand):
            demanded.append(demand.chunks)
            await guesses(stream, demand)
            said = await receive_frame(stream, BlobSend)
            await stream.send_all(SECRET[said.first_chunk * MIB :])

        if len(peer.opened) == 1:
            await answer(stream, note)
        else:
            await sends(bytes(2 * MIB) + SECRET[2 * MIB :], chunks=CHUNKS)(stream)

    async with giver(sends_the_rest) as peer:
        with pytest.raises(RemoteProtocolError):
            await fetch(peer, store)
    assert demanded == [2]
    assert not store.holds(CHUNKS.blob_id)


async def test_a_small_blob_is_sent_again_and_never_proved(store):
    data = os.urandom(BLOB_AT_ONCE_LIMIT_BYTES)
    blob_id = await store.put_bytes(data)
    async with giver(sends(data)) as peer:
        await fetch(peer, store, blob_id)
        assert peer.opened[0].received_bytes > len(data)
    other = data[:-1] + bytes([data[-1] ^ 1])
    async with giver(sends(other, chunks=chunk_list_of(data))) as liar:
        with pytest.raises(RemoteProtocolError):
            await fetch(liar, store, blob_id)


async def test_a_blob_that_is_damaged_on_disk_proves_nothing_and_is_sent_anew(store):
    await store.put_bytes(SECRET)
    path = next(store._shelf.files.directory.rglob(CHUNKS.blob_id))
    path.write_bytes(SECRET[: 2 * MIB])
    async with giver(sends(SECRET)) as peer:
        await fetch(peer, store)
    assert await store.get_bytes(CHUNKS.blob_id) == SECRET


# --- the side that proves -------------------------------------------------------------------


@pytest.fixture
async def server(tmp_path):
    """A victim that granted its secret to the giver, who fetches for itself."""
    rights = Rights()
    rights.grant("an award", GIVER, [CHUNKS.blob_id])
    async with open_store(tmp_path / "victim", 16 * MIB) as store:
        await store.put_bytes(SECRET)
        yield BlobServer(VICTIM, store, rights)


async def ask(server, *words, remote=GIVER):
    """Say ``words`` after the list; gives the stream."""
    ours, theirs = memory_stream_pair()
    stream, answering = Pipe(VICTIM, ours), Pipe(remote, theirs)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, answering)
        await send_frame(stream, BlobRequest(blob=CHUNKS.blob_id))
        found = await receive_frame(stream, BlobAnswer)
        if isinstance(found, BlobRefused):
            return stream, answering
        await stream.receive_exactly(found.list_bytes)
        for word in words:
            await send_frame(stream, word)
        await ours.send_eof()
    return stream, answering


async def test_a_peer_without_a_right_gets_no_proof(server):
    stream, _ = await ask(server, remote=TAKER)
    assert stream.received_bytes < 100


@pytest.mark.parametrize(
    "words",
    [
        [BlobProve(challenge=bytes(32), chunks=4)],
        [BlobProve(challenge=bytes(32), chunks=1)] * 2,
        [BlobProof(proof=bytes(32))],
    ],
    ids=["more chunks than there are", "two proofs on one stream", "a word out of turn"],
)
async def test_a_demand_that_is_not_in_order_ends_its_stream(server, words):
    _, answering = await ask(server, *words)
    assert answering.ended == "reset"


async def test_a_relayed_answer_proves_nothing_for_who_relays_it(store, server):
    """The giver has a right to the victim's blob, and passes the taker's demand on."""
    await store.put_bytes(SECRET)
    relayed = []

    async def relay(stream, demand):
        beyond, _ = await ask(server, demand)
        answered = await receive_frame(beyond, BlobProof)
        assert answered.proof == proof_of(SECRET, demand, prover=VICTIM, verifier=GIVER)
        await send_frame(stream, answered)
        relayed.append(demand)

    async def serve(stream):
        if len(peer.opened) > 1:
            await refuses(stream)
        else:
            await answer(stream, relay)

    async with giver(serve) as peer:
        with pytest.raises(NetworkError) as caught:
            await fetch(peer, store)
    assert caught.value.code == "not_held"
    assert len(relayed) == 1


async def test_one_peers_demands_are_answered_one_after_another(server, monkeypatch):
    at_once = []
    feed = server._store.feed

    async def counted(*args):
        at_once.append(sum(at_once) + 1)
        await feed(*args)
        at_once.append(-1)

    monkeypatch.setattr(server._store, "feed", counted)
    demand = BlobProve(challenge=bytes(32), chunks=3)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(partial(ask, server, demand))
    assert at_once == [1, -1] * 5
