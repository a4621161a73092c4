"""Units as a submitter gives them, checked whole before anything of them runs.

Part of *submit*. An input is a tensor's id, a whole tensor, or an output of a unit that
was submitted before. Small tensors go into the journal with their units, larger ones into
the blob store first; an error names the unit that it is in, and then none of them is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from shoal.compute.errors import ProgramError
from shoal.compute.manifest import check_inputs
from shoal.compute.tensor import TensorSpec, encode_header, spec_of_blob
from shoal.crypto.content import BlobId, blob_id_of
from shoal.crypto.errors import ShoalError
from shoal.node.errors import JobError, StoreError
from shoal.node.house import manifest_of, tensor_spec_of
from shoal.node.records import SMALL_TENSOR_LIMIT_BYTES, OutputRef, Unit, UnitState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shoal.compute.manifest import Port
    from shoal.compute.programs import AnyManifest
    from shoal.node.house import House
    from shoal.node.records import GivenUnit, Job, JobId


_COMMON_HEADER_BYTES = 64
"""The header of a tensor of up to six dimensions."""


@dataclass(slots=True)
class Taken:
    """Units that can be written down.

    Attributes:
        tensors: The small ones that came with them, by id.
    """

    units: list[Unit] = field(default_factory=list)
    tensors: dict[BlobId, bytes] = field(default_factory=dict)


async def take(
    house: House,
    manifest: AnyManifest,
    job_id: JobId,
    given: Sequence[GivenUnit],
    first: int,
) -> Taken:
    """Check units and store what is large of them, held for the job from then on.

    Args:
        house: This node.
        manifest: Of the job's program.
        job_id: The job, which need not be written down yet.
        given: The units.
        first: The index of the first of them.

    Raises:
        ProgramError: An input does not fit the program, or is no tensor.
        StoreError: An input is not held, or there is no room.
        JobError: ``no_such_job`` or ``no_such_unit`` for an output of another unit.
    """
    look = _Look(house, job_id, manifest)
    await look.know(given)
    taken = Taken()
    large: dict[BlobId, bytes] = {}
    for index, inputs in enumerate(given, first):
        try:
            unit, tensors = await look.check(index, inputs)
        except ShoalError as error:
            raise type(error)(
                f"unit {index}: {error.message}", hint=error.hint, code=error.code
            ) from None
        taken.units.append(unit)
        for blob_id, tensor in tensors.items():
            small = len(tensor) <= SMALL_TENSOR_LIMIT_BYTES
            (taken.tensors if small else large)[blob_id] = tensor
    for blob_id, tensor in large.items():
        house.store.pin(blob_id, job_id)
        await house.store.put_bytes(tensor)
    for blob_id in look.held:
        house.store.pin(blob_id, job_id)
    return taken


def is_given(unit: Unit, given: GivenUnit) -> bool:
    """Whether a unit is one with these inputs; of others' outputs only the names are known."""
    ids = {
        name: blob_id_of(one) if isinstance(one, bytes) else one
        for name, one in given.items()
        if not isinstance(one, OutputRef)
    }
    named = unit.inputs.keys() | unit.awaits.keys()
    return named <= given.keys() and ids.items() <= unit.inputs.items()


