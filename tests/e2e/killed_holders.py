"""A large tensor goes to one daemon from three others, of which two are killed on the way.

All four are whole daemons. The requester is the test itself, by the daemon's own modules: each
of three providers computes the tensor for it and keeps it; then the fourth is handed a unit
that takes it, with the three named as its sources. Or the fourth is killed half-way, and is
handed the unit again when it is back. Bytes are counted by the daemons' own metrics.
"""

import re
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import models
import numpy as np
import trio
from bare_requester import BareRequester
from bulk_nodes import MIB, open_bulk_node

from shoal.compute.convert import convert
from shoal.compute.tensor import to_blob
from shoal.crypto.content import blob_id_of, chunk_list_of, decode_chunk_list
from shoal.crypto.errors import VerificationError
from shoal.node.bulk.plan import TWICE_SHARE
from shoal.node.demo.swarm import Swarm
from shoal.protocol.negotiation_messages import Share, Shared, UnitResult
from shoal.protocol.statements import open_receipt

KILLED_AT = (0.3, 0.6)
"""Of the tensor's bytes, as they have come by then."""

LIMIT_S = 300.0
POLL_S = 0.01
COLUMNS = 4 * MIB // 4 // 64
"""64 rows have 4 MiB."""

MAKES_IT = convert(models.outer_sum())
LOOKS_AT_IT = convert(models.first_row())


@dataclass(frozen=True)
class Ended:
    """How the transfer ended.

    Attributes:
        size_bytes: Of the tensor.
        received: What the taker got over bulk channels since it was started last.
        by_stream: Likewise by blob streams.
        kept: What it had of the tensor when it was killed, if it was.
    """

    size_bytes: int
    received: int
    by_stream: int
    kept: int = 0

    @property
    def missing_at_most(self):
        """What may be sent to one who has `kept`: the rest, of which a little is asked of two
        sources at once in the end, and the frames around it."""
        rest = self.size_bytes - self.kept
        return rest + max(MIB, int(rest * TWICE_SHARE)) + MIB // 16


def counted(node, way, protocol):
    """Bytes that a daemon sent or received by one protocol, by its metrics."""
    with node.client() as client:
        found = re.search(
            rf'^shoal_stream_{way}_bytes_total\{{.*protocol="{protocol}".*\}} (\S+)$',
            client.metrics(),
            re.MULTILINE,
        )
    return int(float(found[1])) if found else 0


def memory_bytes(size_bytes):
    """What a unit may use that makes so much: as a tensor, as a blob, and on its way out."""
    return 4 * size_bytes + (1 << 30)


class Requester(BareRequester):
    """Has daemons make the tensor, keep it, share it and take it."""

    def __init__(self, node, rows):
        super().__init__(node)
        self._small = [
            to_blob(np.arange(rows, dtype=np.float32)[:, None] * COLUMNS),
            to_blob(np.arange(COLUMNS, dtype=np.float32)[None, :]),
        ]
        self._memory_bytes = memory_bytes(rows * COLUMNS * 4)
        self.large = None

    async def have_it_made(self, daemon):
        """Have the tensor computed and kept."""
        for blob in self._small:
            await self.node.store.put_bytes(blob)
        inputs = dict(zip("xz", map(blob_id_of, self._small), strict=True))
        result = await self._run(daemon, MAKES_IT, inputs, keep=True)
        receipt = open_receipt(result.receipt)
        assert receipt.error is None, receipt.error
        ((_, self.large),) = receipt.outputs
        assert [blob_id for blob_id, _ in result.kept] == [self.large]

    async def have_it_shared(self, daemon, taker):
        answer = await self.ask(daemon, Share(blobs=(self.large,), peer=taker.peer))
        assert answer == Shared(missing=())

    async def have_it_taken(self, taker, holders):
        """Hand over a unit that takes it from those who keep it; its result must be right."""
        sources = tuple((self.large, holder.peer) for holder in holders)
        result = await self._run(taker, LOOKS_AT_IT, {"x": self.large}, sources=sources)
        receipt = open_receipt(result.receipt)
        assert receipt.error is None, receipt.error
        assert receipt.inputs == (("x", self.large),)
        row = to_blob(np.arange(COLUMNS, dtype=np.float32)[None, :])
        assert receipt.outputs == (("y", blob_id_of(row)),)

    async def _run(self, daemon, program, inputs, **how):
        how["memory_bytes"] = self._memory_bytes
        result = await self.run(daemon, program, inputs, **how)
        assert isinstance(result, UnitResult), result
        return result


