"""The messages that hand units over and that answer them, and which tensors travel in them.

In the data path, the end of "negotiate" at the requester and of "sign" at the provider:
several units go in one message and are answered by one, small tensors travel in it as far
as it has room, and the others are fetched by blob stream, which the lease gives the right
to. What is sent when, and how an answer is taken, is `node.pipeline`'s and
`node.provider`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import msgspec

from shoal.crypto.content import BlobId, blob_id_of
from shoal.crypto.peer_id import PeerId
from shoal.node.house import unit_name
from shoal.protocol import vocabulary
from shoal.protocol.limits import (
    BATCH_PORTS_LIMIT_BYTES,
    BATCH_SOURCES_LIMIT,
    BATCH_UNITS_LIMIT,
    INLINE_LIMIT_BYTES,
    SOURCE_BYTES,
    SOURCES_LIMIT,
)
from shoal.protocol.negotiation_messages import (
    Refusal,
    UnitRefusal,
    UnitRequest,
    UnitResult,
    UnitsRequest,
    UnitsResult,
    ports_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from shoal.compute.programs import AnyManifest
    from shoal.node.house import House
    from shoal.node.records import Unit
    from shoal.protocol.negotiation import ProviderSide, RequesterSide

Sources: TypeAlias = "Sequence[tuple[BlobId, PeerId]]"
"""Which inputs a provider may fetch from which peers: see `node.chaining.supply`."""


def units_per_message(manifest: AnyManifest) -> int:
    """How many units of a program one message may carry, so that its answer fits a frame."""
    ports = [(port.name, "") for port in (*manifest.inputs, *manifest.outputs)]
    return min(
        BATCH_UNITS_LIMIT,
        BATCH_PORTS_LIMIT_BYTES // max(1, ports_bytes(ports)),
        BATCH_SOURCES_LIMIT // max(1, len(manifest.inputs)),
    )


# --- the requester's ---


def takes_units_with_award(house: House, side: RequesterSide) -> bool:
    """Whether units may be handed over before the lease has come: it saves a round trip."""
    peer = side.provider
    return peer != house.peer_id and vocabulary.takes_units_with_award(
        house.control.versions.of(peer)
    )


async def write_request(
    house: House,
    side: RequesterSide,
    units: Sequence[Unit],
    sources: Mapping[int, Sources],
    *,
    keep: bool,
    trace: bool,
) -> UnitRequest | UnitsRequest:
    """The message that hands units over; the provider may fetch their inputs from now on.

    Args:
        house: This node.
        side: The conversation, which stands at an award or a lease.
        units: No more than `units_per_message`.
        sources: Which inputs come from other peers, by the index of a unit.
        keep: Whether outputs are to stay with the provider.
        trace: Whether receipts are to commit to the stages of what ran.
    """
    assert side.call is not None
    assert side.award_id is not None
    call = side.call.call
    requests = []
    named_bytes = sum(ports_bytes(unit.inputs.items()) for unit in units)
    named_bytes += SOURCE_BYTES * sum(map(len, sources.values()))
    room = min(INLINE_LIMIT_BYTES, side.room_bytes - named_bytes)
    small = await small_inputs(house, units)
    for unit in units:
        house.rights.grant(side.award_id, side.provider, unit.inputs.values())
        blobs = await inline_blobs(house, unit, small, room)
        room -= sum(map(len, blobs))
        inputs = tuple(sorted(unit.inputs.items()))
        named = tuple(sources.get(unit.index, ()))[:SOURCES_LIMIT]
        requests.append(UnitRequest(call, unit_name(unit), inputs, blobs, keep, named, trace))
    # Alone it goes as itself, which peers before 1.3 know too.
    return requests[0] if len(requests) == 1 else UnitsRequest(call, tuple(requests))


async def small_inputs(house: House, units: Iterable[Unit]) -> dict[BlobId, bytes]:
    """Those inputs of the units that are in the journal and not in the store."""
    inputs = {blob_id for unit in units for blob_id in unit.inputs.values()}
    unheld = [blob_id for blob_id in inputs if not house.store.holds(blob_id)]
    return await house.journal.tensors(unheld) if unheld else {}


async def inline_blobs(
    house: House, unit: Unit, small: Mapping[BlobId, bytes], room: int = INLINE_LIMIT_BYTES
) -> tuple[bytes, ...]:
    """As many inputs of a unit as fit into ``room`` bytes of one message.

    Of the ``small`` ones, as `small_inputs` gives them, those that do not fit are put into
    the store for as long as the job runs: there they can be fetched from.
    """
    blobs: list[bytes] = []
    for blob_id in dict.fromkeys(unit.inputs.values()):
        blob = small.get(blob_id)
        if blob is None and not house.store.holds(blob_id):
            continue  # it was left with a peer
        size_bytes = house.store.size_bytes(blob_id) if blob is None else len(blob)
        if size_bytes <= room:
            blobs.append(await house.store.get_bytes(blob_id) if blob is None else blob)
            room -= size_bytes
        elif blob is not None:
            house.store.pin(blob_id, unit.job)
            await house.store.put_bytes(blob)
    return tuple(blobs)


# --- the provider's ---


async def answer_together(
    house: House,
    side: ProviderSide,
    units: Sequence[UnitRequest],
    answers: Sequence[UnitResult | Refusal],
) -> UnitsResult:
    """The answers to the units of one message as one; outputs that it has no room for stay."""
    assert side.call is not None
    assert side.award_id is not None
    together: list[UnitResult | UnitRefusal] = []
    room = INLINE_LIMIT_BYTES
    for unit, answer in zip(units, answers, strict=True):
        if isinstance(answer, Refusal):
            together.append(
                UnitRefusal(unit.unit, answer.reason, answer.detail, answer.missing)
            )
            continue
        size_bytes = sum(map(len, answer.blobs))
        if size_bytes <= room:
            together.append(answer)
            room -= size_bytes
            continue
        for blob in answer.blobs:
            await house.store.put_bytes(blob)
        house.rights.grant(side.award_id, side.requester, map(blob_id_of, answer.blobs))
        together.append(msgspec.structs.replace(answer, blobs=()))
    return UnitsResult(call=side.call.call, answers=tuple(together))
