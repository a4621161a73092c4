"""What this node disputes with, and what its disputes rest on: inputs, programs, own runs.

`node.disputing` asks the accused; here is what it needs of this node itself: the unit's
program and inputs, kept for as long as the dispute lasts, and the node's own run of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from shoal.compute.errors import ProgramError
from shoal.compute.frames import UnitLimits
from shoal.compute.in_file import in_memory
from shoal.compute.manifest import Manifest
from shoal.crypto.content import BlobId, blob_id_of
from shoal.crypto.errors import ShoalError
from shoal.crypto.peer_id import PeerId
from shoal.node.errors import StoreError
from shoal.node.house import manifest_of, program_blobs
from shoal.node.records import JobId
from shoal.node.surroundings import OpenDispute
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.limits import EnvelopeBytes
from shoal.protocol.statements import open_receipt

if TYPE_CHECKING:
    from shoal.compute.unit_runs import Execution, NodeTensors, Traced
    from shoal.node.house import House
    from shoal.node.state import State
    from shoal.protocol.statements import Receipt

RANK: Final = 3
PATIENCE_S: Final = 30.0
"""Among what waits for the worker: behind all units, at first. A worker may have units without
end, so after so long at each rank it goes on waiting at the one before: with the owner's own
after 90 s, of which an accuser can make it run one of its units."""

RUN_FACTOR: Final = 8.0
RUN_GRACE_S: Final = 300.0
"""How long a run of one's own may take, by how long the accused's took: machines differ."""


class Evidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a receipt is disputed.

    Attributes:
        award: The envelope of the award under which it was given.
        receipt: Its own.
        other: Another receipt for the same unit: of whoever was right, or a second one of
            the same provider's under the same award.
        job: Of this node's own work.
        unit: The unit's index in the job.
        so_far: How far the dispute is (`protocol.verification.dispute.Challenger.encode`).
    """

    award: EnvelopeBytes
    receipt: EnvelopeBytes
    other: EnvelopeBytes | None
    job: JobId
    unit: int
    so_far: bytes = b""


def read_evidence(data: bytes) -> Evidence:
    """Read evidence that was written down.

    Raises:
        RemoteProtocolError: It is none.
    """
    try:
        return msgspec.msgpack.decode(data, type=Evidence)
    except msgspec.MsgspecError as error:
        raise RemoteProtocolError(f"no evidence: {error!s:.200}", code="bad_message") from None


async def disputes_of(journal: State, job_id: JobId, now: float) -> list[OpenDispute]:
    """The receipts of one job that are disputed at ``now``, in seconds since the epoch."""
    found = []
    for _, data in await journal.open_disputes():
        try:
            evidence = read_evidence(data)
            receipt = open_receipt(evidence.receipt)
        except ShoalError:  # `disputing` closes it
            continue
        if evidence.job == job_id:
            ago_s = max(0.0, now - receipt.ended_at_ms / 1000)
            found.append(OpenDispute(PeerId(receipt.provider), evidence.unit, ago_s))
    return found


@dataclass(frozen=True, slots=True)
class Exhibit:
    """The program and the inputs of a disputed unit, held under a name of the dispute's."""

    house: House
    name: str
    receipt: Receipt
    manifest: Manifest
    inputs: dict[str, BlobId]
    memory_bytes: int

    @property
    def program(self) -> BlobId:
        """The program's id."""
        return BlobId(self.receipt.program)

    async def blobs(self) -> dict[BlobId, bytes]:
        """All blobs of the program."""
        return await self.read([self.program, *program_blobs(self.manifest)])

    async def read(self, blob_ids: list[BlobId]) -> dict[BlobId, bytes]:
        """Some of the blobs that are held."""
        return {blob_id: await self.house.store.get_bytes(blob_id) for blob_id in blob_ids}

    async def tensors(self) -> dict[str, bytes]:
        """The inputs by name."""
        held = await self.read([*dict.fromkeys(self.inputs.values())])
        return {name: held[blob_id] for name, blob_id in self.inputs.items()}

    async def run(self) -> Execution:
        """This node's own run; raises as `Worker.run`."""
        return await self.house.worker.run(
            self.house.peer_id,
            self.program,
            self.blobs,
            await self.tensors(),
            self._limits(),
            RANK,
            PATIENCE_S,
        )

    async def output_ids(self) -> dict[str, BlobId]:
        """The ids of what this node's own run gives; raises as `Worker.run`."""
        outputs = (await self.run()).outputs
        return {name: blob_id_of(in_memory(tensor)) for name, tensor in outputs.items()}

    async def trace(self, stage: int | None = None) -> Traced:
        """Its leaves; raises as `Worker.trace`."""
        return await self.house.worker.trace(
            self.house.peer_id,
            self.program,
            self.blobs,
            await self.tensors(),
            self._limits(),
            stage,
            RANK,
            PATIENCE_S,
        )

    async def tensors_of(self, index: int) -> NodeTensors:
        """What one of its operators takes and gives; raises as `Worker.tensors_of`."""
        return await self.house.worker.tensors_of(
            self.house.peer_id,
            self.program,
            self.blobs,
            await self.tensors(),
            self._limits(),
            index,
            RANK,
            PATIENCE_S,
        )

    def let_go(self) -> None:
        """Keep program and inputs no longer on account of this dispute."""
        self.house.store.unpin(self.name)
        self.house.rights.withdraw(self.name)

    def _limits(self) -> UnitLimits:
        took_s = (self.receipt.ended_at_ms - self.receipt.started_at_ms) / 1000
        time_s = RUN_GRACE_S + RUN_FACTOR * max(0.0, took_s)
        return UnitLimits(time_s, self.memory_bytes, self.memory_bytes)


async def exhibit(house: House, name: str, receipt: Receipt, memory_bytes: int) -> Exhibit:
    """Hold what a dispute needs; small inputs, which are in the journal, go into the store.

    Whoever is accused may fetch all of it, to run the unit again.

    Raises:
        StoreError: ``blob_missing``: the job was forgotten, or a blob is gone.
        ProgramError: The program is none, or ``no_trace``: it is a GPU kernel.
    """
    program = BlobId(receipt.program)
    inputs = {port: BlobId(blob_id) for port, blob_id in receipt.inputs}
    house.store.pin(program, name)
    try:
        manifest = await manifest_of(house.store, program)
        if not isinstance(manifest, Manifest):
            raise ProgramError("a GPU kernel has no trace", code="no_trace")
        for blob_id in (*program_blobs(manifest), *inputs.values()):
            house.store.pin(blob_id, name)
        small = [blob_id for blob_id in inputs.values() if not house.store.holds(blob_id)]
        for tensor in (await house.journal.tensors(small)).values() if small else ():
            await house.store.put_bytes(tensor)
        needed = [*program_blobs(manifest), *inputs.values()]
        for blob_id in needed:
            if not house.store.holds(blob_id):
                raise StoreError(
                    f"the blob {blob_id[:16]}… of a disputed unit is not held any more",
                    code="blob_missing",
                )
        house.rights.grant(name, PeerId(receipt.provider), [program, *needed])
    except BaseException:
        house.store.unpin(name)
        raise
    return Exhibit(house, name, receipt, manifest, inputs, memory_bytes)