@asynccontextmanager
async def three_holders(tmp_path, size_bytes):
    """Give a requester, three daemons that keep the tensor, and a fourth that may have it."""
    async with open_bulk_node(tmp_path / "requester", bulk="off") as node:
        requester = Requester(node, size_bytes // 4 // COLUMNS)
        settings = [
            f"--blob-quota={4 * size_bytes // 10**6 + 1000}MB",
            f"--memory={memory_bytes(size_bytes) // 10**6 + 1}MB",
            f"--allow={node.peer}",
        ]
        with Swarm(4, settings=settings) as swarm:
            await trio.to_thread.run_sync(swarm.start_all)
            await trio.to_thread.run_sync(swarm.wait_acquainted)
            *holders, taker = swarm.nodes
            for daemon in swarm.nodes:
                await requester.connect(daemon)
            for holder in holders:
                await requester.have_it_made(holder)
                await requester.have_it_shared(holder, taker)
            yield swarm, requester, holders, taker


async def received_by(taker, size_bytes):
    """Wait until a daemon has got so many bytes over bulk channels; gives how many."""
    count = partial(trio.to_thread.run_sync, counted, taker, "received", "bulk")
    while (received := await count()) < size_bytes:  # noqa: ASYNC110  # of another process
        await trio.sleep(POLL_S)
    return received


async def ended(taker, requester, size_bytes, kept=0):
    """See that the taker's tensor is whole, byte by byte, and tell how it came there."""
    path = taker.home / "blobs" / requester.large[:2] / requester.large
    data = await trio.to_thread.run_sync(path.read_bytes)
    found = await trio.to_thread.run_sync(chunk_list_of, data)
    assert found.blob_id == requester.large
    count = partial(trio.to_thread.run_sync, counted, taker, "received")
    return Ended(size_bytes, await count("bulk"), await count("blob"), kept)


async def take_while_holders_are_killed(tmp_path, size_bytes):
    """Kill the holder that gives most, and later the one that does of the two others."""
    async with three_holders(tmp_path, size_bytes) as (_, requester, holders, taker):
        killed_at = []

        async def kill():
            for share in KILLED_AT:
                killed_at.append(await received_by(taker, share * size_bytes) / size_bytes)
                alive = [holder for holder in holders if holder.running]
                sent = await trio.to_thread.run_sync(
                    lambda alive=alive: [counted(one, "sent", "bulk") for one in alive]
                )
                most = alive[sent.index(max(sent))]
                most.process.kill()

        with trio.fail_after(LIMIT_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kill)
                await requester.have_it_taken(taker, holders)
        assert [holder.running for holder in holders].count(True) == 1
        assert killed_at[-1] < 1, "it had all of it before the second was killed"
        assert taker.running
        end = await ended(taker, requester, size_bytes)
        assert "a peer broke the rules" not in taker.log_path.read_text()
    when = " and ".join(f"{at:.0%}" for at in killed_at)
    again = end.received / size_bytes - 1
    print(f"\nkilled at {when} of {size_bytes // MIB} MiB, sent again: {again:.3%}")
    return end


async def take_and_be_killed_half_way(tmp_path, size_bytes):
    """Kill the daemon that takes the tensor half-way, and start it again."""
    async with three_holders(tmp_path, size_bytes) as (swarm, requester, holders, taker):
        with trio.fail_after(LIMIT_S):
            async with trio.open_nursery() as nursery:

                async def take():
                    await requester.have_it_taken(taker, holders)
                    raise AssertionError("it had all of it before it was killed")

                nursery.start_soon(take)
                await received_by(taker, size_bytes // 2)
                taker.kill()
                nursery.cancel_scope.cancel()
            kept = await trio.to_thread.run_sync(bytes_kept, taker)
            assert size_bytes // 3 < kept < size_bytes
            await trio.to_thread.run_sync(swarm.start, taker)
            await trio.to_thread.run_sync(swarm.wait_ready, taker)
            await trio.to_thread.run_sync(swarm.wait_acquainted)
            await requester.connect(taker)
            await requester.have_it_taken(taker, holders)
        end = await ended(taker, requester, size_bytes, kept)
    print(f"\nkept {kept // MIB} of {size_bytes // MIB} MiB, got {end.received / MIB:.1f} MiB")
    return end


def bytes_kept(node):
    """How many bytes a daemon has, in chunks that are right, of what it was receiving."""
    (path,) = [p for p in (node.home / "blobs" / "partial").glob("*") if not p.suffix]
    listed = path.with_suffix(".chunks").read_bytes()
    chunks = decode_chunk_list(listed, path.name)
    with path.open("rb") as file:
        return sum(
            len(chunk)
            for index in range(len(chunks.digests))
            if is_right(chunks, index, chunk := file.read(chunks.chunk_size_bytes(index)))
        )


def is_right(chunks, index, chunk):
    try:
        chunks.check_chunk(index, chunk)
    except VerificationError:
        return False
    return True