class _Look:
    """What is known of the inputs of some units, each looked up once."""

    def __init__(self, house: House, job_id: JobId, manifest: AnyManifest) -> None:
        self.held: set[BlobId] = set()
        self._house = house
        self._job_id = job_id
        self._manifest = manifest
        self._specs: dict[BlobId, TensorSpec] = {}
        self._heads: dict[tuple[bytes, int], TensorSpec] = {}
        self._fitting: set[frozenset[tuple[str, TensorSpec]]] = set()
        self._sources: dict[JobId, tuple[Job, dict[str, Port]]] = {}

    async def know(self, given: Sequence[GivenUnit]) -> None:
        """Learn which ids are of small tensors, in one look at the journal."""
        ids = {
            one
            for inputs in given
            for one in inputs.values()
            if isinstance(one, str) and not self._house.store.holds(BlobId(one))
        }
        if ids:
            for blob_id, tensor in (await self._house.journal.tensors(ids)).items():
                self._specs[blob_id] = spec_of_blob(tensor, len(tensor))

    async def check(self, index: int, inputs: GivenUnit) -> tuple[Unit, dict[BlobId, bytes]]:
        """A unit that fits the program, and the tensors that came with it."""
        specs: dict[str, TensorSpec] = {}
        ids: dict[str, BlobId] = {}
        awaits: dict[str, OutputRef] = {}
        tensors: dict[BlobId, bytes] = {}
        for name, given in inputs.items():
            if isinstance(given, bytes):
                specs[name] = self._spec_of_tensor(given)
                ids[name] = blob_id_of(given)
                tensors[ids[name]] = given
            elif isinstance(given, OutputRef):
                await self._check_output(index, name, given)
                awaits[name] = given
            else:
                ids[name] = given
                specs[name] = await self._spec_of(given)
        shapes = frozenset(specs.items())
        if awaits or shapes not in self._fitting:
            check_inputs(_without(self._manifest, awaits), specs)
            if not awaits:
                self._fitting.add(shapes)
        unit = Unit(
            job=self._job_id,
            index=index,
            state=UnitState.QUEUED,
            inputs=ids,
            awaits=awaits,
        )
        return unit, tensors

    def _spec_of_tensor(self, tensor: bytes) -> TensorSpec:
        """As `spec_of_blob`; most units of a job have tensors with one and the same header."""
        key = tensor[:_COMMON_HEADER_BYTES], len(tensor)
        spec = self._heads.get(key)
        if spec is None:
            spec = spec_of_blob(tensor, len(tensor))
            if len(encode_header(spec)) == _COMMON_HEADER_BYTES:  # all of it is in the key
                self._heads[key] = spec
        return spec

    async def _spec_of(self, blob_id: BlobId) -> TensorSpec:
        if blob_id not in self._specs:
            try:
                self._specs[blob_id] = await tensor_spec_of(self._house.store, blob_id)
            except StoreError as error:
                if error.code != "blob_missing":
                    raise
                raise StoreError(
                    f"the input {blob_id[:16]}… is not held here",
                    code="blob_missing",
                    hint="put it with PUT /v1/tensors, or send the tensor with the unit",
                ) from None
            self.held.add(blob_id)
        return self._specs[blob_id]

    async def _check_output(self, index: int, name: str, ref: OutputRef) -> None:
        """Check that a unit can take an output, as far as that is known before it is there."""
        port = next((port for port in self._manifest.inputs if port.name == name), None)
        if port is None:
            return  # `check_inputs` says what there is
        own = ref.job == self._job_id
        total, outputs = index, _by_name(self._manifest.outputs)
        if not own:
            job, outputs = await self._source(ref.job)
            total = job.units_total
        if ref.unit >= total:
            raise JobError(
                f"input {name!r} is to be an output of unit {ref.unit} of job "
                f"{ref.job[:64]}, which is not there before it",
                code="no_such_unit",
                hint="submit units before those that take their outputs",
            )
        if ref.output not in outputs:
            raise JobError(
                f"input {name!r} is to be the output {ref.output[:80]!r} of job "
                f"{ref.job[:64]}, which has no such output",
                code="no_such_output",
                hint=f"its outputs are {', '.join(outputs)[:400]}",
            )
        output = outputs[ref.output]
        if output.dtype != port.dtype or not _may_fit(output, port):
            raise ProgramError(
                f"input {name!r} is to be an output {output}, and {port} is wanted",
                code="wrong_dtype" if output.dtype != port.dtype else "wrong_shape",
            )

    async def _source(self, job_id: JobId) -> tuple[Job, dict[str, Port]]:
        if job_id not in self._sources:
            job = await self._house.journal.job(job_id)
            manifest = await manifest_of(self._house.store, job.program)
            self._sources[job_id] = job, _by_name(manifest.outputs)
        return self._sources[job_id]


def _by_name(ports: Sequence[Port]) -> dict[str, Port]:
    return {port.name: port for port in ports}


def _without(manifest: AnyManifest, names: Mapping[str, object]) -> AnyManifest:
    """The manifest without the inputs of which no shape is known yet."""
    if not names:
        return manifest
    left = tuple(port for port in manifest.inputs if port.name not in names)
    if len(left) != len(manifest.inputs) - len(names):
        unknown = next(name for name in names if name not in _by_name(manifest.inputs))
        check_inputs(manifest, {unknown: TensorSpec("bool", ())})
    return msgspec.structs.replace(manifest, inputs=left)


def _may_fit(output: Port, wanted: Port) -> bool:
    """Whether some tensor is both; a size that is a name may be any."""
    if output.shape is None or wanted.shape is None:
        return True
    return len(output.shape) == len(wanted.shape) and all(
        isinstance(one, str) or isinstance(other, str) or one == other
        for one, other in zip(output.shape, wanted.shape, strict=True)
    )
