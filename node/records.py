"""What a daemon remembers and shows: jobs, units, receipts and peers as values.

These structs are rows of the state (`node.state`), bodies of the local API
(`node.api`) and what a client gets back (`node.client`). Changes make new
values; nothing here does IO.
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
from shoal.node.capability_views import Claim
from shoal.protocol.device_offers import DeviceOffer
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


class ProofView(msgspec.Struct, frozen=True):
    """A fraud proof that this node believes, as ``shoal proof list`` shows it.

    Attributes:
        accused: Whom it convicts.
        verdict: What it shows, for a person.
        own: Whether it is of work that this node gave.
        at: When it was judged here, in seconds since the epoch.
        blobs: Ids of the blobs that it takes to check it.
        blobs_bytes: Their size in all; of those that are not held it is not known.
        public: Whether anybody can fetch it and its blobs here.
        private: Whether nobody ever may, since its job keeps its proofs to this node.
    """

    id: BlobId
    accused: PeerId
    verdict: str
    own: bool
    at: float
    proof_bytes: int
    blobs: tuple[BlobId, ...] = ()
    blobs_bytes: int = 0
    public: bool = False
    private: bool = False


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


class StandingView(msgspec.Struct, frozen=True):
    """How a peer that broke the rules of the wire stands with this node.

    Attributes:
        standing: From 0, where it is cut, to 1, which it regains with time.
        why: What it did, for a person.
        offences: How often it did what, by `node.standing.Offence`.
    """

    standing: float
    why: str
    offences: dict[str, int]


class NoteView(msgspec.Struct, frozen=True):
    """What was seen of a peer or of a stranger, and is held against nobody.

    Attributes:
        what: By `node.notes.Seen`.
        sentence: The same for a person, after the name of whom.
        times: How often.
        last: When last, in seconds since the epoch.
        detail: The last one more exactly.
    """

    what: str
    sentence: str
    times: int
    last: float
    detail: str = ""


class ConductView(msgspec.Struct, frozen=True):
    """A peer of which something is held or noted, whether its advert is known or not.

    Attributes:
        standing: None for a peer that kept to the rules.
        notes: What was seen, with no effect on anything.
    """

    peer: PeerId
    standing: StandingView | None
    notes: tuple[NoteView, ...] = ()


class CallerView(msgspec.Struct, frozen=True):
    """From where somebody called who is no known peer.

    Attributes:
        place: An IPv4 address, or a network of IPv6.
    """

    place: str
    note: NoteView


class CutView(msgspec.Struct, frozen=True):
    """A peer of which no connection is taken for a while.

    Attributes:
        since: In seconds since the epoch, as `until`.
        why: What it did, for a person.
        friend: Whether it is on the allow list.
    """

    peer: PeerId
    since: float
    until: float
    why: str
    friend: bool = False


class PeerView(msgspec.Struct, frozen=True):
    """One row of ``shoal peers``: a node whose advert is valid now."""

    peer: PeerId
    agent: str
    addresses: tuple[str, ...]
    linked: bool
    allowed: bool
    rtt_s: float | None
    devices: tuple[DeviceOffer, ...]
    numeric_classes: tuple[str, ...]
    advert_age_s: float
    advert_expires_in_s: float
    providing: bool = True
    """Whether it takes work now, by its own words: not in a pause."""
    claims: tuple[Claim, ...] = ()
    bulk_received_bytes: int = 0
    bulk_sent_bytes: int = 0
    """Over bulk channels, since the daemon's start."""
    advert_issued_at: float | None = None
    """When the peer issued it by its own clock, in seconds since the epoch."""
    protocol: tuple[int, int] = (0, 0)
    """The (major, minor) that it speaks, by its advert."""
    standing: StandingView | None = None
    """None for a peer that kept to the rules."""


class MisfitView(msgspec.Struct, frozen=True):
    """A connected peer that there is no talking to.

    Attributes:
        why: What it speaks and who has to upgrade, or that it is no node of shoal.
    """

    peer: PeerId
    why: str


class StanceView(msgspec.Struct, frozen=True):
    """What one device takes now.

    Attributes:
        peers: Whether units of peers are taken.
        own: Whether units of this node's own user are.
        cause: ``paused``, ``schedule`` or ``stepping_back``, where peers' are not.
        until: When the cause ends by itself, in seconds since the epoch, where known.
        sentence: The same for a person, or "".
        units_at_once: How many units it runs at a time, where its memory allows; 0 where none.
    """

    device: str
    peers: bool
    own: bool
    cause: str | None = None
    until: float | None = None
    sentence: str = ""
    units_at_once: int = 0


