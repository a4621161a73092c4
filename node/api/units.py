"""Units of a job as they come in a body of any length: msgpack maps, read in pieces.

Of a body of any length no more is held than one write's worth of units. While those are
written nothing more is read, so a client that sends faster than the disk takes has to wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgpack
import msgspec
import trio

from shoal.crypto.content import check_blob_id
from shoal.crypto.errors import VerificationError
from shoal.node.errors import JobError, RequestError
from shoal.node.records import JobSpec, OutputRef

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence

    from shoal.crypto.content import BlobId
    from shoal.node.api.facade import DaemonFacade
    from shoal.node.records import GivenUnit, Job, JobId

UNITS_PER_WRITE = 256
"""Units that are written in one transaction; a body of no more is taken whole or not at all."""

WRITE_LIMIT_BYTES = 8 << 20
"""Inline tensors after which units are written, though they are fewer."""

UNIT_LIMIT_BYTES = 8 << 20
"""One unit in a stream, with its inline tensors; larger ones are put as blobs before."""

INPUTS_LIMIT = 1024
"""Inputs of one unit; a program has fewer."""

NAME_LIMIT = 1024
"""Characters in the name of an input."""

_PIECE_LIMIT_BYTES = 1 << 20
"""What the HTTP server may give at once."""


class UnitReader:
    """Reads msgpack maps, one after another, from the pieces of a body."""

    def __init__(self, pieces: AsyncIterable[bytes]) -> None:
        self._pieces = pieces
        self._fed = 0
        self._whole = 0
        self._unpacker = msgpack.Unpacker(
            max_buffer_size=UNIT_LIMIT_BYTES + _PIECE_LIMIT_BYTES,
            strict_map_key=True,
            max_bin_len=UNIT_LIMIT_BYTES,
            max_str_len=UNIT_LIMIT_BYTES,
            max_map_len=INPUTS_LIMIT,
            max_array_len=0,
            max_ext_len=0,
        )

    async def maps(self) -> AsyncIterator[dict[Any, Any]]:
        """Each map of the stream.

        Raises:
            RequestError: ``bad_units`` where it is not msgpack, or ends within a map;
                ``unit_too_large``.
        """
        async for whole in self._pieces:
            for at in range(0, len(whole), _PIECE_LIMIT_BYTES):
                piece = whole[at : at + _PIECE_LIMIT_BYTES]
                self._unpacker.feed(piece)
                self._fed += len(piece)
                while (value := self._next()) is not None:
                    yield value
                if self._rest > UNIT_LIMIT_BYTES:
                    raise RequestError(
                        f"one unit has more than {UNIT_LIMIT_BYTES} bytes",
                        code="unit_too_large",
                        hint="put large tensors with PUT /v1/tensors or PUT /v1/blobs, and "
                        "give their ids",
                    )
        if self._rest:
            raise _bad_units("the body ends in the middle of one")

    @property
    def _rest(self) -> int:
        return self._fed - self._whole

    def _next(self) -> dict[Any, Any] | None:
        try:
            value = self._unpacker.unpack()
        except msgpack.OutOfData:
            return None
        except (ValueError, msgpack.UnpackException) as error:
            raise _bad_units(f"{error}"[:200]) from None
        self._whole = self._unpacker.tell()
        if not isinstance(value, dict):
            raise _bad_units(f"a {type(value).__name__} stands where a map should")
        return value


async def writes(
    maps: AsyncIterator[dict[Any, Any]],
) -> AsyncIterator[list[GivenUnit]]:
    """Units in as many as are written at once; raises RequestError ``bad_units``."""
    gathered: list[GivenUnit] = []
    room = WRITE_LIMIT_BYTES
    async for value in maps:
        unit = given_unit(value)
        gathered.append(unit)
        room -= sum(len(given) for given in unit.values() if isinstance(given, bytes))
        if len(gathered) == UNITS_PER_WRITE or room <= 0:
            yield gathered
            gathered, room = [], WRITE_LIMIT_BYTES
    if gathered:
        yield gathered


async def submit_stream(daemon: DaemonFacade, pieces: AsyncIterable[bytes]) -> Job:
    """Take a job as a stream: a map that is the job without units, then its units.

    Where all of it is one write's worth, the job is there whole or not at all. Otherwise
    it is open until the stream ends; where that breaks off, nobody knows the job's id, so
    it is cancelled.

    Raises:
        RequestError: ``bad_job``, ``bad_units`` or ``unit_too_large``.
        ProgramError: A unit does not fit the program.
    """
    maps = UnitReader(pieces).maps()
    spec = _spec(await anext(maps, {}))
    stream = writes(maps)
    first: list[GivenUnit] = await anext(stream, [])
    more = await anext(stream, None) if first else None
    if more is None:
        return await daemon.submit(spec, first)
    if spec.id is not None:
        raise RequestError(
            f"a job under an id of its own has at most {UNITS_PER_WRITE} units and "
            f"{WRITE_LIMIT_BYTES} bytes of tensors at first",
            code="bad_job",
            hint="submit it open, and add the others with POST /v1/jobs/ID/units?at=INDEX",
        )
    job = await daemon.submit(msgspec.structs.replace(spec, open=True), first)
    try:
        await daemon.add_units(job.id, more, None)
        await add_stream(daemon, job.id, stream, None)
        return await daemon.job(job.id) if spec.open else await daemon.seal(job.id)
    except BaseException:
        with trio.CancelScope(shield=True):
            await daemon.cancel(job.id)
        raise


async def add_stream(
    daemon: DaemonFacade,
    job_id: JobId,
    stream: AsyncIterator[Sequence[GivenUnit]],
    at: int | None,
) -> Job:
    """Add units to an open job, write by write; what was written stays if the rest fails.

    Args:
        daemon: Whose job it is.
        job_id: The job.
        stream: What `writes` gives.
        at: The index that the first unit is to have; so a client that does not know
            whether a request of its came through can send it again.

    Raises:
        JobError: ``wrong_place``, or as `DaemonFacade.add_units` raises.
    """
    job: Job | None = None
    async for units in stream:
        job = await daemon.add_units(job_id, units, at)
        at = None if at is None else at + len(units)
    if job is not None:
        return job
    job = await daemon.job(job_id)
    if not job.open:  # also where nothing is added, so that a mistake shows
        raise JobError(f"job {job_id} takes no more units", code="job_sealed")
    return job


def given_unit(value: Mapping[Any, Any]) -> GivenUnit:
    """One unit as a client wrote it: by input, an id, another unit's output or a tensor.

    Raises:
        RequestError: ``bad_units``.
        VerificationError: A text is no blob's id.
    """
    return {_name(name): _given(given) for name, given in value.items()}


def check_ids(spec: JobSpec) -> None:
    """Check that what a job names as blobs can be; raises VerificationError, saying where."""
    _check_id(spec.program, "program")
    seen: set[str] = set()
    for index, unit in enumerate(spec.units):
        for name, given in unit.items():
            if isinstance(given, str) and given not in seen:
                _check_id(given, f"unit {index}, input {name[:NAME_LIMIT]!r}")
                seen.add(given)


def _check_id(text: str, where: str) -> None:
    try:
        check_blob_id(text)
    except VerificationError as error:
        raise VerificationError(
            f"{where}: {error.message}", code=error.code, hint=error.hint
        ) from None


def _spec(value: dict[Any, Any]) -> JobSpec:
    try:
        spec = msgspec.convert({"units": (), **value}, JobSpec)
    except (msgspec.ValidationError, TypeError) as error:
        raise RequestError(
            f"the stream does not begin with a job: {error}",
            code="bad_job",
            hint='such as {"policy": "map", "program": ID}; its units follow it',
        ) from None
    check_ids(spec)
    return spec


def _name(name: object) -> str:
    if not isinstance(name, str) or len(name) > NAME_LIMIT:
        raise _bad_units(f"an input has no name of up to {NAME_LIMIT} characters")
    return name


def _given(given: object) -> BlobId | OutputRef | bytes:
    match given:
        case bytes():
            return given
        case str():
            return check_blob_id(given)
        case dict():
            try:
                return msgspec.convert(given, OutputRef)
            except msgspec.ValidationError as error:
                raise _bad_units(f"an input is no output of a unit: {error}") from None
    raise _bad_units(
        "an input is the id of a tensor, a tensor's bytes or an output of another unit, and "
        f"not a {type(given).__name__}"
    )


def _bad_units(reason: str) -> RequestError:
    return RequestError(
        f"these are not units: {reason}",
        code="bad_units",
        hint='each is a map such as {"x": ID}; docs/API.md has examples',
    )
