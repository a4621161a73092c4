"""Nodes with a store, a control stream and a bulk channel, on loopback and with real TLS."""

import socket
import time
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from shoal.crypto import identity
from shoal.node.addresses import parse_address
from shoal.node.blob_reception import Reception
from shoal.node.blob_transfer import BLOB_PROTOCOL, BlobServer, Rights
from shoal.node.blobs import open_store
from shoal.node.bulk.certificates import context
from shoal.node.bulk.channels import open_channels
from shoal.node.bulk.listener import listen
from shoal.node.bulk.wire import Wire, begin
from shoal.node.control import open_control
from shoal.node.house import House
from shoal.node.kept_outputs import KeptOutputs
from shoal.node.network import open_network
from shoal.node.program_shares import ProgramShares
from shoal.protocol.channel_messages import MAGIC, ChannelWanted
from shoal.protocol.messages import Problem

LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]
MIB = 1 << 20
LIMIT_BYTES = 1 << 30


class BulkNode:
    """What a daemon has of blobs, without anything that runs units."""

    def __init__(self, home, key, network, control, store, announce):
        self.key, self.peer = key, key.peer_id
        self.home = home
        self.network, self.control, self.store = network, control, store
        self.rights, self.kept, self.shares = Rights(), KeptOutputs(), ProgramShares()
        self.broken, self.noted, self.callers = [], [], []
        self.book = {}
        self.announce = announce
        self.streams = []
        self.blobs = BlobServer(
            self.peer,
            store,
            self.rights,
            self.kept,
            self.shares,
            newer=control.versions.is_newer,
            broke=self.broke,
            noted=self.note,
        )

    def broke(self, peer, offence, detail):
        self.broken.append((peer, offence.value, detail))

    def note(self, peer, what, detail):
        self.noted.append((peer, what.value, detail))

    def called(self, place, detail):
        self.callers.append((place, detail))

    async def answer(self, peer, body):
        if isinstance(body, ChannelWanted):
            return await self.channels.answer(peer, body)
        return Problem(code="not_served", message="it only serves blobs")

    async def serve_stream(self, stream):
        self.streams.append(stream.remote)
        await self.blobs.serve(stream)

    @property
    def bulk(self):
        """Bytes that went over bulk channels so far: received, sent."""
        self.channels.count()
        traffic = self.network.traffic("bulk")
        return traffic.received, traffic.sent

    async def reach(self, peer):
        """As a daemon does, which knows peers' addresses by their adverts."""
        await self.network.connect(peer, self.book[peer], 5)

    def falsify(self, blob_id):
        """Have the file of a blob wrong in every chunk, of which the node knows nothing."""
        (path,) = self.home.glob(f"*/{blob_id}")
        data = bytearray(path.read_bytes())
        data[:: MIB // 2] = bytes(255 - byte for byte in data[:: MIB // 2])
        path.write_bytes(data)

    async def give(self, taker, data):
        """Hold ``data`` and let a node have it; gives its id."""
        blob_id = await self.store.put_bytes(data)
        self.rights.grant("a lease", taker.peer, [blob_id])
        return blob_id


@asynccontextmanager
async def open_bulk_node(
    home, *, bulk="auto", quota_bytes=LIMIT_BYTES, announce=None, key=None
):
    key = key or identity.generate()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        network = await enter(open_network(key, LOOPBACK))
        control = await enter(open_control(network, "test/1"))
        store = await enter(open_store(home, quota_bytes))
        node = BulkNode(home, key, network, control, store, announce)
        listeners = []
        if bulk != "off":
            listeners = await listen(bulk, [parse_address(text) for text in LOOPBACK])
        node.channels = await enter(
            open_channels(
                network,
                control,
                node.blobs,
                listeners,
                announce=announce,
                broke=node.broke,
                noted=node.note,
                called=node.called,
            )
        )
        node.house = House(
            identity=key,
            network=network,
            control=control,
            store=store,
            rights=node.rights,
            kept=node.kept,
            shares=node.shares,
            channels=node.channels,
            journal=None,
            worker=None,
            reach=node.reach,
            terms=None,
            broke=node.broke,
            noted=node.note,
        )
        network.handle(BLOB_PROTOCOL, node.serve_stream)
        control.answer_with(node.answer)
        yield node


@asynccontextmanager
async def giver_and_taker(tmp_path, **kwargs):
    async with (
        open_bulk_node(tmp_path / "giver") as giver,
        open_bulk_node(tmp_path / "taker", **kwargs) as taker,
    ):
        await taker.network.connect(giver.peer, giver.network.addresses(), 5)
        yield giver, taker


def at_rest(*nodes):
    """Whether no channel is open and no thread is at work for one."""
    return not any(
        node.channels._served
        or node.channels._working
        or node.channels._resting
        or node.channels._serving_threads.borrowed_tokens
        or node.channels._taking_threads.borrowed_tokens
        for node in nodes
    )


@contextmanager
def dropping_after(taker, chunks):
    """A cancel scope that ends once so many chunks have been written, as a kill would."""
    scope, token = trio.CancelScope(), trio.lowlevel.current_trio_token()
    write, written = Reception.write_here, []

    def counted(self, index, chunk):
        write(self, index, chunk)
        written.append(index)
        if len(written) == chunks:
            token.run_sync_soon(scope.cancel)
            time.sleep(0.05)  # in a thread of the taker, for the loop to hear of it

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reception, "write_here", counted)
        yield scope


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def dial(port, data=b""):
    """A plain connection to a bulk port."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=5)
    sock.sendall(data)
    return sock


def wire_to(giver, offer, certificate):
    """Dial as a taker does, and be one."""
    sock = dial(offer.port, MAGIC + offer.token)
    tls = context(certificate, offer.certificate, server=False)
    asker = Wire(begin(tls, sock, server=False), giver.peer, newer=False)
    asker.shake_hands()
    return asker


async def until(condition, limit_s=60.0):
    with trio.fail_after(limit_s):
        while not condition():  # noqa: ASYNC110  # of another node, which tells nobody
            await trio.sleep(0.01)
