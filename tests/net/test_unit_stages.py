"""A provider that is asked to commits to the stages of a unit, in its receipt."""

from dataclasses import replace

import models
import msgspec
from job_nodes import Node, X, open_node
from test_unit_batches import ask, lease_for, unit_of

from shoal.compute.convert import convert
from shoal.compute.exact.stages import stages_of
from shoal.compute.exact.tracing import Traceable
from shoal.compute.frames import UnitLimits
from shoal.compute.loading import load
from shoal.crypto.merkle import leaf_of, root_of
from shoal.protocol.statements import open_receipt

EXACT = convert(models.dense(), "x20")
LIMITS = UnitLimits(time_s=20.0, memory_bytes=1 << 30, output_bytes=1 << 20)


async def test_the_receipts_root_is_over_the_stages_that_a_trace_has(tmp_path, monkeypatch):
    terms = Node.terms
    offered = {"exact": "exact 1 numba"}
    monkeypatch.setattr(Node, "terms", lambda node: replace(terms(node), executors=offered))
    async with open_node(tmp_path) as node:
        await node.house.worker.enable_exact()
        call = await lease_for(node, EXACT, numeric_class="exact", precision="x20")
        plain = unit_of(call, "plain")
        traced = msgspec.structs.replace(unit_of(call, "traced"), trace=True)
        one, two = await ask(node, call, plain, traced)
        without, with_stages = open_receipt(one.receipt), open_receipt(two.receipt)

        async def blobs():
            return EXACT.blobs

        found = await node.house.worker.trace("own", EXACT.program_id, blobs, {"x": X}, LIMITS)
    assert (without.trace, without.stages) == (None, 0)
    assert without.outputs == with_stages.outputs
    assert with_stages.trace == root_of([leaf_of(leaf) for leaf in found.stages]).hex()
    graph = Traceable(load(EXACT.program_id, EXACT.blobs)).graph
    assert with_stages.stages == len(found.stages) == len(stages_of(graph).ends)
