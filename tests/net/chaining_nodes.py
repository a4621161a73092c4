"""Nodes with a provider and no membership: what each can reach is what the test says."""

import secrets
from contextlib import AsyncExitStack, asynccontextmanager

import models
from attacker import make_award, make_call

from shoal.compute.convert import convert
from shoal.compute.supervisor import open_worker
from shoal.compute.tensor import to_blob
from shoal.crypto import identity
from shoal.crypto.content import BlobId, blob_id_of
from shoal.node.bidding import Terms
from shoal.node.blob_transfer import BLOB_PROTOCOL, BlobServer, Rights
from shoal.node.blobs import open_store
from shoal.node.control import open_control
from shoal.node.errors import NetworkError
from shoal.node.house import House, hold
from shoal.node.network import open_network
from shoal.node.provider import open_provider
from shoal.node.state import open_state
from shoal.protocol.negotiation_messages import Drop, Share, UnitRequest, UnitResult
from shoal.protocol.statements import open_receipt, statement_id

LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]
LIMIT_S = 30.0
MIB = 1 << 20
DENSE = convert(models.dense())
IDENTITY = convert(models.identity())
ROWS = models.rows(8000)  # 128 kB: more than a message carries at once with others
X = to_blob(ROWS)


class Node:
    """A node with a provider, without membership; the test says whom it can reach."""

    def __init__(self, key, network, store, worker, quota_bytes):
        self.key, self.network, self.store, self.worker = key, network, store, worker
        self.rights, self.offences = Rights(), []
        self.dials, self.known = [], {}
        self.allowed = set()

    async def reach(self, peer):
        self.dials.append(peer)
        if peer in self.network.connected():
            return
        if peer not in self.known:
            raise NetworkError(f"{peer} is not known", code="unknown_peer")
        await self.network.connect(peer, self.known[peer], 5)

    def broke(self, peer, offence, _detail):
        self.offences.append((peer, offence))

    def terms(self):
        return Terms(
            device="cpu",
            executors={"fp32": "onnxruntime"},
            memory_bytes=1 << 32,
            providing=True,
            own=self.key.peer_id,
            draining=False,
            allowed=self.allowed,
            leases=0,
            units_waiting=0,
            sandboxed=True,
        )

    async def answer(self, peer, body):
        if isinstance(body, Share | Drop):
            return self.provider.answer_about_kept(peer, body)
        return await self.provider.answer(peer, body)

    @property
    def peer(self):
        return self.key.peer_id

    def meets(self, *others):
        for other in others:
            self.known[other.peer] = other.network.addresses()
            other.known[self.peer] = self.network.addresses()

    async def tell(self, other, message):
        await self.reach(other.peer)
        return await self.house.control.request(other.peer, message, LIMIT_S)

    async def lease(self, provider, program):
        """A lease of ``provider`` for a program; gives how to ask for its units."""
        for blob in program.blobs.values():
            await self.store.put_bytes(blob)
        call = make_call(program.program_id, secrets.token_hex(16), units=64)
        bid = await self.tell(provider, call)
        award = make_award(self.key, provider.peer, call, bid, units_max=64, idle_s=30.0)
        self.rights.grant("award", provider.peer, program.blobs)
        lease = await self.tell(provider, award)
        assert lease.award == statement_id(award.award)

        async def ask(number, blob_id, blob=None, **fields):
            request = UnitRequest(
                call=call.call,
                unit=f"j/{number}",
                inputs=(("x", blob_id),),
                blobs=() if blob is None else (blob,),
                **fields,
            )
            return await self.tell(provider, request)

        return ask

    async def fetches(self, other, blob_id, **kwargs):
        """Fetch a blob from ``other``; gives it, or why not."""
        await self.reach(other.peer)
        try:
            await hold(self.house, other.peer, blob_id, "test", 10 * MIB, **kwargs)
        except NetworkError as error:
            return error.code
        return await self.store.get_bytes(blob_id)

    async def fetches_for(self, requester, source, blob_id):
        """The same in the name of ``requester``."""
        await self.reach(source.peer)
        try:
            await hold(self.house, requester.peer, blob_id, "test", 10 * MIB, [source.peer])
        except NetworkError as error:
            return error.code
        return await self.store.get_bytes(blob_id)


@asynccontextmanager
async def open_node(home, quota_bytes=1 << 30):
    key = identity.generate()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        network = await enter(open_network(key, LOOPBACK))
        store = await enter(open_store(home / "blobs", quota_bytes))
        worker = await enter(open_worker(threads=1))
        node = Node(key, network, store, worker, quota_bytes)
        node.house = House(
            identity=key,
            network=network,
            control=await enter(open_control(network, "test/1")),
            store=store,
            rights=node.rights,
            journal=await enter(open_state(home / "state.sqlite")),
            worker=worker,
            reach=node.reach,
            terms=node.terms,
            broke=node.broke,
        )
        node.provider = await enter(open_provider(node.house))
        node.house.control.answer_with(node.answer)
        server = BlobServer(key.peer_id, store, node.rights, node.house.kept)
        network.handle(BLOB_PROTOCOL, server.serve)
        yield node


async def made(requester, provider, number=0):
    """Have ``provider`` make and keep y = dense(ROWS); gives its id."""
    ask = await requester.lease(provider, DENSE)
    result = await ask(number, blob_id_of(X), X, keep=True)
    assert isinstance(result, UnitResult), result
    ((blob_id, size_bytes),) = result.kept
    assert result.blobs == ()
    assert open_receipt(result.receipt).outputs == (("y", blob_id),)
    assert size_bytes == provider.store.size_bytes(BlobId(blob_id))
    return BlobId(blob_id)
