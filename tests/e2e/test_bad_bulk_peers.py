"""Every peer that does harm by its bulk channel, at a whole daemon.

Each time the daemon stays up, the peer is named in its log and by ``shoal peers``, and the
transfer ends by another peer or with a named error. The liars, and the honest peers beside
them, are nodes in the test's own process, of the daemon's own modules (`BulkNode`); what a
liar does is in `bulk_lies`.

| what a peer does | test |
|---|---|
| wrong bytes, too many, too few, none, one a second | `test_a_source_that_does_harm_…` |
| closes at every chunk | the same |
| another certificate as a server, or one that is none | `test_a_source_at_whose_port_…` |
| asks for a blob it has no right to | `test_who_asks_for_what_it_has_no_right_to_…` |
| opens the bulk port and says nothing, 1,000 times | `test_a_thousand_callers_…` |
| another peer's certificate, TLS 1.2, none at all | `test_a_stolen_token_…` |
| bytes that are no request | `test_who_sends_garbage_…` |
| (a disk that fills in the middle) | `test_a_disk_that_fills_…` |
| (the requester killed half-way) | `test_bulk.py`, `soak/test_killed_sources.py` |
"""

import os
import resource
import ssl
import threading
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import bulk_lies
import models
import numpy as np
import pytest
import trio
from bare_requester import BareRequester, answer_as_a_daemon
from bulk_lies import LIES, closes_at_every_chunk
from bulk_nodes import LIMIT_BYTES, MIB, dial, open_bulk_node, until
from daemons import eventually, shoal

from shoal.compute.convert import convert
from shoal.compute.tensor import to_blob
from shoal.crypto import identity
from shoal.crypto.content import blob_id_of, chunk_list_of
from shoal.node import bidding
from shoal.node.bulk import serving
from shoal.node.bulk.certificates import context, make_certificate
from shoal.node.bulk.listener import SILENT_LIMIT
from shoal.node.bulk.plan import STALLED_S
from shoal.node.bulk.transfer import Source
from shoal.node.bulk.wire import Wire
from shoal.node.demo.swarm import Swarm
from shoal.node.errors import NetworkError
from shoal.node.fetching import fetch_from
from shoal.protocol.channel_messages import MAGIC, ChannelRequest, ChannelWanted
from shoal.protocol.negotiation_messages import Refusal, UnitResult
from shoal.protocol.statements import open_receipt

LIMIT_S = 60.0
LONGER_THAN_STALLED_S = 2 * STALLED_S
SIZE_BYTES = 20 * MIB
IDENTITY = convert(models.identity())
KEY = identity.generate()
"""The requester's, which the daemon serves."""


@pytest.fixture(scope="module")
def swarm():
    with Swarm(1, settings=[f"--allow={KEY.peer_id}"]) as swarm:
        swarm.start_all()
        yield swarm


class Place:
    """A daemon, its requester, and two more peers, which are strangers to it."""

    def __init__(self, daemon, requester, strangers):
        self.daemon, self.requester = daemon, requester
        self._pid = daemon.process.pid
        self._strangers = strangers
        random = np.random.default_rng()
        rows = SIZE_BYTES // 4 // models.WIDTH
        self.data = to_blob(random.random((rows, models.WIDTH), dtype=np.float32))
        self.blob_id = blob_id_of(self.data)

    async def stranger(self):
        """One of the other peers, connected to the daemon."""
        node = self._strangers.pop()
        answer_as_a_daemon(node)
        place = self.daemon.address.rpartition("/p2p/")[0]
        await node.network.connect(self.daemon.peer, [place], 5.0)
        return node

    async def holder(self):
        """One that keeps the tensor for the requester, and may give it to the daemon."""
        node, whose = await self.stranger(), self.requester.node.peer
        await node.store.put_bytes(self.data)
        now_s, sizes = trio.current_time(), {self.blob_id: len(self.data)}
        node.kept.keep(whose, bidding.STRANGER, sizes, LIMIT_BYTES, now_s)
        node.kept.share(whose, [self.blob_id], self.daemon.peer, now_s)
        return node

    async def hand_over(self, *holders):
        """Have a unit run on the tensor, which others keep or this requester holds.

        What comes of it, which is the same, stays with the daemon.
        """
        if not holders:
            await self.requester.node.store.put_bytes(self.data)
        sources = tuple((self.blob_id, holder.peer) for holder in holders)
        with trio.fail_after(LIMIT_S):
            return await self.requester.run(
                self.daemon, IDENTITY, {"x": self.blob_id}, sources=sources, keep=True
            )

    async def is_right(self, *holders):
        """Hand it over: the daemon gets the tensor, whole, and its result is right."""
        result = await self.hand_over(*holders)
        assert isinstance(result, UnitResult), result
        assert open_receipt(result.receipt).outputs == (("y", self.blob_id),)

    async def gives(self, blob_id):
        """The daemon gives its requester the unit's output over a bulk channel."""
        node = self.requester.node
        await node.store._shelf.drop(blob_id)
        with trio.fail_after(LIMIT_S):
            await fetch_from(node.house, blob_id, [Source(self.daemon.peer)], LIMIT_BYTES)
        assert await node.store.get_bytes(blob_id) == self.data
        assert node.bulk[0] > len(self.data)

    async def names(self, peer, word):
        """Wait until ``shoal peers`` and the log say so of a peer; gives its line of JSON."""
        return await trio.to_thread.run_sync(self._names, peer, word)

    def _names(self, peer, word):
        def shown():
            for view in shoal("peers", "--json", node=self.daemon).json["conduct"]:
                offences = (view["standing"] or {"offences": {}})["offences"]
                words = {*offences, *(note["what"] for note in view["notes"])}
                if view["peer"] == peer and word in words:
                    return view
            return None

        view = eventually(shown, LIMIT_S, f"shoal peers names {peer} for {word}")
        told = shoal("peers", node=self.daemon).stdout
        logged = self.daemon.log_path.read_text().splitlines()
        assert peer in told
        assert any(peer in line and ("rules" in line or "noted" in line) for line in logged)
        self.is_well()
        return view

    def is_well(self):
        """It is the same process as before, and it answers."""
        assert self.daemon.running
        with self.daemon.client() as client:
            assert client.status().pid == self._pid
        assert "Traceback" not in self.daemon.log_path.read_text()

    async def a_token(self, node):
        """Ask the daemon for a bulk channel as a node; gives the offer."""
        wanted = ChannelWanted(certificate=node.channels._certificate.der)
        return await node.control.request(self.daemon.peer, wanted, 5.0)


