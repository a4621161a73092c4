"""Nodes that have convictions and no more of a daemon; proofs say what there is to find."""

import json
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import msgspec
import trio

from shoal.compute.errors import ComputeError
from shoal.crypto import identity
from shoal.crypto.content import blob_id_of
from shoal.crypto.errors import VerificationError
from shoal.node.believed_proofs import Charge
from shoal.node.blob_transfer import BLOB_PROTOCOL, EVERYBODY, BlobServer, Rights
from shoal.node.blobs import open_store
from shoal.node.control import open_control
from shoal.node.convictions import Convictions, open_convictions
from shoal.node.house import House
from shoal.node.network import open_network
from shoal.node.state import open_state
from shoal.protocol.checking_messages import Accusation, AccusationsWanted
from shoal.protocol.verification.fraud_proof import Outcome, Verdict

LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]
NOW_S = 1_700_000_000.0
LIAR, OTHER = (identity.generate().peer_id for _ in range(2))
BLOBS = [b"a manifest", b"a graph", bytes(200_000)]


def a_proof(accused=LIAR, verdict="convicted", at_s=NOW_S, blobs=BLOBS, **more):
    fields = {"accused": accused, "verdict": verdict, "at": at_s}
    return json.dumps(fields | {"blobs": [blob_id_of(blob) for blob in blobs]} | more).encode()


def read(proof):
    try:
        said = json.loads(proof)
    except ValueError:
        raise VerificationError("this is no proof", code="bad_proof") from None
    if said.get("form", 1) > 1:
        raise VerificationError("a form that is not known", code="version_unsupported")
    return Charge(said["accused"], said["at"])


def by_id(blobs=BLOBS):
    return {blob_id_of(blob): blob for blob in blobs}


def accuse(proof, accused=LIAR, blobs=BLOBS, **changes):
    return msgspec.structs.replace(
        Accusation(
            proof=blob_id_of(proof),
            accused=accused,
            proof_bytes=len(proof),
            blobs=tuple(by_id(blobs)),
            blobs_bytes=sum(map(len, blobs)),
        ),
        **changes,
    )


class Node:
    """A node that has convictions, and no more of a daemon."""

    def __init__(self, network, control, store, journal):
        self.network, self.control, self.store = network, control, store
        self.judged, self.blamed, self.told, self.banned = [], [], [], []
        self.heard = []
        self.now_s = NOW_S
        self.failing = False
        self.rights = Rights()
        self.house = House(
            identity=None,
            network=network,
            control=control,
            store=store,
            rights=self.rights,
            journal=journal,
            worker=None,
            reach=None,
            terms=None,
        )
        self.convictions = Convictions(
            judge=self.judge,
            read=read,
            links=network.connected,
            matters=lambda peer: peer in {LIAR, OTHER, *self.known},
            convicted=lambda peer, why: self.told.append((peer, why)),
            accused_falsely=lambda peer, _why: self.blamed.append(peer),
            wall_s=lambda: self.now_s,
        )
        self.known = set()
        self.convictions.on_ban.append(self.banned.append)
        self.house = replace(self.house, convictions=self.convictions)
        self.convictions.house = self.house

    @property
    def peer(self):
        return self.network.peer_id

    async def judge(self, proof, blobs):
        await trio.lowlevel.checkpoint()
        self.judged.append(blob_id_of(proof))
        if self.failing:
            raise ComputeError("the worker died", code="worker_died")
        said = json.loads(proof)
        if not set(said["blobs"]) <= set(blobs):
            return Verdict(Outcome.UNDECIDED, said["accused"], "blobs are missing")
        assert all(blob_id_of(blob) == blob_id for blob_id, blob in blobs.items())
        return Verdict(Outcome(said["verdict"]), said["accused"], "node 7 is another sum")

    async def answer(self, peer, body):
        assert isinstance(body, Accusation | AccusationsWanted)
        self.heard.append(body)
        return await self.convictions.answer(peer, body)

    async def meets(self, other):
        await self.network.connect(other.peer, other.network.addresses(), 5)

    async def publishes(self, proof, blobs=BLOBS):
        """As a liar does it who says what is false."""
        ids = [await self.store.put_bytes(blob) for blob in (proof, *blobs)]
        self.rights.grant("made up", EVERYBODY, ids)

    async def says(self, other, accusation):
        return await self.control.request(other.peer, accusation, 5)

    def bans(self, peer=LIAR):
        return self.convictions.is_banned(peer) is not None

    @property
    def ended(self):
        return dict(self.convictions.ended)


@asynccontextmanager
async def open_node(home, key=None, quota_bytes=64 << 20):
    key = key or identity.generate()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        home.mkdir(exist_ok=True)
        network = await enter(open_network(key, LOOPBACK))
        journal = await enter(open_state(home / "state.sqlite"))
        store = await enter(open_store(home / "blobs", quota_bytes))
        control = await enter(open_control(network, "test/1"))
        node = Node(network, control, store, journal)
        node.house = replace(node.house, identity=key)
        node.convictions.house = node.house
        blobs = BlobServer(key.peer_id, store, node.rights)
        network.handle(BLOB_PROTOCOL, blobs.serve)
        await node.convictions.load()
        control.answer_with(node.answer)
        await enter(open_convictions(node.convictions))
        yield node


@asynccontextmanager
async def open_nodes(home, count):
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(open_node(home / str(place)))
            for place in range(count)
        ]


async def until(condition):
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110  # what ends it is in another task
            await trio.sleep(0.02)
