"""How units are handed over: gathered, some hundred at a time, one request for each.

First step of the data path, *submit*. Inputs are taken from their iterator as they are
needed, and small tensors travel inside the request; larger ones are put as blobs before,
piece by piece. So a submitter of any number of units holds one request's worth of them.
Each request is taken whole or not at all, and says which index its first unit is to have.
No IO; see `exchange`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import msgpack
import msgspec

from shoal.compute.errors import ProgramError
from shoal.compute.programs import own_class
from shoal.compute.tensor import to_blob
from shoal.crypto.errors import ShoalError
from shoal.node.client.batching import batches, check_batch
from shoal.node.client.exchange import Flow, Request, Work
from shoal.node.client.fetching import Page, Results, outputs, outputs_of, page, page_of
from shoal.node.client.flows import (
    UPLOAD_LIMIT_S,
    WAIT_STEP_S,
    Model,
    Options,
    Prepared,
    cancel,
    failure_of,
    json_of,
    precision_of,
    prepare,
    seal,
    wait,
)
from shoal.node.client.tensors import (
    As,
    Inputs,
    Outputs,
    arrays_of,
    check_as,
    id_of_pieces,
    pieces_of,
)
from shoal.node.errors import DaemonUnreachableError, WaitTimeoutError
from shoal.node.records import (
    SMALL_TENSOR_LIMIT_BYTES,
    Job,
    JobState,
    OutputRef,
    Policy,
    UnitState,
    new_job_id,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

    from shoal.compute.programs import AnyManifest
    from shoal.crypto.content import BlobId

UNITS_PER_REQUEST = 256
"""As many as the daemon writes in one transaction."""

REQUEST_BYTES = 4 << 20
"""Inputs after which a request goes off, though it has fewer units."""

AHEAD_UNITS = 4096
"""How far a lazy `map` hands over before results are taken: enough for the whole network."""

REFILL_PART = 8
"""A lazy `map` hands over more once there is room for one part in so many of its `ahead`."""

LINGER_S = 0.02
"""Units of a slow iterator wait so long for others to go with them."""

_MSGPACK = "application/msgpack"
_RANK_FREE_BYTES = 192
"""No tensor's header is longer."""


Encoded: TypeAlias = "dict[str, bytes | str | dict[str, Any]]"


@dataclass(slots=True)
class Gathered:
    """Units for one request.

    Attributes:
        units: By input a small tensor's bytes, an id, or where another unit's output is.
        large: Arrays that are put as blobs before, by the id that they have.
        ended: Whether the iterator has no more.
    """

    units: list[Encoded] = field(default_factory=list)
    large: dict[BlobId, np.ndarray] = field(default_factory=dict)
    ended: bool = False

    @property
    def body(self) -> bytes:
        """The units as a stream of maps."""
        pack = msgpack.Packer(autoreset=True).pack
        return b"".join(map(pack, self.units))


def encoded(
    manifest: AnyManifest, inputs: Inputs
) -> tuple[Encoded, dict[BlobId, np.ndarray], int]:
    """One unit as it travels, the arrays to be put before it, and its size in bytes.

    Other units' outputs among the inputs are looked at by the daemon, which knows them.

    Raises:
        InputError, ProgramError: As `arrays_of`.
    """
    refs = {}
    if isinstance(inputs, Mapping):
        refs = {name: value for name, value in inputs.items() if isinstance(value, OutputRef)}
        inputs = {name: value for name, value in inputs.items() if name not in refs}
    if refs:
        ports = tuple(port for port in manifest.inputs if port.name not in refs)
        manifest = msgspec.structs.replace(manifest, inputs=ports)
    unit: Encoded = {name: msgspec.to_builtins(ref) for name, ref in refs.items()}
    large: dict[BlobId, np.ndarray] = {}
    size_bytes = 0
    for name, array in arrays_of(manifest, inputs).items():
        size_bytes += array.nbytes
        if array.nbytes + _RANK_FREE_BYTES <= SMALL_TENSOR_LIMIT_BYTES:
            unit[name] = to_blob(array)
        else:
            blob_id = id_of_pieces(array)
            unit[name], large[blob_id] = blob_id, array
    return unit, large, size_bytes


def gather(
    source: Iterator[Inputs],
    manifest: AnyManifest,
    first: int | None,
    limit: int = UNITS_PER_REQUEST,
    linger_s: float = float("inf"),
) -> Gathered:
    """Take units for one request; blocks where the iterator does.

    Args:
        source: The units.
        manifest: Of the program.
        first: The index that the next one gets, for errors; None where there is only one.
        limit: How many at most.
        linger_s: How long to wait for more, once there is one.

    Raises:
        InputError, ProgramError: A unit does not fit the program; the sentence names it.
    """
    found = Gathered()
    room, began = REQUEST_BYTES, time.monotonic()
    while len(found.units) < limit and room > 0:
        try:
            inputs = next(source)
        except StopIteration:
            found.ended = True
            break
        try:
            unit, large, size_bytes = encoded(manifest, inputs)
        except ShoalError as error:
            if first is not None:
                error.message = f"unit {first + len(found.units)}: {error.message}"
                error.args = (error.message,)
            raise
        found.units.append(unit)
        found.large |= large
        room -= size_bytes
        if time.monotonic() - began > linger_s:
            break
    return found


