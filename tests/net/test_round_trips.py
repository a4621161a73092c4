"""How many round trips a unit takes: two nodes, and a link between them that takes its time.

The delay is so long beside everything else that its whole multiples in the time that passed
are round trips, on a busy machine too.
"""

from contextlib import asynccontextmanager

import numpy as np
import trio
from job_nodes import LIMIT_S, open_node
from onnx import parser

from shoal.compute.convert import convert
from shoal.compute.tensor import to_blob
from shoal.node import submission
from shoal.node.blob_transfer import BLOB_PROTOCOL, BlobServer
from shoal.node.records import JobSpec, JobState, Policy, UnitState
from shoal.protocol.checking_messages import Reveal
from shoal.protocol.limits import INLINE_LIMIT_BYTES

ROUND_TRIP_S = 0.6
LARGE = INLINE_LIMIT_BYTES // 4 + 1
SUM = convert(
    parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>'
        "g (float[n] x) => (float[1] y) { y = ReduceSum (x) }"
    ).SerializeToString()
)


async def carry(source, sink):
    """Pass on what comes, each piece later by half a round trip."""
    send, receive = trio.open_memory_channel(10_000)

    async def deliver():
        async for due_s, data in receive:
            await trio.sleep_until(due_s)
            await sink.send_all(data)
        await sink.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(deliver)
        async with send:
            async for data in source:
                await send.send((trio.current_time() + ROUND_TRIP_S / 2, bytes(data)))


async def relay(port, stream):
    onward = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream, onward, trio.open_nursery() as nursery:
        nursery.start_soon(carry, stream, onward)
        nursery.start_soon(carry, onward, stream)


async def answer(node, peer, body):
    if isinstance(body, Reveal):
        return await node.provider.revealed(peer, body)
    return await node.provider.answer(peer, body)


@asynccontextmanager
async def far_apart(tmp_path):
    """A requester and its provider, who has run a unit of `SUM` for it."""
    async with open_node(tmp_path / "near") as near, open_node(tmp_path / "far") as far:
        for node in (near, far):
            server = BlobServer(node.key.peer_id, node.blobs, node.rights)
            node.network.handle(BLOB_PROTOCOL, server.serve)
        far.house.control.answer_with(lambda *asked: answer(far, *asked))
        far.sandboxed = True  # it works for whom it does not know
        (address,) = far.network.addresses()
        port = int(address.split("/")[4])
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            link = f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}"
            nursery.start_soon(
                trio.serve_listeners, lambda stream: relay(port, stream), [listener]
            )
            await near.network.connect(
                far.network.peer_id, [f"{link}/p2p/{far.network.peer_id}"], LIMIT_S
            )
            near.offering = [far.network.peer_id]
            await run(near, 1)
            with trio.fail_after(LIMIT_S):
                while near.jobs._negotiation.letting_go:  # noqa: ASYNC110  # tells nobody
                    await trio.sleep(0.05)
            yield near
            nursery.cancel_scope.cancel()


async def run(node, elements):
    """A job of one unit, with an input that there was not before."""
    x = to_blob(np.ones(elements, np.float32))
    job = await node.jobs.submit(await node.spec(x, program=SUM))
    assert (await node.ended(job.id)).state is JobState.DONE


async def add(node, job, elements):
    """One more unit of an open job."""
    at = (await node.journal.job(job.id)).units_total
    _, taken = await submission.add_units(
        node.house, job.id, [{"x": to_blob(np.ones(elements, np.float32))}]
    )
    node.jobs.units_added(job.id, taken)
    with trio.fail_after(LIMIT_S):
        async with node.jobs.watch(job.id) as changes:
            async for _ in changes:
                (unit,) = await node.journal.units(job.id, at, 1)
                if unit.state is UnitState.DONE:
                    return


async def round_trips(doing):
    began_s = trio.current_time()
    await doing
    return int((trio.current_time() - began_s) / ROUND_TRIP_S)


async def test_a_unit_takes_two_round_trips_without_a_lease_and_two_more_for_its_inputs(
    tmp_path,
):
    async with far_apart(tmp_path) as node:
        assert await round_trips(run(node, 2)) == 2
        assert await round_trips(run(node, LARGE)) == 4


async def test_a_unit_under_a_lease_that_is_held_takes_one_round_trip(tmp_path):
    async with far_apart(tmp_path) as node:
        job = await node.jobs.submit(JobSpec(Policy.MAP, SUM.program_id, (), open=True))
        assert await round_trips(add(node, job, 3)) == 2
        assert await round_trips(add(node, job, 4)) == 1
        assert await round_trips(add(node, job, 5)) == 1
        first, second = (node.house.timings.of(job.id, index).steps for index in (0, 1))
        assert first["negotiated"] >= ROUND_TRIP_S > second["queued"]
        assert 2 * ROUND_TRIP_S > second["handed_over"] >= ROUND_TRIP_S
        assert second.keys() >= {"fetched", "waited", "executed", "signed", "verified"}
