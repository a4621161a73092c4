"""Outputs that arrive at their requester, from a unit's result until its end is written.

Part of the step "deliver" of the data path: which outputs a result may bring or leave with
its provider, fetching those that did not travel with the receipt, and under which name they
are pinned meanwhile. The receipt itself was verified before (`node.pipeline.verify`); that
ends are written down once is the journal's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.compute.errors import ProgramError
from shoal.compute.tensor import spec_of_blob
from shoal.crypto.content import BlobId, blob_id_of
from shoal.crypto.errors import VerificationError
from shoal.node.errors import StoreError
from shoal.node.house import hold, note_known, outputs_of, tensor_spec_of
from shoal.node.records import SMALL_TENSOR_LIMIT_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shoal.compute.manifest import Port
    from shoal.crypto.peer_id import PeerId
    from shoal.node.house import House
    from shoal.node.pipeline import Need
    from shoal.node.records import Ended, Unit
    from shoal.protocol.negotiation_messages import UnitResult


async def take(
    house: House,
    need: Need,
    provider: PeerId,
    unit: Unit,
    outputs: Mapping[str, BlobId],
    result: UnitResult,
) -> tuple[dict[BlobId, bytes], dict[BlobId, int]]:
    """Have the outputs of one unit here: the small ones in hand, others in the store.

    Args:
        house: This node.
        need: What the unit's job needs.
        provider: Who ran it.
        unit: The unit.
        outputs: The ids in its receipt, by the names of the program's outputs.
        result: The answer that brought the receipt.

    Returns:
        The small tensors, and the sizes in bytes of outputs that stay with their provider.

    Raises:
        VerificationError: Bytes came that no output of the receipt names, or an
            output is no tensor that the program can have given.
        NetworkError: An output could not be fetched.
        StoreError: There is no room for the outputs.
    """
    inline = {blob_id_of(blob): blob for blob in result.blobs}
    if not inline.keys() <= set(outputs.values()):
        raise VerificationError(
            f"{provider} sent an output that its receipt does not name",
            code="wrong_output_id",
        )
    note_known(house, provider, inline)
    left = _left(need, provider, outputs, result)
    tensors: dict[BlobId, bytes] = {}
    try:
        for port in need.manifest.outputs:
            blob_id = outputs[port.name]
            if blob_id in left:
                continue
            blob = inline.get(blob_id)
            if blob is None or len(blob) > SMALL_TENSOR_LIMIT_BYTES:
                house.store.pin(blob_id, arriving(unit, provider))
                if blob is not None:
                    await house.store.put_bytes(blob)
            small = await _take_output(house, need, provider, port, blob_id, blob, unit)
            if small is not None:
                tensors[blob_id] = small
    except BaseException:
        house.store.unpin(arriving(unit, provider))
        raise
    return tensors, left


def let_go(house: House, ends: Sequence[Ended]) -> None:
    """Keep outputs no longer on account of being about to be written down."""
    for end in ends:
        house.store.unpin(arriving(end.unit, end.unit.provider))


def arriving(unit: Unit, provider: PeerId | None) -> str:
    """Under which name outputs are pinned that have come and are not written down.

    Two providers may have run the same unit: one that fails lets go of nothing of the other.
    """
    return f"{outputs_of(unit.job)}/{unit.index}/{provider}"


def _left(
    need: Need, provider: PeerId, outputs: Mapping[str, BlobId], result: UnitResult
) -> dict[BlobId, int]:
    """The outputs that stay with their provider, and their sizes in bytes, by its word."""
    left = {BlobId(blob_id): size_bytes for blob_id, size_bytes in result.kept}
    if left and not need.spec.outputs_stay:
        raise VerificationError(
            f"{provider} keeps outputs that are wanted here", code="wrong_output"
        )
    for blob_id, size_bytes in left.items():
        if blob_id not in outputs.values():
            raise VerificationError(
                f"{provider} keeps an output that its receipt does not name",
                code="wrong_output_id",
            )
        if size_bytes > need.spec.memory_limit_bytes:
            raise VerificationError(
                f"{provider} says that an output has {size_bytes} bytes, and a unit has no "
                f"more than {need.spec.memory_limit_bytes}",
                code="wrong_output",
            )
    return left


async def _take_output(
    house: House,
    need: Need,
    provider: PeerId,
    port: Port,
    blob_id: BlobId,
    blob: bytes | None,
    unit: Unit,
) -> bytes | None:
    """Have one output, and give it where it is small.

    Where it does not fit the program, it is the provider's lie, and no fault here.
    """
    limit_bytes = need.spec.memory_limit_bytes
    try:
        if blob is None:
            await hold(house, provider, blob_id, arriving(unit, provider), limit_bytes)
            if house.store.size_bytes(blob_id) <= SMALL_TENSOR_LIMIT_BYTES:
                blob = await house.store.get_bytes(blob_id)
        if blob is None:
            spec = await tensor_spec_of(house.store, blob_id)
        else:
            spec = spec_of_blob(blob, len(blob))
    except (ProgramError, StoreError) as error:
        if error.code not in {"bad_tensor", "blob_too_large"}:
            raise
        raise VerificationError(
            f"output {port.name!r} of {provider}: {error.message}", code="wrong_output"
        ) from None
    if spec.dtype != port.dtype:
        raise VerificationError(
            f"output {port.name!r} of {provider} is a {spec}, and {port} is wanted",
            code="wrong_output",
        )
    return blob if blob is not None and len(blob) <= SMALL_TENSOR_LIMIT_BYTES else None
