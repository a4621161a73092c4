"""What a daemon must be able to do to stand behind the local API.

The API is written against these two protocols and nothing else of the daemon,
so that its tests need no network. Every method raises `ShoalError` for what a
person should read; anything else is a bug and becomes ``internal_error``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager

    import trio

    from shoal.compute.devices import Inventory
    from shoal.compute.programs import AnyManifest
    from shoal.crypto.content import BlobId, ChunkList
    from shoal.crypto.peer_id import PeerId
    from shoal.node.assurance import Assurance, JobAssurance
    from shoal.node.capability_views import CapabilityView, ChallengeView
    from shoal.node.causes import Explanation
    from shoal.node.journal_results import Order
    from shoal.node.ledger import LedgerPage
    from shoal.node.peer_views import (
        CallerView,
        ConductView,
        CutView,
        MisfitView,
        PeerView,
        ProofView,
    )
    from shoal.node.records import Ban, GivenUnit, Job, JobId, JobSpec, Unit
    from shoal.node.settings_view import SettingView
    from shoal.node.standing_view import StandingPage
    from shoal.node.status_views import LogLevelView, OwnerView, ReloadView, Status
    from shoal.node.timing_view import UnitTiming


class BlobStore(Protocol):
    """Immutable bytes by content id, under a quota."""

    async def put(self, chunks: AsyncIterable[bytes]) -> ChunkList:
        """Store a stream; when it raises, or this is cancelled, nothing stays.

        Raises:
            StoreError: ``quota_exceeded`` or ``disk_full``.
        """
        ...

    async def put_bytes(self, data: bytes) -> BlobId:
        """Store bytes held in memory; raises as `put` does."""
        ...

    def holds(self, blob_id: BlobId) -> bool:
        """Whether the blob is there, whole."""
        ...

    def size_bytes(self, blob_id: BlobId) -> int:
        """The blob's size; raises StoreError ``blob_missing``."""
        ...

    async def get_bytes(self, blob_id: BlobId) -> bytes:
        """A blob in memory; raises StoreError ``blob_missing``."""
        ...

    def read_chunks(self, blob_id: BlobId) -> AsyncIterator[bytes]:
        """A blob chunk by chunk; raises StoreError ``blob_missing``."""
        ...


