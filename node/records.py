"""What a daemon remembers: jobs, units, what was answered and checked, and bans, as values.

These structs are rows of the state (`node.state`), bodies of the local API
(`node.api`) and what a client gets back (`node.client`). Changes make new
values; nothing here does IO. What is shown and not remembered is `node.peer_views`'
and `node.status_views`'.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal, NewType, TypeAlias

import msgspec
from msgspec import Meta

from shoal.crypto.content import BlobId
from shoal.crypto.peer_id import PeerId
from shoal.protocol.limits import UNIT_TIME_LIMIT_S, ShortText

JobId = NewType("JobId", str)
"""27 hexadecimal digits: a time and randomness, so that ids sort by age."""

JOB_ID_PATTERN = r"\A[0-9a-f]{27}\Z"


def new_job_id() -> JobId:
    """A new id: 11 hexadecimal digits of milliseconds, then 16 of randomness."""
    return JobId(f"{int(time.time() * 1000):011x}{secrets.token_hex(8)}")


SCHEMA_VERSION = 1
"""Of every JSON body that the local API and ``--json`` give; grows when a field changes."""

SMALL_TENSOR_LIMIT_BYTES = 64 << 10
"""A tensor of up to so many bytes is kept in the journal, a larger one as a blob."""

PRIORITY_LIMIT = 4
"""A job of the highest priority has 256 times the share of one of the lowest: none starves."""


class Policy(StrEnum):
    """How the units of a job belong together."""

    RUN = "run"
    MAP = "map"


class JobState(StrEnum):
    """Where a job stands; the last three are final."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether the job will not change any more."""
        return self is not JobState.RUNNING


class UnitState(StrEnum):
    """Where a unit stands; the last three are final.

    ``leased`` is never written down: it is true of a running job only.
    """

    QUEUED = "queued"
    LEASED = "leased"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Failure(msgspec.Struct, frozen=True):
    """Why something failed: a stable code, a sentence and the next thing to do."""

    code: str
    message: str
    hint: str = ""


class OutputRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An output of another unit, as an input of this one: known before it exists.

    Attributes:
        job: A job of this daemon that was submitted before.
        unit: The index of the unit in it.
        output: The name of the output.
    """

    job: JobId
    unit: Annotated[int, Meta(ge=0)]
    output: str


GivenUnit: TypeAlias = Mapping[str, BlobId | OutputRef | bytes]
"""A unit as a submitter gives it: what is bytes is a whole tensor."""


class JobSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a submitter asks for.

    Attributes:
        program: Id of a program whose blobs the daemon holds.
        units: For each unit, by name of the program's input, the id of a tensor that the
            daemon holds, or an output of another unit.
        numeric_class: ``fp32``; a receipt names it and a quorum never mixes classes.
        label: Free text for the submitter's own use.
        time_limit_s: Wall-clock seconds that one unit may take.
        memory_limit_bytes: Address space that one unit may use.
        priority: Each step doubles the job's share beside this daemon's other jobs.
        fail_fast: End the job where nobody bids at the first call, instead of waiting.
        outputs_stay: Leave outputs with the peers that made them until they are asked for.
        open: Units are still to be added; the job ends only after it was sealed.
        verify: How results are checked: ``receipt``, ``quorum:K``, ``sample:P`` or ``auto``
            (see `protocol.verification.policy`).
        proofs: Who gets proofs of false results, which show program and inputs of a unit:
            ``public`` (everybody) or ``private`` (nobody: they ban here alone).
        id: Chosen by the submitter, so that it can name the job before the answer comes:
            what is submitted again under the same id is the same job. None: the daemon's.
    """

    policy: Policy
    program: BlobId
    units: tuple[dict[str, BlobId | OutputRef], ...]
    numeric_class: ShortText = "fp32"
    label: str = ""
    time_limit_s: Annotated[float, Meta(gt=0.0, le=UNIT_TIME_LIMIT_S)] = 300.0
    memory_limit_bytes: Annotated[int, Meta(ge=1, le=1 << 50)] = 1 << 30
    priority: Annotated[int, Meta(ge=-PRIORITY_LIMIT, le=PRIORITY_LIMIT)] = 0
    fail_fast: bool = False
    outputs_stay: bool = False
    open: bool = False
    verify: ShortText = "auto"
    proofs: ShortText = "public"
    id: Annotated[JobId, Meta(pattern=JOB_ID_PATTERN)] | None = None


