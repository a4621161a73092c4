"""A provider that was killed answers for what it signed before, with nothing left of inputs."""

import models
import pytest
import trio
from requester import open_requester

from shoal.compute.convert import convert
from shoal.compute.tensor import to_blob
from shoal.crypto import identity
from shoal.crypto.content import blob_id_of
from shoal.node.defending import WRITE_INTERVAL_S
from shoal.node.demo.swarm import Swarm
from shoal.node.records import JobSpec, Policy
from shoal.protocol.checking_messages import LeafGiven, LeafWanted, TraceGiven, TraceWanted
from shoal.protocol.statements import open_trace_root

pytestmark = pytest.mark.usefixtures("exact")

EXACT_LIMIT_S = 90.0
"""Until a daemon offers the class exact."""


@pytest.fixture
def key():
    return identity.generate()


@pytest.fixture
def swarm(key):
    with Swarm(1, settings=[f"--allow={key.peer_id}"]) as swarm:
        swarm.start_all()
        yield swarm


async def run_one(requester, program, x):
    """A unit of the class exact; gives its receipt's id."""
    for blob in (*program.blobs.values(), x):
        await requester.house.store.put_bytes(blob)
    spec = JobSpec(
        Policy.RUN, program.program_id, ({"x": blob_id_of(x)},), numeric_class="exact"
    )
    job = await requester.jobs.submit(spec)
    with trio.fail_after(EXACT_LIMIT_S):
        async with requester.jobs.watch(job.id) as changes:
            async for _ in changes:
                pass
    (unit,) = await requester.house.journal.units(job.id, 0, 1)
    assert unit.provider == requester.provider.peer, unit
    return unit.receipt


async def ask(requester, question):
    """Ask once: it is not refused while the provider still compiles its kernels."""
    peer = requester.provider.peer
    return await requester.house.control.request(peer, question, EXACT_LIMIT_S)


async def test_a_provider_killed_between_receipt_and_dispute_shows_its_trace(
    swarm, key, tmp_path
):
    (node,) = swarm.nodes
    program, x = convert(models.dense(), "x20"), to_blob(models.rows(3))
    async with open_requester(tmp_path, key, node) as requester:
        receipt = await run_one(requester, program, x)
        await trio.sleep(2 * WRITE_INTERVAL_S)
        node.kill()
        await trio.to_thread.run_sync(swarm.start, node)
        await trio.to_thread.run_sync(swarm.wait_ready, node)
        await requester.connect()
        # As a dispute does: inputs went with the unit, and are fetched anew.
        needed = [*program.blobs, blob_id_of(x)]
        requester.house.rights.grant("dispute/1", node.peer, needed)
        given = await ask(requester, TraceWanted(receipt=receipt, stage=None))
        assert isinstance(given, TraceGiven), given
        root = open_trace_root(given.root)
        assert (root.receipt, root.provider) == (receipt, node.peer)
        leaf = await ask(requester, LeafWanted(receipt=receipt, stage=None, index=0))
        assert isinstance(leaf, LeafGiven), leaf
        assert requester.blob_bytes_sent >= len(x)