def open_job(
    prepared: Prepared,
    policy: Policy,
    options: Options,
    first: Gathered,
    *,
    stays_open: bool,
    named: bool = False,
) -> Flow[Job]:
    """Submit a job with its first units; it is open where more are to come.

    Interrupted before there is an answer, it is cancelled, since it may have come through;
    with ``named``, where it may have been there before, it is let be.

    Raises:
        DaemonUnreachableError, WaitTimeoutError: There was no answer; a note names the job
            that may be there all the same.
    """
    spec = msgspec.structs.asdict(options) | {
        "policy": policy.value,
        "program": prepared.program_id,
        "open": stays_open,
    }
    del spec["precision"]
    spec["numeric_class"] = options.numeric_class or own_class(prepared.manifest)
    job_id = spec["id"] = options.id or new_job_id()
    yield from _put(first)
    request = Request(
        "POST",
        "/v1/jobs",
        body=msgpack.packb(spec) + first.body,
        content_type=_MSGPACK,
        answer_limit_s=UPLOAD_LIMIT_S,
    )
    try:
        return msgspec.convert((yield from json_of(request))["job"], Job)
    except (DaemonUnreachableError, WaitTimeoutError) as error:
        error.add_note(
            f"it may have come through as job {job_id}: `shoal job show {job_id}` tells, and "
            f"submitted again with id={job_id!r} it is the same job"
        )
        raise
    except (GeneratorExit, ShoalError):  # nobody is there to go on; or it was refused
        raise
    except BaseException as error:
        if not named:
            yield from _take_back(job_id, error)
        raise


def add_units(job_id: str, at: int | None, more: Gathered) -> Flow[Job]:
    """Add units to an open job; ``at`` is the index that the first is to have."""
    yield from _put(more)
    request = Request(
        "POST",
        f"/v1/jobs/{job_id}/units",
        {} if at is None else {"at": at},
        body=more.body,
        content_type=_MSGPACK,
        answer_limit_s=UPLOAD_LIMIT_S,
    )
    return msgspec.convert((yield from json_of(request))["job"], Job)


def add_and_read(job_id: str, at: int, more: Gathered, after: int, wait_s: float) -> Flow[Page]:
    """Add units to an open job and wait for what ends, all in one request.

    Args:
        job_id: The job.
        at: The index that the first is to have.
        more: The units.
        after: Of the page before, in the order in which units end.
        wait_s: How long to wait for the first that ends; then the page has none.
    """
    yield from _put(more)
    request = Request(
        "POST",
        f"/v1/jobs/{job_id}/units",
        {"at": at, "after": after, "order": "ended", "wait_s": wait_s},
        body=more.body,
        content_type=_MSGPACK,
        answer_limit_s=UPLOAD_LIMIT_S,
        quick=True,
    )
    return page_of((yield request))


def submit(
    model: Model, units: Iterator[Inputs], policy: Policy, options: Options
) -> Flow[Job]:
    """Hand over a job, its units one request after another; on an error it is cancelled.

    It is when it is interrupted, too, unless its id was given with the options: then it may be
    one that ran before, and what was interrupted can be repeated.

    Raises:
        InputError, ProgramError: An input is missing, or does not fit the program.
    """
    prepared = yield from prepare(model, precision_of(options))
    number = 0 if policy is Policy.MAP else None
    first = yield Work(partial(gather, units, prepared.manifest, number))
    if not first.units:
        raise ProgramError("there is nothing to run: no inputs were given", code="no_units")
    named = options.id is not None
    job: Job = yield from open_job(
        prepared, policy, options, first, stays_open=not first.ended, named=named
    )
    if first.ended:
        return job
    count, there = len(first.units), job.units_total
    if not job.open:  # submitted before, whole
        return job
    try:
        while True:
            more = yield Work(partial(gather, units, prepared.manifest, count))
            new = more.units[max(0, there - count) :]
            if new:
                at = count + len(more.units) - len(new)
                yield from add_units(job.id, at, Gathered(new, more.large))
            count += len(more.units)
            if more.ended:
                return (yield from seal(job.id))
    except GeneratorExit:
        raise
    except BaseException as error:
        if not named or isinstance(error, Exception):
            yield from _take_back(job.id, error)
        raise


def run(
    model: Model, inputs: Inputs, options: Options, timeout_s: float | None, as_: As = "numpy"
) -> Flow[Outputs]:
    """Run one unit and give its outputs.

    Raises:
        JobFailedError: The unit failed, or the job was cancelled.
        WaitTimeoutError: It is still running after ``timeout_s``.
    """
    check_as(as_)
    deadline = time.monotonic() + (float("inf") if timeout_s is None else timeout_s)
    submitted = yield from submit(model, iter([inputs]), Policy.RUN, options)
    step_s = max(0.0, min(WAIT_STEP_S, deadline - time.monotonic()))
    got = yield from page(submitted.id, wait_s=step_s)  # the result comes with it
    if got.units and got.units[0].state is UnitState.DONE:
        return (yield from outputs_of(submitted.id, got.units[0], as_))
    ended = yield from wait(submitted.id, timeout_s and max(0.0, deadline - time.monotonic()))
    if not ended.state.final:
        raise WaitTimeoutError(
            f"job {ended.id} is still running after {timeout_s:g} s",
            hint=f"it goes on; `shoal job wait {ended.id}`",
        )
    if ended.state is not JobState.DONE:
        raise failure_of(ended)
    return (yield from outputs(ended.id, 0, as_))