@pytest.fixture
async def place(swarm, tmp_path):
    async with AsyncExitStack() as stack:
        (daemon,) = swarm.nodes
        if not daemon.running:
            await trio.to_thread.run_sync(swarm.start, daemon)
            await trio.to_thread.run_sync(swarm.wait_ready, daemon)
        enter = stack.enter_async_context
        requester = BareRequester(await enter(open_bulk_node(tmp_path / "r", key=KEY)))
        strangers = [await enter(open_bulk_node(tmp_path / name)) for name in "ab"]
        await requester.connect(daemon)
        yield Place(daemon, requester, strangers)


# --- sources ----------------------------------------------------------------------------


@asynccontextmanager
async def lying(liar, honest, data, lie):
    """While the one does ``lie`` with each request, and the other gives nothing before."""
    serve, answer, asked = serving.serve, honest.channels.answer, threading.Event()

    def serve_or_lie(wire, look_up, disk):
        if disk is not liar.channels._disk:
            serve(wire, look_up, disk)
            return
        wire.shake_hands()
        while True:
            request = wire.receive(ChannelRequest, idle_s=30)
            asked.set()
            lie(wire, request, data)

    async def answer_then(peer, wanted):
        await until(asked.is_set)
        return await answer(peer, wanted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk_lies, "SHORT_S", LONGER_THAN_STALLED_S / 3)
        patch.setattr(serving, "serve", serve_or_lie)
        patch.setattr(honest.channels, "answer", answer_then)
        yield asked


WHAT = dict(LIES) | {closes_at_every_chunk: "broke_off"}
"""How each lie is named where nobody waits for who is slow: another source is there."""


@pytest.mark.parametrize("lie", WHAT, ids=lambda lie: lie.__name__)
async def test_a_source_that_does_harm_is_named_and_another_sends_the_rest(place, lie):
    liar, honest = await place.holder(), await place.holder()
    async with lying(liar, honest, place.data, lie) as asked:
        await place.is_right(liar, honest)
    assert asked.is_set()
    word = "stalled" if WHAT[lie] == "slow_frame" else WHAT[lie]
    view = await place.names(liar.peer, word)
    assert (view["standing"] is None) == (word in {"stalled", "broke_off"})
    assert honest.bulk[1] > 0
    with place.daemon.client() as client:
        assert honest.peer not in {each.peer for each in client.conducts()}


@pytest.mark.parametrize("certificate", ["another", "none"])
async def test_a_source_at_whose_port_is_another_certificate_is_noted(place, certificate):
    liar, honest = await place.holder(), await place.holder()
    if certificate == "another":
        liar.channels.answer = answering_and_changing(liar.channels)
    else:
        own = liar.channels._certificate
        liar.channels._certificate = replace(own, der=bytes(99))
    await place.is_right(liar, honest)
    view = await place.names(liar.peer, "other_certificate")
    assert view["standing"] is None
    assert liar.bulk[1] == 0


def answering_and_changing(channels):
    """An answer to who wants a channel, after which the certificate is another one."""
    answer = channels.answer

    async def answer_and_change(peer, wanted):
        offered = await answer(peer, wanted)
        channels._certificate = make_certificate()
        return offered

    return answer_and_change


