"""``shoal`` for a node that lies, so that the demo has one to catch.

python -P -m shoal.node.demo.liar up --home=HOME …

A real daemon in which two steps are replaced: in each result that it signs one bit is
turned over, and where it is asked how it came to that, it bends its trace to match. Its
own user it serves as it should. More kinds of liars are in ``tests/zoo``.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from shoal.compute.device_worker import Worker
from shoal.compute.exact.leaves import decode_operator_leaf, leaf_bytes
from shoal.compute.tensor import spec_of_blob
from shoal.compute.unit_runs import Execution, Traced
from shoal.crypto.content import blob_id_of
from shoal.node import pipeline

if TYPE_CHECKING:
    from shoal.compute.unit_runs import UnitRun
    from shoal.node.house import House
    from shoal.protocol.negotiation import ProviderSide
    from shoal.protocol.negotiation_messages import UnitRequest

write_honestly = pipeline.write_receipt

trace_honestly = Worker.trace

told: dict[str, str] = {}
"""Ids of the outputs that it gave, by those of the true ones."""


async def write_receipt(
    house: House, side: ProviderSide, request: UnitRequest, run: UnitRun, room: int = 0
) -> pipeline.Unsigned:
    """Step 5 of the data path, with one bit of the first output turned over."""
    if isinstance(run.outcome, Execution) and side.requester != house.peer_id:
        name, *_ = run.outcome.outputs
        true = run.outcome.outputs[name]
        assert isinstance(true, bytes), "the demo's outputs are small"
        false = with_one_bit_turned(true)
        told[blob_id_of(true)] = blob_id_of(false)
        outputs = {**run.outcome.outputs, name: false}
        run.outcome = replace(run.outcome, outputs=outputs)
    return await write_honestly(house, side, request, run, room)


async def trace(worker: Worker, *arguments: Any, **named: Any) -> Traced:
    """How it came to a result, with the ends bent to fit what it gave."""
    traced = await trace_honestly(worker, *arguments, **named)
    return replace(traced, leaves=tuple(bent(leaf) for leaf in traced.leaves))


def bent(leaf: bytes) -> bytes:
    """What it says of one operator: outputs that it lied about are what it gave."""
    true = decode_operator_leaf(leaf)
    outputs = tuple(told.get(each, each) if each else None for each in true.outputs)
    return leaf_bytes(msgspec.structs.replace(true, outputs=outputs))


def with_one_bit_turned(tensor: bytes) -> bytes:
    """The same tensor but for the lowest bit of its first element."""
    spec = spec_of_blob(tensor, len(tensor))
    if not spec.data_bytes:
        return tensor
    changed = bytearray(tensor)
    changed[-spec.data_bytes] ^= 1  # elements are little-endian, and last in the blob
    return bytes(changed)


def main() -> int:
    """Run a command of ``shoal`` as a liar."""
    from shoal.node.cli import main as command

    pipeline.write_receipt = write_receipt
    Worker.trace = trace  # type: ignore[method-assign, assignment]
    return command()


if __name__ == "__main__":
    sys.exit(main())
