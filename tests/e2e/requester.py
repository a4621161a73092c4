"""A requester in the test's own process, of the daemon's own modules, for one provider.

It counts the bytes that it sends over blob streams, which no daemon tells.
"""

import secrets
from contextlib import AsyncExitStack, asynccontextmanager

import trio
from attacker import make_call

from shoal.compute.supervisor import open_worker
from shoal.crypto.content import blob_id_of
from shoal.node.blob_transfer import BLOB_PROTOCOL, BlobServer, Rights
from shoal.node.blobs import open_store
from shoal.node.control import open_control
from shoal.node.house import House
from shoal.node.jobs import open_jobs
from shoal.node.network import open_network
from shoal.node.records import JobSpec, Policy
from shoal.node.settling import open_settling
from shoal.node.state import open_state
from shoal.protocol.messages import Adverts, Digest, Done
from shoal.protocol.negotiation_messages import Bid

LIMIT_S = 60.0
NO_PROGRAM = blob_id_of(b"no program")


class Requester:
    """Runs jobs on one provider. Made by `open_requester`."""

    def __init__(self, house, provider):
        self.house = house
        self.provider = provider
        self.blob_bytes_sent = 0
        self._server = BlobServer(house.peer_id, house.store, house.rights)
        house.control.answer_with(self._answer)
        house.network.handle(BLOB_PROTOCOL, self.serve_blob)

    async def connect(self):
        """Connect to the provider, again after it was started again, and wait for its bids."""
        place = self.provider.address.rpartition("/p2p/")[0]
        await self.house.network.connect(self.provider.peer, [place], 5.0)
        with trio.fail_after(LIMIT_S):
            # it looks for executors first, and tells nobody when it has them
            while not isinstance(await self._bid(), Bid):  # noqa: ASYNC110
                await trio.sleep(0.05)

    async def serve_blob(self, stream):
        send_all = stream.send_all

        async def counted(data):
            self.blob_bytes_sent += len(data)
            await send_all(data)

        stream.send_all = counted
        await self._server.serve(stream)

    async def run(self, program, x, units=1):
        """Run the same unit so often; gives an output's id and the bytes of blob streams."""
        before = self.blob_bytes_sent
        for blob in (*program.blobs.values(), x):
            await self.house.store.put_bytes(blob)
        spec = JobSpec(Policy.MAP, program.program_id, ({"x": blob_id_of(x)},) * units)
        job = await self.jobs.submit(spec)
        with trio.fail_after(LIMIT_S):
            async with self.jobs.watch(job.id) as changes:
                async for _ in changes:
                    pass
        unit, *_ = await self.house.journal.units(job.id, 0, 10)
        assert unit.outputs is not None, unit
        return unit.outputs["y"], self.blob_bytes_sent - before

    async def price_of(self, program_id, program_bytes):
        """What the provider asks for one unit of a program that is said to be so large."""
        return (await self._bid(program_id, program_bytes=program_bytes)).price

    async def _bid(self, program_id=NO_PROGRAM, **changes):
        call = make_call(program_id, secrets.token_hex(16), **changes)
        return await self.house.control.request(self.provider.peer, call, LIMIT_S)

    async def _answer(self, _peer, body):
        return Adverts(adverts=()) if isinstance(body, Digest) else Done()


@asynccontextmanager
async def open_requester(home, key, provider):
    async def is_connected(_peer):
        pass

    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        network = await enter(open_network(key, ["/ip4/127.0.0.1/tcp/0"]))
        house = House(
            identity=key,
            network=network,
            control=await enter(open_control(network, "requester/1")),
            store=await enter(open_store(home / "blobs", 1 << 30)),
            rights=Rights(),
            journal=await enter(open_state(home / "state.sqlite")),
            worker=await enter(open_worker(threads=1)),
            reach=is_connected,
            terms=None,
        )
        await enter(open_settling(house))
        requester = Requester(house, provider)
        requester.jobs = await enter(open_jobs(house, lambda _: [provider.peer]))
        await requester.connect()
        yield requester
