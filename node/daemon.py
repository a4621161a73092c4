"""The daemon: opens every module, wires them, and answers the local API.

`serve` is the wiring; `Daemon` is what stands behind the API (`node.api.facade`)
and where a peer's request finds the module that answers it. Ends on SIGTERM or
SIGINT: nothing new is taken, running units get a few seconds, links are closed.
A second signal ends at once.
"""

from __future__ import annotations

import os
import signal
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

import shoal
from shoal.compute import devices as hardware
from shoal.compute.devices.abilities import COMPILING, failed, with_abilities
from shoal.compute.supervisor import CACHE_BYTES, open_worker
from shoal.crypto.peer_id import PeerId
from shoal.node.api import claim_socket, make_app
from shoal.node.api.server import serve_on
from shoal.node.bidding import Terms
from shoal.node.blob_transfer import BLOB_PROTOCOL, BlobServer, Rights
from shoal.node.blobs import open_store
from shoal.node.capability import Capability, open_capability
from shoal.node.challenger import Challenger, open_challenger
from shoal.node.control import open_control
from shoal.node.explain import explain
from shoal.node.home import hold_home, open_home
from shoal.node.house import House, program_of
from shoal.node.jobs import Jobs, open_jobs
from shoal.node.joining import Joining
from shoal.node.known_peers import (
    find_seeds,
    is_proven,
    peer_views,
    providers,
    surroundings,
)
from shoal.node.logs import set_up_logs
from shoal.node.membership import Membership, open_membership
from shoal.node.network import open_network
from shoal.node.offer import AGENT, Capacity, make_advert, make_terms
from shoal.node.owner_load import OwnersUse
from shoal.node.owner_view import check_device, owner_view
from shoal.node.owner_watch import OwnerWatch, open_owner_watch
from shoal.node.private_network import PrivateNetwork
from shoal.node.proofs import ProofBook
from shoal.node.prover import Prover
from shoal.node.provider import Provider, open_provider
from shoal.node.records import PeerView, Status
from shoal.node.shares import usable_cpus
from shoal.node.state import open_state
from shoal.node.swarm_key import PUBLIC, load_key
from shoal.protocol.limits import PROTOCOL_MAJOR
from shoal.protocol.messages import (
    Adverts,
    AwardOffer,
    Call,
    Cancel,
    Challenge,
    Digest,
    Draw,
    Problem,
    ProofOffer,
    Release,
    UnitRequest,
)

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from shoal.compute.devices import Device, Inventory
    from shoal.compute.manifest import Manifest
    from shoal.compute.supervisor import Worker
    from shoal.crypto.content import BlobId
    from shoal.crypto.identity import Identity
    from shoal.node.blobs import BlobStore
    from shoal.node.capability_views import CapabilityView, ChallengeView
    from shoal.node.config import Config
    from shoal.node.network import Network
    from shoal.node.records import Answer, Job, JobId, JobSpec, OwnerView, Unit
    from shoal.node.state import State
    from shoal.node.swarm_key import SwarmKey
    from shoal.protocol.messages import RequestBody, ResponseBody

DRAIN_LIMIT_S = 10.0
"""What running units get after the first signal; requesters re-lease the rest."""

log = structlog.get_logger(__name__)


def run(config: Config) -> int:
    """Run the daemon until a signal ends it; gives the process's exit code."""
    set_up_logs(config.log_level)
    trio.run(serve, config)
    return 0


