"""Nodes without membership that run jobs, and peers of theirs that are told what to do."""

import secrets
from contextlib import AsyncExitStack, asynccontextmanager

import models
import msgspec
import numpy as np
import trio
import trio.testing
from attacker import Liar, make_award, make_call

from shoal.compute.convert import convert
from shoal.compute.supervisor import open_worker
from shoal.compute.tensor import to_blob
from shoal.crypto import identity
from shoal.crypto.content import blob_id_of
from shoal.node import house, jobs
from shoal.node.bidding import Terms
from shoal.node.blob_transfer import Rights
from shoal.node.blobs import open_store
from shoal.node.control import open_control
from shoal.node.network import open_network
from shoal.node.owner import OPEN
from shoal.node.provider import open_provider
from shoal.node.records import JobSpec, Policy
from shoal.node.state import open_state
from shoal.protocol.messages import Done
from shoal.protocol.negotiation_messages import Call, Reason, Refusal, UnitRequest

LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]
LIMIT_S = 30.0
MIB = 1 << 20
DENSE = convert(models.dense())
GATHER = convert(models.gather())
SLOW = convert(models.slow(100_000))
X = to_blob(models.rows(3))
OUT_OF_RANGE = to_blob(np.array([1 << 20]))
FRIEND = identity.generate()
NOWHERE = blob_id_of(b"held by nobody")


class Node:
    """A node without membership: who offers to work is what the test says."""

    def __init__(self, key, network, control, blobs, journal, worker):
        self.key, self.network, self.blobs, self.journal = key, network, blobs, journal
        self.offering = [key.peer_id]
        self.draining = self.sandboxed = False
        self.stance = OPEN
        self.withheld = lambda _peer: None
        self.rights = Rights()
        self.house = house.House(
            identity=key,
            network=network,
            control=control,
            store=blobs,
            rights=self.rights,
            journal=journal,
            worker=worker,
            reach=self.reach,
            terms=self.terms,
        )

    async def reach(self, peer):
        pass

    def terms(self):
        return Terms(
            device="cpu",
            executors={"fp32": "onnxruntime"},
            memory_bytes=1 << 32,
            providing=True,
            own=self.key.peer_id,
            draining=self.draining,
            allowed={FRIEND.peer_id},
            leases=self.provider.leases,
            units_waiting=self.provider.units_waiting,
            waiting_s=self.provider.load_on("cpu").waiting_s,
            stance=self.stance,
            sandboxed=self.sandboxed,
            withheld=self.withheld,
        )

    async def spec(self, *inputs, program=DENSE):
        """Of a job with one unit for each of ``inputs``; all of its blobs are stored."""
        for blob in (*program.blobs.values(), *inputs):
            await self.blobs.put_bytes(blob)
        units = tuple({"x": blob_id_of(blob)} for blob in inputs)
        return JobSpec(Policy.MAP, program.program_id, units)

    async def ended(self, job_id):
        with trio.fail_after(LIMIT_S):
            async with self.jobs.watch(job_id) as changes:
                async for _ in changes:
                    pass
            return await self.journal.job(job_id)


@asynccontextmanager
async def open_node(home, quota_bytes=1 << 30):
    key = identity.generate()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        network = await enter(open_network(key, LOOPBACK))
        control = await enter(open_control(network, "test/1"))
        blobs = await enter(open_store(home / "blobs", quota_bytes))
        journal = await enter(open_state(home / "state.sqlite"))
        worker = await enter(open_worker(threads=1))
        node = Node(key, network, control, blobs, journal, worker)
        node.provider = await enter(open_provider(node.house))
        node.jobs = await enter(jobs.open_jobs(node.house, lambda _: list(node.offering)))
        control.answer_with(node.provider.answer)
        yield node


async def until(condition):
    with trio.fail_after(LIMIT_S):
        while not await condition():  # noqa: ASYNC110  # of others' states, which tell nobody
            await trio.sleep(0.01)


@asynccontextmanager
async def open_peer(kind, node):
    """A peer of ``kind`` (of `Liar`) that is connected to ``node`` and offers to work."""
    key = identity.generate()
    async with (
        open_network(key, LOOPBACK) as network,
        open_control(network, "test/1") as control,
    ):
        peer = kind(key, network)
        control.answer_with(peer.answer)
        await network.connect(node.network.peer_id, node.network.addresses(), 5)
        node.offering.append(key.peer_id)
        yield peer


async def bid_for(node, program=DENSE.program_id, **changes):
    call = msgspec.structs.replace(make_call(program, secrets.token_hex(16)), **changes)
    return call, await node.provider.answer(FRIEND.peer_id, call)


async def lease_for(node, **changes):
    """Gives the call and the lease of a friend who has the program, and is not connected."""
    node.house.known.note(FRIEND.peer_id, DENSE.blobs)
    call, bid = await bid_for(node, **changes)
    award = make_award(FRIEND, node.key.peer_id, call, bid, units_max=8)
    return call, await node.provider.answer(FRIEND.peer_id, award)


def unit_of(call, name, blob=X):
    inputs = (("x", blob_id_of(blob)),)
    return UnitRequest(call=call.call, unit=name, inputs=inputs, blobs=(blob,))


class Distrusts(Liar):
    async def answer(self, peer, body):
        if isinstance(body, Call):
            return Refusal(call=body.call, reason=Reason.UNTRUSTED_REQUESTER)
        return Done()