class Job(msgspec.Struct, frozen=True):
    """A job as it stands. Times are seconds since the epoch."""

    id: JobId
    policy: Policy
    program: BlobId
    numeric_class: str
    label: str
    state: JobState
    created_at: float
    ended_at: float | None
    units_total: int
    units_done: int
    units_failed: int
    failure: Failure | None = None
    priority: int = 0
    open: bool = False
    """Whether units may still be added."""
    outputs_stay: bool = False
    fetched: bool = False
    """Whether every result was given out, so that the job may go when room is needed."""
    verify: ShortText = "auto"
    """How its results are checked, as `JobSpec.verify` has it."""

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from shoal.node.html_views import job_html

        return job_html(self)

    def output(self, unit: int, output: str) -> OutputRef:
        """An output of one of its units, to be an input of a later job's."""
        return OutputRef(self.id, unit, output)


class Unit(msgspec.Struct, frozen=True):
    """A unit as it stands.

    Attributes:
        index: Its place in the job, from 0.
        inputs: Tensor id of each input that is known.
        awaits: The inputs that are outputs of units which have not ended; it is ready to
            be leased when there are none.
        outputs: Tensor id of each output, once done and verified.
        receipt: Id of the provider's receipt, once there is one.
        provider: The peer that holds its lease, or that ran it.
        attempts: How many leases it has been under: written down when it ends, or when
            what came of one is not used.
        seconds: From hand-over to verified result.
        ended: Its number in the order in which the units of its job ended; numbers grow,
            and some may be missing.
    """

    job: JobId
    index: int
    state: UnitState
    inputs: dict[str, BlobId]
    outputs: dict[str, BlobId] | None = None
    receipt: BlobId | None = None
    provider: PeerId | None = None
    attempts: int = 0
    seconds: float | None = None
    failure: Failure | None = None
    awaits: dict[str, OutputRef] = {}
    ended: int | None = None


CheckLevel: TypeAlias = Literal["quorum", "re-run", "own"]
CheckVerdict: TypeAlias = Literal["agrees", "differs", "no_answer"]


class Check(msgspec.Struct, frozen=True):
    """What one verifier's run of a unit says of the result that the unit ended with.

    Attributes:
        level: ``quorum`` where several ran it as asked, ``re-run`` where the verifier was
            drawn, ``own`` where this node ran it itself.
        verifier: Who ran it; this node for ``own``.
        verdict: ``differs`` where its result is another one.
        receipt: Id of the verifier's own receipt, where it gave one.
        at: In seconds since the epoch.
    """

    job: JobId
    unit: int
    level: CheckLevel
    verifier: PeerId
    verdict: CheckVerdict
    receipt: BlobId | None
    at: float


class Ban(msgspec.Struct, frozen=True):
    """A peer that was convicted by a fraud proof, and is dealt with by nobody for a while.

    Attributes:
        proof: Id of the proof.
        since: In seconds since the epoch, as `until`.
        why: What the proof shows, for a person.
        own: Whether the proof is of work that this node gave.
    """

    peer: PeerId
    proof: BlobId
    since: float
    until: float
    why: str
    own: bool = False


class Ended(msgspec.Struct, frozen=True):
    """A unit's end, with all that is written down of it at once.

    Attributes:
        unit: As it ended: done, failed or cancelled.
        receipt: The envelope that ``unit.receipt`` names, where there is one.
        tensors: Outputs of up to `SMALL_TENSOR_LIMIT_BYTES`, which the journal keeps.
        left: Outputs that stay with ``unit.provider``, with their sizes in bytes.
        checks: What verifiers said of it before it ended.
    """

    unit: Unit
    receipt: bytes | None = None
    tensors: dict[BlobId, bytes] = {}
    left: dict[BlobId, int] = {}
    checks: tuple[Check, ...] = ()


class Written(msgspec.Struct, frozen=True):
    """What the ends of units came to.

    Attributes:
        new: For each of them, False where the unit had ended before: nothing was written.
        touched: Jobs of which units that awaited these became ready or failed.
    """

    new: tuple[bool, ...]
    touched: frozenset[JobId]


class Answer(msgspec.Struct, frozen=True):
    """What one peer answered to one call for bids, kept for ``shoal job why``.

    ``verdict`` is ``bid``, ``awarded``, a refusal's reason, or the code of the
    network error that stood in place of an answer.
    """

    job: JobId
    peer: PeerId
    at: float
    verdict: str
    detail: str = ""