# --- callers ----------------------------------------------------------------------------


async def test_who_asks_for_what_it_has_no_right_to_is_noted_and_gets_nothing(place):
    await place.is_right()
    thief = await place.stranger()
    with pytest.raises(NetworkError) as refused:
        await fetch_from(thief.house, place.blob_id, [Source(place.daemon.peer)], LIMIT_BYTES)
    assert refused.value.code == "no_right"
    await place.names(thief.peer, "no_right")

    class Everything:
        left = [range(4)]  # noqa: RUF012

        def more(self):
            return self.left.pop(0) if self.left else None

    with pytest.raises(NetworkError) as refused:
        async with thief.channels.to(place.daemon.peer) as channel:
            await channel.take(chunk_list_of(place.data), Everything())
    assert refused.value.code == "no_right"
    view = await place.names(thief.peer, "no_right")
    assert [note["times"] for note in view["notes"]] == [2]
    assert thief.bulk[0] < 1000
    await place.gives(place.blob_id)


async def test_a_thousand_callers_that_say_nothing_are_counted_by_address(place):
    await place.is_right()
    offer = await place.a_token(place.requester.node)
    silent = []
    try:
        for _ in range(1000):
            silent.append(dial(offer.port))
            await trio.lowlevel.checkpoint()
        await place.gives(place.blob_id)
        with place.daemon.client() as client:
            (caller,) = client.callers()
    finally:
        for sock in silent:
            sock.close()
    assert caller.place == "127.0.0.1"
    assert caller.note.times >= 1000 - SILENT_LIMIT
    told = await trio.to_thread.run_sync(lambda: shoal("peers", node=place.daemon).stdout)
    assert "127.0.0.1" in told
    assert "called at the bulk port" in told
    logged = place.daemon.log_path.read_text().splitlines()
    assert any("noted of a caller" in line and "127.0.0.1" in line for line in logged)
    assert len([line for line in logged if "noted of a caller" in line]) < 20
    place.is_well()


def with_another_certificate(offer, _own):
    return make_certificate(), ssl.TLSVersion.TLSv1_3


def with_tls_1_2(_offer, own):
    return own, ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    ("thieves", "what"),
    [(with_another_certificate, "other_certificate"), (with_tls_1_2, "no_tls")],
)
async def test_a_stolen_token_opens_nothing_and_is_noted_but_held_against_nobody(
    place, thieves, what
):
    await place.is_right()
    owner = await place.stranger()
    offer = await place.a_token(owner)
    certificate, version = thieves(offer, owner.channels._certificate)

    def steal():
        tls = context(certificate, offer.certificate, server=False)
        tls.minimum_version = ssl.TLSVersion.TLSv1_2
        tls.maximum_version = version
        sock = dial(offer.port, MAGIC + offer.token)
        with tls.wrap_socket(sock, suppress_ragged_eofs=False) as wrapped:
            Wire(wrapped, place.daemon.peer, newer=False).receive(ChannelRequest)

    with pytest.raises((NetworkError, OSError)):
        await trio.to_thread.run_sync(steal)
    view = await place.names(owner.peer, what)
    assert view["standing"] is None
    (note,) = view["notes"]
    assert note["times"] == 1
    assert owner.peer in note["detail"]
    async with owner.channels.to(place.daemon.peer):  # as before
        pass
    await place.gives(place.blob_id)


async def test_a_certificate_that_is_none_opens_nothing_and_is_noted(place):
    caller = await place.stranger()
    wanted = ChannelWanted(certificate=bytes(99))
    offer = await caller.control.request(place.daemon.peer, wanted, 5.0)
    with dial(offer.port, MAGIC + offer.token) as sock:
        assert await trio.to_thread.run_sync(sock.recv, 1) == b""
    await place.names(caller.peer, "other_certificate")


async def test_who_sends_garbage_on_a_channel_is_named(place):
    caller = await place.stranger()

    def garbage(wire):
        wire.send_bytes(memoryview(os.urandom(400)))

    async with caller.channels.to(place.daemon.peer) as channel:
        await channel._run(channel._wire, lambda: garbage(channel._wire))
        await place.names(caller.peer, "bad_frame")


# --- this machine -----------------------------------------------------------------------


async def test_a_disk_that_fills_ends_the_transfer_by_name_and_what_came_stays(place):
    holder = await place.holder()
    pid = place.daemon.process.pid
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (9 * MIB + 1000, hard))
    try:
        refusal = await place.hand_over(holder)
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
    assert isinstance(refusal, Refusal), refusal
    assert "is full" in refusal.detail
    place.is_well()
    sent = holder.bulk[1]
    await place.is_right(holder)
    assert holder.bulk[1] - sent < len(place.data) - 5 * MIB
    with place.daemon.client() as client:
        assert holder.peer not in {each.peer for each in client.conducts()}