class DaemonFacade(Protocol):
    """A running daemon as the local API sees it."""

    @property
    def blobs(self) -> BlobStore:
        """The daemon's blobs."""
        ...

    def status(self) -> Status:
        """How the daemon is."""
        ...

    def settings(self) -> tuple[SettingView, ...]:
        """The settings that the daemon runs with, and where each came from."""
        ...

    def peers(self) -> list[PeerView]:
        """The nodes whose adverts are valid now."""
        ...

    def misfits(self) -> list[MisfitView]:
        """Connected peers that this node cannot talk to, and why."""
        ...

    def cuts(self) -> list[CutView]:
        """Peers of which no connection is taken for a while."""
        ...

    def conducts(self) -> list[ConductView]:
        """Peers of which something is held or noted, known by an advert or not."""
        ...

    def callers(self) -> list[CallerView]:
        """From where strangers called at the bulk port without a good token."""
        ...

    def forgive(self, peer: str) -> None:
        """Let a peer back in; raises PeerError ``no_such_offender``."""
        ...

    def standing(self, peer: str) -> StandingPage:
        """How a peer stands with this node, what that decides, and why."""
        ...

    def ledger(self, peer: str | None) -> LedgerPage:
        """Who did how much for whom: for one peer, or for all."""
        ...

    async def export_ledger(self, peer: str | None) -> bytes:
        """What others have signed of it, as lines of a file."""
        ...

    def bans(self) -> list[Ban]:
        """Peers that a fraud proof has convicted, and that nothing is given to."""
        ...

    async def unban(self, peer: str) -> None:
        """Lift a ban before its time; raises PeerError ``not_banned``."""
        ...

    def proofs(self) -> list[ProofView]:
        """The fraud proofs that this node believes, the newest first."""
        ...

    async def proof(self, proof_id: BlobId) -> bytes:
        """A fraud proof's bytes; raises PeerError ``no_such_proof``."""
        ...

    async def devices(self) -> Inventory:
        """This node's devices as its executors probed them, and what is missing."""
        ...

    async def convert_program(self, onnx: bytes, precision: str | None) -> BlobId:
        """Make a program of an ONNX model, in the worker; raises ProgramError."""
        ...

    async def register_program(self, program: BlobId) -> AnyManifest:
        """Take up a program whose blobs were uploaded.

        Raises:
            ProgramError: Its manifest is malformed.
            StoreError: ``blobs_missing``, naming those that it lacks.
        """
        ...

    async def program(self, program: BlobId) -> AnyManifest:
        """The manifest of a program held; raises StoreError ``blob_missing``."""
        ...

    async def submit(self, spec: JobSpec, units: Sequence[GivenUnit]) -> Job:
        """Take a job with its units, or its first ones where it is open.

        Raises:
            ProgramError: A unit does not fit the program; the sentence names its index.
        """
        ...

    async def add_units(self, job_id: JobId, units: Sequence[GivenUnit], at: int | None) -> Job:
        """Add units to an open job, all of them or none.

        Args:
            job_id: The job.
            units: Some of them.
            at: The index that the first is to have; None for whatever comes next.

        Raises:
            JobError: ``job_sealed``, ``job_ended``, or ``wrong_place`` for ``at``.
            ProgramError: As `submit`.
        """
        ...

    async def seal(self, job_id: JobId) -> Job:
        """No more units come to an open job; a sealed one stays as it is."""
        ...

    async def results(
        self, job_id: JobId, after: int, limit: int, order: Order
    ) -> tuple[list[Unit], int]:
        """Units that have ended, and the ``after`` of those that follow them.

        Args:
            job_id: The job.
            after: -1 for the first.
            limit: Units at most.
            order: ``given``, where ``after`` is an index, or ``ended``.
        """
        ...

    async def note_read(self, job_id: JobId, until: int, order: Order) -> None:
        """Note that whoever asks has the results up to ``until``, counted as in `results`."""
        ...

    async def small_tensors(self, ids: Sequence[BlobId]) -> dict[BlobId, bytes]:
        """Those of ``ids`` that are held as small tensors, and not as blobs."""
        ...

    async def bring_home(self, blob_id: BlobId) -> None:
        """Hold an output that was left with a peer; others are no matter.

        Raises:
            JobError: ``computed_again``: it is lost, and its unit runs again.
            StoreError: There is no room for it.
        """
        ...

    async def cancel_units(self, job_id: JobId, indices: Sequence[int]) -> tuple[int, ...]:
        """Cancel units that nobody runs; gives the indices of those that are cancelled."""
        ...

    async def jobs(self, limit: int) -> list[Job]:
        """The newest jobs first."""
        ...

    async def job(self, job_id: JobId) -> Job:
        """A job as it stands; raises JobError ``no_such_job``, as all below."""
        ...

    async def units(self, job_id: JobId, offset: int, limit: int) -> list[Unit]:
        """Units of a job in order of their index."""
        ...

    def watch(
        self, job_id: JobId
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[Job]]:
        """The job at once and at each change; the channel ends once it is final."""
        ...

    async def cancel(self, job_id: JobId) -> Job:
        """End a job early; a final one stays as it is."""
        ...

    async def forget(self, job_id: JobId, *, unfetched_too: bool) -> Job:
        """Forget a job that has ended; raises JobError where it may not go."""
        ...

    async def why(self, job_id: JobId, unit: int | None = None) -> Explanation:
        """Why a job, or one unit of it, stands where it stands.

        Raises:
            JobError: ``no_such_job`` or ``no_such_unit``.
        """
        ...

    async def again(self, job_id: JobId, indices: Sequence[int], verify: str) -> Job:
        """Submit units of a job once more, as a job of their own; none: those in doubt.

        Raises:
            JobError: ``no_such_job``, ``no_such_unit``, ``units_await`` or ``none_doubted``.
        """
        ...

    async def timing(self, job_id: JobId, unit: int) -> UnitTiming:
        """Where the time of a unit went; raises JobError ``no_timing`` where it is not kept."""
        ...

    async def assurance(
        self, job_id: JobId, offset: int, limit: int
    ) -> tuple[JobAssurance, list[Assurance]]:
        """How far a job's results can be relied on: all of it counted, and some units."""
        ...

    async def receipts(self, job_id: JobId) -> list[BlobId]:
        """Ids of the job's receipts."""
        ...

    async def receipt(self, receipt_id: BlobId) -> bytes:
        """A receipt's envelope; raises JobError ``no_such_receipt``."""
        ...

    async def pause(self, device: str | None, for_s: float | None) -> OwnerView:
        """Pause a device, or the node for peers; raises ConfigError ``no_such_device``."""
        ...

    async def resume(self, device: str | None) -> OwnerView:
        """End the pause of a device, or every pause; raises as `pause`."""
        ...

    def capability(self) -> CapabilityView:
        """What this node claims of itself, measured, and who has seen it shown."""
        ...

    async def measure(self, device: str | None) -> tuple[str, ...]:
        """Measure a device anew, or each; gives which will be.

        Raises:
            ConfigError: ``no_such_device``.
            ComputeError: ``not_measured``: none of them can be now.
        """
        ...

    async def challenge(self, peer: str, device: str | None) -> ChallengeView:
        """Have a peer show a rate that it claims.

        Raises:
            PeerError: It is not known, or claims nothing that can be shown.
            NetworkError: It went away.
            ComputeError: This node cannot check what it draws.
        """
        ...

    async def connect(self, address: str) -> PeerId:
        """Link to a peer by multiaddr; raises NetworkError."""
        ...

    async def reload(self) -> ReloadView:
        """Read the settings again; raises ConfigError where they stay as they are."""
        ...

    def log_level(self) -> LogLevelView:
        """How much the log tells."""
        ...

    def set_log_level(self, level: str, module: str | None) -> LogLevelView:
        """Have the log tell more or less.

        Raises:
            ConfigError: ``bad_level``, ``no_such_module`` or ``too_many_modules``.
        """
        ...

    def end(self, *, now: bool) -> None:
        """Make the daemon drain and end, or end at once."""
        ...

    def metrics(self) -> bytes:
        """Metrics in Prometheus' text format."""
        ...