def map_rows(
    model: Model, inputs: Mapping[str, np.ndarray], batch: int, options: Options
) -> Flow[Job]:
    """Submit a job of a unit for each ``batch`` rows of the inputs.

    Raises:
        ProgramError: Model or inputs cannot be used, or do not fit in such pieces.
    """
    prepared = yield from prepare(model, precision_of(options))
    check_batch(prepared.manifest, inputs, batch)
    return (yield from submit(prepared, batches(inputs, batch), Policy.MAP, options))


class LazyMap:
    """A job that is handed over while its results are taken; a flow for each step.

    Args:
        model: What to run.
        units: Its inputs, taken as they are needed.
        options: How to run them.
        ordered: Whether results come in the order of the inputs.
        as_: As what arrays are given.
        ahead: How many units may be handed over whose results were not taken.
        seen: Told how the job stands.
    """

    def __init__(
        self,
        model: Model,
        units: Iterator[Inputs],
        options: Options,
        *,
        ordered: bool = True,
        as_: As = "numpy",
        ahead: int = AHEAD_UNITS,
        seen: Callable[[Job], None] = lambda _job: None,
    ) -> None:
        check_as(as_)
        if ahead < 1:
            raise ProgramError(
                f"{ahead} units ahead is none at all", code="bad_ahead", hint="1 or more"
            )
        self.job: Job | None = None
        self.ended = False
        self._model = model
        self._units = units
        self._options = options
        self._how: dict[str, Any] = {"ordered": ordered, "as_": as_, "seen": seen}
        self._ahead = ahead
        # Whole requests, not one for each few results; a small `ahead` is kept up all the same.
        self._refill = max(1, min(UNITS_PER_REQUEST, ahead // REFILL_PART))
        self._prepared: Prepared | None = None
        self._results: Results | None = None
        self._all_handed_over = False
        self._handed_over = 0
        self._taken = 0

    def next(self) -> Flow[Outputs | None]:
        """The outputs of the next unit; None after the last one.

        Raises:
            InputError, ProgramError: A unit does not fit the program.
            JobFailedError: The next unit failed.
        """
        waiting = 0 if self._results is None else self._results.waiting
        while not waiting:
            yield from self._hand_over()
            if self._taken == self._handed_over and self._all_handed_over:
                self.ended = True
                return None
            if self._results is not None and self._taken < self._handed_over:
                idle = self._all_handed_over or self._room < self._refill
                waiting = yield from self._results.ask(WAIT_STEP_S if idle else 0.0)
        assert self._results is not None
        found = yield from self._results.take()
        self._taken += 1
        return found

    def give_up(self) -> Flow[None]:
        """Cancel what nobody takes any more."""
        if self.job is not None and not self.ended:
            self.ended = True
            yield from cancel(self.job.id, parting=True)

    @property
    def _room(self) -> int:
        return self._ahead - (self._handed_over - self._taken)

    def _hand_over(self) -> Flow[None]:
        """Fill the room there is, unless results wait that were fetched already."""
        if self._prepared is None:
            self._prepared = yield from prepare(self._model, precision_of(self._options))
        while not self._all_handed_over and self._room >= self._refill:
            limit = min(self._room, UNITS_PER_REQUEST)
            manifest, at = self._prepared.manifest, self._handed_over
            more = yield Work(partial(gather, self._units, manifest, at, limit, LINGER_S))
            if self.job is None:
                if more.units:
                    self.job = yield from open_job(
                        self._prepared,
                        Policy.MAP,
                        self._options,
                        more,
                        stays_open=not more.ended,
                    )
                    self._results = Results(self.job.id, **self._how)
            else:
                if more.units:
                    yield from add_units(self.job.id, at, more)
                if more.ended:
                    yield from seal(self.job.id)
            self._handed_over += len(more.units)
            self._all_handed_over = more.ended
            if len(more.units) < limit:
                break


def _put(units: Gathered) -> Flow[None]:
    for blob_id, array in units.large.items():
        held = yield Request("HEAD", f"/v1/blobs/{blob_id}", refusals=(404,))
        if held is None:
            yield Request(
                "PUT",
                "/v1/blobs",
                body=partial(pieces_of, array),
                answer_limit_s=UPLOAD_LIMIT_S,
            )


def _take_back(job_id: str, error: BaseException) -> Flow[None]:
    """Cancel a job that was handed over in part; where even that fails, say so."""
    try:
        yield from cancel(job_id, parting=True)
    except ShoalError as another:
        if another.code == "no_such_job":
            return
        error.add_note(
            f"job {job_id} stays open ({another.code}): `shoal job cancel {job_id}` ends it"
        )
