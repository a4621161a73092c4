"""Whose result a verifier's is like, in the classes where bits may differ.

A result is like another where all outputs are within the program's tolerance
(`compute.tolerance`). Closeness is not transitive; so a result belongs to the first opinion
that it is like, of which the provider's is the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import trio

from shoal.compute.manifest import Manifest
from shoal.compute.tolerance import KERNEL_TOLERANCE, near, tolerance_of
from shoal.crypto.content import BlobId

if TYPE_CHECKING:
    from shoal.crypto.peer_id import PeerId
    from shoal.node.checks import Key
    from shoal.node.house import House
    from shoal.node.pipeline import Need
    from shoal.node.records import Ended


async def like_whom(
    house: House,
    need: Need,
    opinions: Mapping[PeerId, Key],
    ends: Mapping[PeerId, Ended],
    peer: PeerId,
) -> Key:
    """The key of the first opinion that a verifier's result is like; a new one for none.

    Args:
        house: This node.
        need: Of the job.
        opinions: The keys so far.
        ends: What each gave, with the outputs here; an error is like no result.
        peer: The verifier, whose end is among them.

    Raises:
        ProgramError: The program's graph cannot be read.
        StoreError: An output is not here any more.
    """
    mine = ends.get(peer)
    if mine is None or mine.unit.outputs is None:
        return peer
    manifest, numeric_class = need.manifest, need.spec.numeric_class
    tolerance = KERNEL_TOLERANCE
    if isinstance(manifest, Manifest):
        graph = await house.store.get_bytes(BlobId(manifest.graph))
        tolerance = tolerance_of(graph, numeric_class)
    for other, key in opinions.items():
        end = ends.get(other)
        if end is None or end.unit.outputs is None:
            continue
        for name, blob_id in mine.unit.outputs.items():
            theirs = end.unit.outputs[name]
            if theirs == blob_id:
                continue
            one, two = await _blob(house, mine, blob_id), await _blob(house, end, theirs)
            if not await trio.to_thread.run_sync(near, one, two, tolerance):
                break
        else:
            return key
    return peer


async def _blob(house: House, end: Ended, blob_id: BlobId) -> bytes:
    return end.tensors.get(blob_id) or await house.store.get_bytes(blob_id)