@dataclass(slots=True)
class Daemon:
    """A running daemon as the local API sees it."""

    config: Config
    identity: Identity
    swarm_key: SwarmKey | None
    network: Network
    blobs: BlobStore
    journal: State
    worker: Worker
    membership: Membership
    capacity: Capacity
    measured: Capability
    prover: Prover
    challenger: Challenger
    provider: Provider
    jobs_running: Jobs
    owner: OwnerWatch
    joining: Joining
    started_at_s: float = field(default_factory=trio.current_time)

    def status(self) -> Status:
        """How the daemon is."""
        return Status(
            peer=self.identity.peer_id,
            version=shoal.__version__,
            protocol_version=PROTOCOL_MAJOR,
            pid=os.getpid(),
            home=str(self.config.home),
            socket=str(self.config.socket),
            network=self.swarm_key.name if self.swarm_key else PUBLIC,
            network_fingerprint=self.swarm_key.fingerprint if self.swarm_key else "",
            addresses=self.network.addresses(),
            uptime_s=trio.current_time() - self.started_at_s,
            peers_known=len(self.membership.table) - 1,
            peers_linked=len(self.membership.links),
            jobs_running=self.jobs_running.running,
            units_served=self.provider.units_served,
            blob_bytes=self.blobs.used_bytes,
            blob_quota_bytes=self.blobs.quota_bytes,
            sandbox=self.worker.sandbox,
            sandboxed=self.capacity.sandboxed,
            owner=self._owner(),
            joining=self.joining.view(),
        )

    def peers(self) -> list[PeerView]:
        """The other nodes whose adverts are valid now."""
        return peer_views(self.membership, self.measured.book, self._terms())

    async def devices(self) -> Inventory:
        """This node's devices, with the memory that is free now, and what is missing."""
        inventory = await trio.to_thread.run_sync(hardware.detect, abandon_on_cancel=True)
        return with_abilities(inventory, self.capacity.canaries)

    def capability(self) -> CapabilityView:
        """What this node claims of itself, and who has seen it shown."""
        own = self.membership.table.get(self.identity.peer_id)
        return self.measured.view(own.advert if own else None)

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

    async def register_program(self, program: BlobId) -> Manifest:
        """Take up a program whose blobs were uploaded; raises as `program_of`."""
        return await program_of(self.blobs, program)

    async def program(self, program: BlobId) -> Manifest:
        """The manifest of a program held; raises as `register_program`."""
        return await program_of(self.blobs, program)

    async def submit(self, spec: JobSpec) -> Job:
        """Take a job; raises ProgramError where inputs do not fit the program."""
        return await self.jobs_running.submit(spec)

    async def jobs(self, limit: int) -> list[Job]:
        """The newest jobs first."""
        return await self.journal.jobs(limit)

    async def job(self, job_id: JobId) -> Job:
        """A job as it stands; raises JobError ``no_such_job``, as all below."""
        return await self.journal.job(job_id)

    async def units(self, job_id: JobId, offset: int, limit: int) -> list[Unit]:
        """Units of a job in order of their index."""
        units = await self.journal.units(job_id, offset, limit)
        return [self.jobs_running.as_leased(unit) for unit in units]

    def watch(
        self, job_id: JobId
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[Job]]:
        """The job at once and at each change; the channel ends once it is final."""
        return self.jobs_running.watch(job_id)

    async def cancel(self, job_id: JobId) -> Job:
        """End a job early; a final one stays as it is."""
        return await self.jobs_running.cancel(job_id)

    async def why(self, job_id: JobId) -> tuple[list[Answer], str]:
        """What peers answered to its calls, and a sentence for each cause."""
        job = await self.journal.job(job_id)
        answers = await self.journal.answers(job_id)
        around = surroundings(self.membership, self.jobs_running.leases(job_id))
        return answers, explain(job, answers, around)

    async def receipts(self, job_id: JobId) -> list[BlobId]:
        """Ids of the job's receipts."""
        return await self.journal.receipt_ids(job_id)

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
        return self._owner()

    async def resume(self, device: str | None) -> OwnerView:
        """End the pause of a device, or every pause; raises as `pause`."""
        await self.owner.resume(check_device(device, await self._found()))
        return self._owner()

    async def _found(self) -> tuple[Device, ...]:
        return self.capacity.devices or (await self.devices()).devices

    async def connect(self, address: str) -> PeerId:
        """Link to a peer by address or name; raises ConfigError or NetworkError."""
        return await self.joining.connect(address)

    def _owner(self) -> OwnerView:
        used = self.capacity.units_run_on()
        others = (device.id for device in self.capacity.devices if device.id not in used)
        paused = (device for device in others if not self.owner.stance(device).own)
        return owner_view(self.config, self.owner, (*used, *paused), self._terms())

    def _terms(self) -> Terms:
        return make_terms(self.config, self.identity, self.capacity, self.provider, self.owner)

    async def answer(self, peer: PeerId, body: RequestBody) -> ResponseBody:
        """Let the module that knows about it answer a peer's request."""
        match body:
            case Digest() | Adverts():
                return await self.membership.answer(peer, body)
            case Call() | AwardOffer() | UnitRequest() | Cancel() | Release():
                return await self.provider.answer(peer, body)
            case Challenge() | Draw() | ProofOffer():
                return await self.prover.answer(peer, body)
        return Problem(code="out_of_turn", message="a stream is greeted once")


