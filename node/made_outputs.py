"""Outputs that a unit has made here, from the worker's outcome until its requester has them.

Part of the step "sign" of the data path: the ids that the receipt names them by, and where
each goes: with the receipt, into the store to be fetched from, or into what is kept here for
the requester (`node.kept_outputs`). What a signature covers is `node.pipeline`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.compute.in_file import InFile
from shoal.crypto.content import BlobId, blob_id_of
from shoal.node.house import note_known
from shoal.node.kept_outputs import keep_outputs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from shoal.node.house import House
    from shoal.protocol.negotiation import ProviderSide


async def ids_of(
    house: House, pin_by: str, outputs: Mapping[str, bytes | InFile]
) -> dict[str, BlobId]:
    """The ids of outputs; those that are not in memory are in the store from now on.

    The worker can still write to these: an id is that of the bytes that were stored.
    """
    ids = {}
    for name, tensor in outputs.items():
        if isinstance(tensor, InFile):
            ids[name] = (await house.store.put(_pieces_of(tensor))).blob_id
            house.store.pin(ids[name], pin_by)
        else:
            ids[name] = blob_id_of(tensor)
    return ids


async def _pieces_of(tensor: InFile) -> AsyncIterator[bytes]:
    for piece in tensor.pieces():
        yield piece


async def place(
    house: House,
    side: ProviderSide,
    ids: Mapping[str, BlobId],
    outputs: Mapping[str, bytes | InFile],
    room: int,
    *,
    keep: bool,
) -> tuple[tuple[bytes, ...], dict[BlobId, int]]:
    """Put every output where its requester gets it from.

    Args:
        house: This node.
        side: Under which lease they were made.
        ids: As `ids_of` gave them.
        outputs: The tensors, by the same names.
        room: How many bytes of them the receipt's message has room for.
        keep: Whether the requester asked for them to stay here.

    Returns:
        Those that travel with the receipt, and the sizes in bytes of those that stay here.

    Raises:
        StoreError: There is no room for the outputs that do not travel.
    """
    assert side.award_id is not None
    inline: list[bytes] = []
    kept: dict[BlobId, int] = {}
    if keep:
        made = {ids[name]: tensor for name, tensor in outputs.items()}
        kept = await keep_outputs(house, side.requester, made)
    for name, tensor in outputs.items():
        if ids[name] in kept:
            continue
        if isinstance(tensor, InFile):
            house.rights.grant(side.award_id, side.requester, [ids[name]])
        elif len(tensor) <= room:
            inline.append(tensor)
            room -= len(tensor)
        else:
            await house.store.put_bytes(tensor)
            house.rights.grant(side.award_id, side.requester, [ids[name]])
    note_known(house, side.requester, ids.values())
    return tuple(inline), kept
