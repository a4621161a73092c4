"""A running daemon as the local API sees it: who answers what.

Stands behind `node.api.facade` and `node.lifecycle.Drainable`. Everything is done by the
modules that `node.daemon` has wired; peers' requests reach them by `node.dispatch`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from shoal.compute import devices as hardware
from shoal.compute.devices.abilities import with_abilities
from shoal.crypto.peer_id import PeerId
from shoal.node import chaining, reload, submission
from shoal.node.account import about_unit, told
from shoal.node.again import spec_again
from shoal.node.assurance import Assurance, JobAssurance, assure
from shoal.node.capability import Capability
from shoal.node.challenger import Challenger
from shoal.node.errors import ConfigError, JobError
from shoal.node.evidence import disputes_of
from shoal.node.figures import owner_of, readings_of, status_of
from shoal.node.house import program_of
from shoal.node.jobs import Jobs
from shoal.node.known_peers import peer_views, surroundings
from shoal.node.ledger_file import ACKNOWLEDGEMENTS_LIMIT, RECEIPTS_LIMIT, write_lines
from shoal.node.membership import Membership
from shoal.node.metrics import Metrics
from shoal.node.network_statistics import Traffic
from shoal.node.offer import Capacity
from shoal.node.owner_view import check_device
from shoal.node.owner_watch import OwnerWatch
from shoal.node.peer_views import MisfitView, PeerView
from shoal.node.provider import Provider
from shoal.node.setting_values import read_level
from shoal.node.settings_view import SettingView, settings_view
from shoal.node.status_views import LogLevelView, ReloadView, Status
from shoal.node.timing_view import UnitTiming
from shoal.node.units_assured import units_assured
from shoal.node.work_done import work_done
from shoal.protocol.negotiation_messages import Reason

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    from shoal.compute.device_worker import Worker
    from shoal.compute.devices import Device, Inventory
    from shoal.compute.programs import AnyManifest
    from shoal.crypto.content import BlobId
    from shoal.crypto.identity import Identity
    from shoal.node.blobs import BlobStore
    from shoal.node.capability_views import CapabilityView, ChallengeView
    from shoal.node.causes import Explanation
    from shoal.node.conduct import Conduct
    from shoal.node.config import Config
    from shoal.node.convictions import Convictions
    from shoal.node.disputing import Disputes
    from shoal.node.house import House
    from shoal.node.joining import Joining
    from shoal.node.journal_results import Order
    from shoal.node.ledger import LedgerPage
    from shoal.node.lifecycle import Lifecycle
    from shoal.node.network import Network
    from shoal.node.peer_versions import PeerVersions
    from shoal.node.peer_views import CallerView, ConductView, CutView, ProofView
    from shoal.node.reachability import Reachability
    from shoal.node.records import Ban, GivenUnit, Job, JobId, JobSpec, Unit
    from shoal.node.retention import Retention
    from shoal.node.standing_view import StandingPage
    from shoal.node.standings import Standings
    from shoal.node.state import State
    from shoal.node.status_views import OwnerView
    from shoal.node.swarm_key import SwarmKey
    from shoal.node.work_done import WorkDone

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Daemon:
    """A running daemon as the local API sees it."""

    lifecycle: Lifecycle
    identity: Identity
    house: House
    swarm_key: SwarmKey | None
    network: Network
    blobs: BlobStore
    journal: State
    worker: Worker
    membership: Membership
    capacity: Capacity
    measured: Capability
    challenger: Challenger
    provider: Provider
    jobs_running: Jobs
    owner: OwnerWatch
    versions: PeerVersions
    conduct: Conduct
    standings: Standings
    convictions: Convictions
    disputes: Disputes
    reachability: Reachability
    joining: Joining
    retention: Retention
    started_at_s: float = field(default_factory=trio.current_time)
    figures: Metrics = field(init=False)

    def __post_init__(self) -> None:
        self.figures = Metrics(partial(readings_of, self))

    @property
    def config(self) -> Config:
        """The settings that count now."""
        return self.lifecycle.settings()

    def status(self) -> Status:
        """How the daemon is."""
        return status_of(self)

    def settings(self) -> tuple[SettingView, ...]:
        """What the operator set, and where."""
        return settings_view(self.config)

    def peers(self) -> list[PeerView]:
        """The other nodes whose adverts are valid now."""
        channels = self.house.channels
        return peer_views(
            self.membership,
            self.measured.book,
            self.house.terms(),
            self.conduct,
            channels.traffic_of if channels is not None else lambda _peer: Traffic(),
        )

    def misfits(self) -> list[MisfitView]:
        """Connected peers that this node cannot talk to, and why."""
        found = sorted(self.versions.misfits.items())
        return [MisfitView(peer, why) for peer, why in found]

    def cuts(self) -> list[CutView]:
        """Peers of which no connection is taken for a while."""
        return self.conduct.cuts()

    def conducts(self) -> list[ConductView]:
        """Peers of which something is held or noted."""
        return self.conduct.all()

    def callers(self) -> list[CallerView]:
        """From where strangers called at the bulk port without a good token."""
        return self.conduct.callers()

    def forgive(self, peer: str) -> None:
        """Let a peer back in; raises PeerError ``no_such_offender``."""
        self.conduct.forgive(PeerId(peer))

    def standing(self, peer: str) -> StandingPage:
        """How a peer stands with this node, what that decides, and why."""
        return self.standings.page(PeerId(peer))

    def ledger(self, peer: str | None) -> LedgerPage:
        """Who did how much for whom."""
        return self.house.settling.ledger.page(
            self.config.serve, PeerId(peer) if peer else None
        )

    async def export_ledger(self, peer: str | None) -> bytes:
        """What others have signed of it, as a file: see `node.ledger_file`."""
        known = None if peer is None else PeerId(peer)
        kept = (await self.journal.acknowledgements(known))[-ACKNOWLEDGEMENTS_LIMIT:]
        receipts = await self.journal.receipts_from(known, RECEIPTS_LIMIT)
        own = self.identity.peer_id
        return await trio.to_thread.run_sync(write_lines, own, time.time(), kept, receipts)

    def bans(self) -> list[Ban]:
        """Peers that a fraud proof has convicted, and that nothing is given to."""
        return self.convictions.bans()

    async def unban(self, peer: str) -> None:
        """Lift a ban; raises PeerError ``not_banned``."""
        await self.convictions.unban(PeerId(peer))

    def proofs(self) -> list[ProofView]:
        """The fraud proofs that this node believes."""
        return self.convictions.proofs()

    async def proof(self, proof_id: BlobId) -> bytes:
        """A fraud proof's bytes; raises PeerError ``no_such_proof``."""
        return await self.convictions.proof(proof_id)

    async def devices(self) -> Inventory:
        """This node's devices, with the memory that is free now, and what is missing."""
        inventory = await trio.to_thread.run_sync(hardware.detect, abandon_on_cancel=True)
        return with_abilities(inventory, self.capacity.canaries)

    def capability(self) -> CapabilityView:
        """What this node claims of itself, and who has seen it shown."""
        own = self.membership.table.get(self.identity.peer_id)
        return self.measured.view(own.advert if own else None)

    async def measure(self, device: str | None) -> tuple[str, ...]:
        """Measure a device anew, or each, as soon as it can be; gives which will be.

        Raises:
            ConfigError: ``no_such_device``.
            ComputeError: ``not_measured``.
        """
        check_device(device, await self._found())
        return self.measured.ask(device)

    async def challenge(self, peer: str, device: str | None) -> ChallengeView:
        """Have a peer show a rate; raises PeerError, NetworkError or ComputeError."""
        return await self.challenger.challenge(PeerId(peer), device)

    async def convert_program(self, onnx: bytes, precision: str | None) -> BlobId:
        """Make a program of an ONNX model, in the worker.

        Raises:
            ProgramError: The model breaks a rule; the sentence names it.
        """
        program = await self.worker.convert(self.identity.peer_id, onnx, precision)
        for blob in program.blobs.values():
            await self.blobs.put_bytes(blob)
        return program.program_id

    async def register_program(self, program: BlobId) -> AnyManifest:
        """Take up a program whose blobs were uploaded; raises as `program_of`."""
        return await program_of(self.blobs, program)

    async def program(self, program: BlobId) -> AnyManifest:
        """The manifest of a program held; raises as `register_program`."""
        return await program_of(self.blobs, program)

    async def submit(self, spec: JobSpec, units: Sequence[GivenUnit]) -> Job:
        """Take a job; raises ProgramError where inputs do not fit the program."""
        return await self.jobs_running.submit(spec, units)

    async def again(self, job_id: JobId, indices: Sequence[int], verify: str) -> Job:
        """Submit units of a job once more, as a job of their own; see `spec_again`."""
        own = self.identity.peer_id
        spec = await spec_again(self.journal, own, job_id, indices, verify)
        return await self.submit(spec, spec.units)

    async def add_units(self, job_id: JobId, units: Sequence[GivenUnit], at: int | None) -> Job:
        """Add units to an open job, all of them or none; raises as `submission.add_units`."""
        manifest = self.jobs_running.manifest(job_id)
        job, taken = await submission.add_units(self.house, job_id, units, at, manifest)
        self.jobs_running.units_added(job_id, taken)
        return job

    async def seal(self, job_id: JobId) -> Job:
        """No more units come to an open job."""
        job = await self.journal.seal_job(job_id)
        self.jobs_running.sealed(job_id)
        return job

    async def cancel_units(self, job_id: JobId, indices: Sequence[int]) -> tuple[int, ...]:
        """Cancel units that nobody runs; gives the indices of those that are cancelled."""
        return await self.jobs_running.cancel_units(job_id, indices)

    async def results(
        self, job_id: JobId, after: int, limit: int, order: Order
    ) -> tuple[list[Unit], int]:
        """Units that have ended, and the ``after`` of those that follow them."""
        units = await self.journal.results(job_id, after, limit, order)
        if not units:
            return units, after
        self.house.timings.delivered(job_id, [unit.index for unit in units])
        last = units[-1].index if order == "given" else units[-1].ended
        assert last is not None
        return units, last

    async def note_read(self, job_id: JobId, until: int, order: Order) -> None:
        """Note that the results up to ``until`` were given out."""
        await self.retention.note_read(job_id, until, order)

    async def small_tensors(self, ids: Sequence[BlobId]) -> dict[BlobId, bytes]:
        """Those of ``ids`` that the journal holds."""
        return await self.journal.tensors(ids) if ids else {}

    async def bring_home(self, blob_id: BlobId) -> None:
        """Hold an output that was left with a peer; raises as `chaining.bring_home`."""
        await chaining.bring_home(self.house, blob_id)

    async def jobs(self, limit: int) -> list[Job]:
        """The newest jobs first."""
        return await self.journal.jobs(limit)

    async def job(self, job_id: JobId) -> Job:
        """A job as it stands; raises JobError ``no_such_job``, as all below."""
        return await self.journal.job(job_id)

    async def units(self, job_id: JobId, offset: int, limit: int) -> list[Unit]:
        """Units of a job in order of their index."""
        units = await self.journal.units(job_id, offset, limit)
        if not units:
            await self.journal.job(job_id)  # raises where there is none
        self.house.timings.delivered(job_id, [unit.index for unit in units])
        return [self.jobs_running.as_leased(unit) for unit in units]

    def watch(
        self, job_id: JobId
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[Job]]:
        """The job at once and at each change; the channel ends once it is final."""
        return self.jobs_running.watch(job_id)

    async def cancel(self, job_id: JobId) -> Job:
        """End a job early; a final one stays as it is."""
        return await self.jobs_running.cancel(job_id)

    async def forget(self, job_id: JobId, *, unfetched_too: bool) -> Job:
        """Forget a job that has ended; raises JobError as `Retention.forget`."""
        return await self.retention.forget(job_id, unfetched_too=unfetched_too)

    async def timing(self, job_id: JobId, unit: int) -> UnitTiming:
        """Where a unit's time went; raises JobError as `Timings.of`, or ``no_such_job``."""
        await self.journal.job(job_id)
        return self.house.timings.of(job_id, unit)

    async def why(self, job_id: JobId, unit: int | None = None) -> Explanation:
        """Why a job stands where it stands; of one unit, where that is asked for.

        Raises:
            JobError: ``no_such_job`` or ``no_such_unit``.
        """
        job = await self.journal.job(job_id)
        answers = await self.journal.answers(job_id)
        around = surroundings(
            self.membership,
            self.versions,
            self.jobs_running.leases(job_id),
            alone=self.joining.view().sentence,
            outlook=await self.jobs_running.outlook(job_id),
            pending=self.jobs_running.pending(job_id),
            disputes=await disputes_of(self.journal, job_id, time.time()),
            wanted=self.jobs_running.wanted(job_id),
        )
        work: tuple[WorkDone, ...] = ()
        if job.state.final or job.units_failed:
            work = await work_done(self.journal, job_id)
        if unit is None:
            return told(job, answers, around, work)
        units = await self.units(job_id, unit, 1)
        if not units:
            raise JobError(
                f"job {job_id} has no unit {unit}",
                code="no_such_unit",
                hint=f"it has {job.units_total}, and the first is 0",
            )
        return about_unit(told(job, answers, around, work), units[0], around.own)

    async def assurance(
        self, job_id: JobId, offset: int, limit: int
    ) -> tuple[JobAssurance, list[Assurance]]:
        """How far a job's results can be relied on: all of it counted, and some units."""
        job, own = await self.journal.job(job_id), self.identity.peer_id
        counted = await units_assured(self.journal, job, own)
        units = await self.units(job_id, offset, limit)
        return counted, [
            assure(job, unit, await self.journal.checks(job_id, unit.index), own)
            for unit in units
        ]

    async def receipts(self, job_id: JobId) -> list[BlobId]:
        """Ids of the job's receipts."""
        found = await self.journal.receipt_ids(job_id)
        if not found:
            await self.journal.job(job_id)  # raises where there is none
        return found

    async def receipt(self, receipt_id: BlobId) -> bytes:
        """A receipt's envelope."""
        return await self.journal.receipt(receipt_id)

    async def pause(self, device: str | None, for_s: float | None) -> OwnerView:
        """Take no more work on a device, or none of peers on all of them.

        Raises:
            ConfigError: ``no_such_device``.
            StoreError: It could not be written down.
        """
        await self.owner.pause(check_device(device, await self._found()), for_s)
        return owner_of(self)

    async def resume(self, device: str | None) -> OwnerView:
        """End the pause of a device, or every pause; raises as `pause`."""
        await self.owner.resume(check_device(device, await self._found()))
        return owner_of(self)

    async def _found(self) -> tuple[Device, ...]:
        return self.capacity.devices or (await self.devices()).devices

    async def connect(self, address: str) -> PeerId:
        """Link to a peer by address or name; raises ConfigError or NetworkError."""
        return await self.joining.connect(address)

    # -- life --

    async def reload(self) -> ReloadView:
        """Read the settings again; raises ConfigError where they stay as they are."""
        return reload.view(await self.lifecycle.reload())

    def log_level(self) -> LogLevelView:
        """How much the log tells."""
        return self.lifecycle.logs.view()

    def set_log_level(self, level: str, module: str | None) -> LogLevelView:
        """Have the log tell more or less; raises ConfigError."""
        try:
            self.lifecycle.logs.set_level(read_level(level), module)
        except ValueError as error:
            raise ConfigError(
                f"the log level {level[:40]!r} {error}", code="bad_level"
            ) from None
        return self.lifecycle.logs.view()

    def end(self, *, now: bool) -> None:
        """Drain and end; or end at once."""
        log.info("told to end", now=now)
        self.lifecycle.end(now=now)

    @property
    def units_running(self) -> int:
        """Units that this node runs now."""
        return self.provider.units_waiting

    def stop_taking(self) -> None:
        """Take nothing new from now on, and let the network know."""
        self.capacity.draining = True
        self.jobs_running.drain()
        self.membership.announce()

    async def idle(self) -> None:
        """Wait until no unit runs here, and none of this node's own is out."""
        await self.provider.idle()
        await self.jobs_running.idle()

    def hand_back(self) -> None:
        """Give units that still run back to their requesters."""
        self.provider.hand_back(Reason.DRAINING, "this node is shutting down")

    # -- figures --

    def metrics(self) -> bytes:
        """Metrics in Prometheus' text format."""
        return self.figures.exposition()

    def look(self) -> str:
        """Note at a pulse what is to be seen only over time; gives a sentence on it all."""
        for link in self.membership.links.values():
            if link.rtt_s is not None:
                self.figures.rtt_s.observe(link.rtt_s)
        draining = "draining, " if self.capacity.draining else ""
        return (
            f"{draining}{len(self.membership.links)} peers linked, "
            f"{self.units_running} units running, {self.jobs_running.running} jobs"
        )