async def serve(
    config: Config, *, task_status: trio.TaskStatus[Daemon] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run the daemon until it is signalled or cancelled.

    Raises:
        ConfigError: The home, the network's secret, the socket or a setting cannot be used.
        IdentityError: The key cannot be used.
        NetworkError: The port is taken.
        StoreError: The state or the blobs cannot be opened.
    """
    identity = open_home(config)
    swarm_key = load_key(config.swarm_key_path)
    capacity = Capacity()
    async with AsyncExitStack() as stack:
        stack.enter_context(hold_home(config))
        listening = stack.enter_context(claim_socket(config.socket))
        journal = await stack.enter_async_context(open_state(config.home / "state.sqlite"))
        blobs = await stack.enter_async_context(
            open_store(config.home / "blobs", config.blob_quota_bytes)
        )
        network = await stack.enter_async_context(
            open_network(
                identity, config.listen, PrivateNetwork(swarm_key) if swarm_key else None
            )
        )
        worker = await stack.enter_async_context(
            open_worker(
                threads=config.cores,
                cache_bytes=min(CACHE_BYTES, config.memory_bytes // 4),
                memory_bytes=config.memory_bytes,
                niceness=config.niceness,
            )
        )
        control = await stack.enter_async_context(open_control(network, AGENT))
        places = await find_seeds(config, swarm_key, journal)
        membership = Membership(
            identity,
            network,
            control,
            journal,
            lambda sequence, lifetime_s: measured.claimed(
                make_advert(config, network, capacity, owner, sequence, lifetime_s)
            ),
            places.seeds(),
        )
        joining = Joining(
            places,
            network,
            membership,
            journal,
            fingerprint=swarm_key.fingerprint if swarm_key else "",
            lan=config.lan,
        )
        owner = OwnerWatch(
            journal,
            await journal.pauses(),
            schedule=config.schedule,
            step_back=config.step_back if config.provide else None,
            use=OwnersUse(usable_cpus()),
            devices=capacity.units_run_on,
            changed=membership.announce,
        )
        book = ProofBook(identity.peer_id, frozenset(config.allow))
        measured = Capability(
            journal,
            worker,
            directory=config.home / "blobs",
            threads=config.cores,
            cpu=lambda: next((d for d in capacity.devices if d.kind == "cpu"), None),
            classes=lambda: frozenset(capacity.executors),
            idle=lambda: (
                config.provide
                and owner.stance("cpu").cause is None
                and not provider.units_waiting
            ),
            changed=membership.announce,
            book=book,
        )
        rights = Rights()
        house = House(
            identity=identity,
            network=network,
            control=control,
            store=blobs,
            rights=rights,
            journal=journal,
            worker=worker,
            reach=membership.reach,
            terms=lambda: make_terms(config, identity, capacity, provider, owner),
            proven=partial(is_proven, membership, book),
        )
        prover = Prover(
            house,
            book,
            rates=lambda: measured.rates,
            belied=measured.belie,
            proven=membership.announce,
        )
        challenger = Challenger(
            house,
            membership,
            book,
            idle=lambda: not provider.units_waiting and not jobs.running,
        )
        provider = await stack.enter_async_context(open_provider(house))
        jobs = await stack.enter_async_context(open_jobs(house, partial(providers, membership)))
        daemon = Daemon(
            config=config,
            identity=identity,
            swarm_key=swarm_key,
            network=network,
            blobs=blobs,
            journal=journal,
            worker=worker,
            membership=membership,
            capacity=capacity,
            measured=measured,
            prover=prover,
            challenger=challenger,
            provider=provider,
            jobs_running=jobs,
            owner=owner,
            joining=joining,
        )
        network.handle(BLOB_PROTOCOL, BlobServer(identity.peer_id, blobs, rights).serve)
        control.answer_with(daemon.answer)
        await stack.enter_async_context(open_capability(measured))
        await stack.enter_async_context(open_membership(membership))
        await stack.enter_async_context(open_owner_watch(owner))
        await stack.enter_async_context(open_challenger(challenger))
        await jobs.resume()  # before a client can submit one
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_on, make_app(daemon), listening)
            nursery.start_soon(_probe, daemon)
            nursery.start_soon(joining.run)
            log.info(
                "ready",
                peer=identity.peer_id,
                network=daemon.status().network,
                addresses=network.addresses(),
            )
            task_status.started(daemon)
            await _until_signalled(daemon)
            nursery.cancel_scope.cancel()


async def _probe(daemon: Daemon) -> None:
    """Find the devices, see what really runs on them, and tell the network."""
    capacity = daemon.capacity
    capacity.devices = (
        await trio.to_thread.run_sync(hardware.detect, abandon_on_cancel=True)
    ).devices
    try:
        probes = await daemon.worker.probe()
    except shoal.ShoalError as error:
        log.error("no executor works here: no work is taken", error=str(error))
        capacity.offer((), [failed(error.message, error.hint)])
    else:
        capacity.offer(probes, [COMPILING, *map(failed, daemon.worker.missing)])
        capacity.sandboxed = daemon.worker.sandboxed
        if not capacity.sandboxed:
            log.warning("the sandbox is not complete", sandbox=daemon.worker.sandbox)
    daemon.membership.announce()
    try:
        probes = await daemon.worker.enable_exact()
        capacity.sandboxed = daemon.worker.sandboxed
    except shoal.ShoalError as error:
        log.warning("the class exact is not offered", error=str(error))
        lacks = [lack for lack in capacity.canaries.lacks if lack is not COMPILING]
        capacity.offer(capacity.canaries.probes, [*lacks, failed(error.message, error.hint)])
    else:
        for reason in daemon.worker.missing:
            log.warning("an executor does not work", reason=reason)
        capacity.offer(probes, [*map(failed, daemon.worker.missing)])
        daemon.membership.announce()
    daemon.measured.settled.set()


async def _until_signalled(daemon: Daemon) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        name = signal.Signals(await anext(signals)).name
        log.info("ending", signal=name, units_running=daemon.provider.units_waiting)
        daemon.capacity.draining = True
        with trio.move_on_after(DRAIN_LIMIT_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_at_next, signals, nursery.cancel_scope)
                await daemon.provider.idle()
                nursery.cancel_scope.cancel()


async def _cancel_at_next(signals: object, scope: trio.CancelScope) -> None:
    await anext(signals)  # type: ignore[call-overload]
    scope.cancel()