class OwnerView(msgspec.Struct, frozen=True):
    """What the owner lets this node do, and for whom.

    Attributes:
        provide: Whether it works for peers at all.
        serve: ``anyone``, ``friends`` or ``those-who-serve``.
        sandboxed: Whether the worker is locked in, without which no stranger is served.
        allowed: How many peers are on the allow list.
        denied: How many are on the deny list.
        schedule: The hours for peers; always where it is empty.
        schedule_changes_at: When they begin or end next, in seconds since the epoch.
        step_back: From which share of the machine, used by the owner's own processes,
            nothing of peers is taken; None for never.
        use: That share as it was last measured.
    """

    provide: bool
    serve: str
    sandboxed: bool
    allowed: int
    denied: int
    min_price: float
    cores: int
    memory_bytes: int
    stances: tuple[StanceView, ...]
    schedule: tuple[str, ...] = ()
    schedule_changes_at: float | None = None
    step_back: float | None = None
    use: float | None = None


class ReloadView(msgspec.Struct, frozen=True):
    """What reading the settings again has changed, by names of settings.

    Attributes:
        changed: Those that are others now.
        needs_restart: Those that are others and count after a restart only.
        unchanged: How many stayed.
        warnings: What is set and does not hold as it stands.
    """

    changed: tuple[str, ...]
    needs_restart: tuple[str, ...]
    unchanged: int
    warnings: tuple[str, ...] = ()


class LogLevelView(msgspec.Struct, frozen=True):
    """How much the log tells now.

    Attributes:
        level: Of all modules of shoal.
        configured: The same by the settings, to which a reload goes back.
        modules: Those with a level of their own.
    """

    level: str
    configured: str
    modules: dict[str, str] = {}


class ReachabilityView(msgspec.Struct, frozen=True):
    """How others reach this node.

    Attributes:
        verdict: ``public``, ``private``, ``blocked`` or ``unknown``.
        sentence: The same for a person, with what to do.
        evidence: A line for each peer that dialled this node back, the newest first.
    """

    verdict: str
    sentence: str
    evidence: tuple[str, ...] = ()


class SeedView(msgspec.Struct, frozen=True):
    """One place by which this node joins, or looks for its network.

    Attributes:
        text: As it was set, or the address that was found.
        source: ``setting``, ``invitation``, ``dnsaddr`` (an address behind a name that
            was set), ``remembered`` or ``lan``.
        peer: Who is there; None for a name that is not resolved yet.
        linked: Whether that peer is a link now.
        error: Why the last attempt came to nothing, "" where it did not, or was not made.
        error_at: When that was, in seconds since the epoch.
    """

    text: str
    source: str
    peer: PeerId | None = None
    linked: bool = False
    error: str = ""
    error_at: float | None = None


class JoiningView(msgspec.Struct, frozen=True):
    """How this node finds its network.

    Attributes:
        sentence: Why it is alone, for a person; "" while it has a link.
        seeds: Where it looks, as set first.
        lan: What it does on its local network, for a person; "" before it has begun.
    """

    sentence: str
    seeds: tuple[SeedView, ...] = ()
    lan: str = ""


class Status(msgspec.Struct, frozen=True):
    """The answer of ``shoal status``.

    Attributes:
        units_running: Units that this node runs now, or that wait in it.
        units_out: Units of its own jobs that are in the hands of a provider now.
        phase: ``running``, or ``draining`` when it has been told to end.
        drain_ends_in_s: How long units that run still have to end, while it drains.
        settings_error: What was wrong when the settings were read last, and "" for
            nothing; those read before count.
        needs_restart: Settings that were changed and count after a restart only.
        protocol_version, protocol_minor: Of the protocol that it speaks.
        network: The name of the private network that the daemon is in, or ``public``.
        network_fingerprint: What tells networks of one name apart; "" for the public one.
        bulk: The port of bulk channels; 0 where they are off.
        bulk_announced: Where peers are told to dial it, where that is elsewhere.
    """

    peer: PeerId
    version: str
    protocol_version: int
    pid: int
    home: str
    socket: str
    addresses: tuple[str, ...]
    uptime_s: float
    peers_known: int
    peers_linked: int
    jobs_running: int
    units_served: int
    blob_bytes: int
    blob_quota_bytes: int
    peers_banned: int = 0
    network: str = "public"
    network_fingerprint: str = ""
    sandbox: str = ""
    """How the worker is locked in, and what is missing."""
    sandboxed: bool = False
    """Whether that is enough for strangers' programs."""
    owner: OwnerView | None = None
    units_running: int = 0
    units_out: int = 0
    phase: str = "running"
    drain_ends_in_s: float | None = None
    settings_error: str = ""
    needs_restart: tuple[str, ...] = ()
    reachability: ReachabilityView | None = None
    joining: JoiningView | None = None
    protocol_minor: int = 0
    bulk: int = 0
    bulk_announced: str = ""

    @property
    def protocol(self) -> str:
        """The version of the protocol, in the way that peers' are shown."""
        return f"{self.protocol_version}.{self.protocol_minor}"
