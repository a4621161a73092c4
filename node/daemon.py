"""The daemon: opens every module and wires them.

`serve` is the wiring; `node.front` answers the local API for what it wires and
`node.dispatch` the peers, `node.lifecycle` says how long it lasts. What is opened is closed
in the opposite order: jobs and units end first, connections after them, the state and the
blobs last.
"""

from __future__ import annotations

import faulthandler
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

import shoal
from shoal.compute import devices as hardware
from shoal.compute.devices.abilities import COMPILING, failed
from shoal.compute.errors import ComputeError
from shoal.compute.supervisor import CACHE_BYTES, open_worker
from shoal.node import chaining
from shoal.node.addresses import parse_address
from shoal.node.api import claim_port, claim_socket, make_app, make_metrics_app
from shoal.node.api.server import serve_on
from shoal.node.blob_transfer import BLOB_PROTOCOL, BlobServer, Rights
from shoal.node.blobs import open_store
from shoal.node.bulk.channels import open_channels
from shoal.node.bulk.listener import listen as listen_for_bulk
from shoal.node.capability import Capability, open_capability
from shoal.node.cards import Cards, open_cards
from shoal.node.challenger import Challenger, open_challenger
from shoal.node.conduct import Conduct, open_conduct
from shoal.node.control import open_control
from shoal.node.convictions import Convictions, open_convictions
from shoal.node.defending import Defence, open_defence
from shoal.node.dispatch import Dispatch
from shoal.node.disputing import Disputes, open_disputes
from shoal.node.front import Daemon
from shoal.node.home import open_home
from shoal.node.home_lock import hold_home
from shoal.node.house import House
from shoal.node.introductions import Introductions
from shoal.node.jobs import open_jobs
from shoal.node.joining import Joining
from shoal.node.kept_outputs import KeptOutputs
from shoal.node.known_peers import (
    claimed_rate,
    facts_of,
    find_seeds,
    is_proven,
    providers,
)
from shoal.node.lifecycle import Lifecycle
from shoal.node.logs import no_logs, set_up_logs
from shoal.node.measuring_plan import hold_of
from shoal.node.membership import Membership, open_membership
from shoal.node.network import open_network
from shoal.node.offer import AGENT, CPU, Capacity, make_advert, make_terms
from shoal.node.owner_load import OwnersUse
from shoal.node.owner_watch import OwnerWatch, open_owner_watch
from shoal.node.private_network import PrivateNetwork
from shoal.node.program_shares import ProgramShares
from shoal.node.proof_asking import open_proof_asking
from shoal.node.proofs import ProofBook
from shoal.node.prover import Prover
from shoal.node.provider import open_provider
from shoal.node.reachability import Reachability, open_reachability
from shoal.node.reload import Change, LiveConfig
from shoal.node.result_standing import Deed
from shoal.node.retention import Retention
from shoal.node.service_manager import ServiceManager
from shoal.node.settling import open_settling
from shoal.node.shares import usable_cpus
from shoal.node.standings import Standings
from shoal.node.state import open_state
from shoal.node.swarm_key import load_key
from shoal.node.trials import charge_of, judged_by
from shoal.protocol.advert_fitting import fitted
from shoal.protocol.channel_messages import ChannelWanted
from shoal.protocol.checking_messages import (
    Accusation,
    AccusationsWanted,
    Acknowledge,
    LeafWanted,
    NodesWanted,
    Reveal,
    TraceWanted,
)
from shoal.protocol.negotiation_messages import Reason

if TYPE_CHECKING:
    from shoal.compute.devices import Lack
    from shoal.compute.executors.base import Probe
    from shoal.node.bidding import Terms
    from shoal.node.config import Config

log = structlog.get_logger(__name__)


def run(config: Config, reread: Callable[[], Config]) -> int:
    """Run the daemon until it is told to end; gives the process's exit code.

    Args:
        config: The settings.
        reread: Reads them again from where they came from, when that is asked for.
    """
    faulthandler.enable()  # where it hung, when a watchdog ends it with SIGABRT
    logs = set_up_logs(config.log_level, file=config.log_file)
    settings = LiveConfig(config, reread)
    lifecycle = Lifecycle(settings, ServiceManager(), logs)
    try:
        return trio.run(lifecycle.live, partial(serve, config, lifecycle))
    finally:
        logs.close()


async def serve(
    config: Config,
    lifecycle: Lifecycle | None = None,
    *,
    task_status: trio.TaskStatus[Daemon] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the daemon until it is told to end or cancelled.

    Args:
        config: The settings of the start.
        lifecycle: Of this process. Without one the daemon is a guest in it: it hears no
            signals, and leaves the process's logs to those who own them.
        task_status: Told once the daemon answers.

    Raises:
        ConfigError: The home, the network's secret, the socket or a setting cannot be used.
        IdentityError: The key cannot be used.
        NetworkError: The port is taken.
        StoreError: The state or the blobs cannot be opened.
    """
    lifecycle = lifecycle or Lifecycle(
        LiveConfig(config, lambda: config), ServiceManager({}), no_logs(config.log_level)
    )
    settings = lifecycle.settings
    for warning in config.warnings:
        log.warning("a setting does not hold as it stands", warning=warning)
    identity = open_home(config)
    swarm_key = load_key(config.swarm_key_path)
    capacity = Capacity()
    async with AsyncExitStack() as stack:
        stack.enter_context(hold_home(config))
        listening = stack.enter_context(
            claim_socket(config.socket, group=config.socket_group or None)
        )
        watched = stack.enter_context(claim_port(config.metrics)) if config.metrics else None
        journal = await stack.enter_async_context(open_state(config.home / "state.sqlite"))
        blobs = await stack.enter_async_context(
            open_store(config.home / "blobs", config.blob_quota_bytes)
        )
        retention = Retention(
            journal,
            blobs,
            quota_bytes=lambda: settings().results_quota_bytes,
            keep_s=lambda: settings().results_keep_s,
        )
        await retention.pin()  # before anything else can need room
        places = await find_seeds(config, swarm_key, journal)
        seeds = places.seeds()
        conduct = Conduct(identity.peer_id, config.allow, seeds.bootstrap)
        standings = Standings(
            identity.peer_id,
            conduct,
            await journal.standing_rows(),
            friends=lambda: settings().allow,
        )
        # Before what has a nursery, which would wrap the error of a port that is taken.
        bulk_listeners = await _bulk_listeners(config)
        for listener in bulk_listeners:
            stack.push_async_callback(listener.aclose)
        network = await stack.enter_async_context(
            open_network(
                identity,
                config.listen,
                PrivateNetwork(swarm_key) if swarm_key else None,
                refused=conduct.refused,
                broke=conduct.breach,
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
        cards = await stack.enter_async_context(open_cards(config, capacity))
        control = await stack.enter_async_context(open_control(network, AGENT, conduct))
        membership = Membership(
            identity,
            network,
            control,
            journal,
            lambda sequence, lifetime_s: fitted(
                measured.claimed(
                    make_advert(
                        settings(),
                        network.peer_id,
                        reached.advertised(),
                        capacity,
                        owner,
                        sequence,
                        lifetime_s,
                    )
                )
            ),
            seeds,
            conduct.broke,
        )
        joining = Joining(
            places,
            network,
            membership,
            journal,
            fingerprint=swarm_key.fingerprint if swarm_key else "",
            lan=config.lan,
            joins_by=conduct.join_by,
        )
        reached = Reachability(network, control, membership)
        introductions = Introductions(
            network,
            control,
            membership,
            verdict=lambda: reached.judgement().verdict,
            welcome=lambda peer: peer not in settings().deny and conduct.refused(peer) is None,
        )
        owner = OwnerWatch(
            journal,
            await journal.pauses(),
            schedule=config.schedule,
            step_back=_step_back(config),
            use=OwnersUse(usable_cpus()),
            devices=capacity.units_run_on,
            changed=membership.announce,
        )
        book = ProofBook(identity.peer_id, frozenset(config.allow))
        measured = Capability(
            journal,
            directory=config.home / "blobs",
            threads=config.cores,
            devices=lambda: capacity.devices,
            classes=capacity.executors,
            compiled=capacity.compiled,
            worker=lambda device: worker if device == CPU else cards.workers.get(device),
            hold=lambda device: hold_of(
                owner.stance(device),
                provide=settings().provide,
                units=bool(provider.load_on(device).units),
            ),
            changed=membership.announce,
            book=book,
        )
        rights, kept, shares = Rights(), KeptOutputs(), ProgramShares()
        convictions = Convictions(
            judge=partial(judged_by, worker, config.memory_bytes),
            judge_own=partial(judged_by, worker, config.memory_bytes, own=True),
            read=charge_of,
            links=lambda: membership.links,
            matters=lambda peer: membership.table.get(peer) is not None,
            judging_s=lambda: worker.judging_s,
        )
        blob_server = BlobServer(
            identity.peer_id,
            blobs,
            rights,
            kept,
            shares,
            newer=control.versions.is_newer,
            broke=conduct.broke,
            noted=conduct.noted,
        )
        channels = await stack.enter_async_context(
            open_channels(
                network,
                control,
                blob_server,
                bulk_listeners,
                announce=config.bulk_announce,
                broke=conduct.broke,
                noted=conduct.noted,
                called=conduct.called,
            )
        )

        def terms(device: str) -> Terms:
            return make_terms(
                settings(),
                identity,
                capacity,
                provider,
                owner,
                convictions.is_banned,
                standings,
                house.settling,
                measured.rates(device),
                device,
            )

        house = House(
            identity=identity,
            network=network,
            control=control,
            store=blobs,
            rights=rights,
            kept=kept,
            shares=shares,
            channels=channels,
            journal=journal,
            worker=worker,
            reach=partial(conduct.reach, introductions.reach),
            broke=conduct.broke,
            terms=partial(terms, CPU),
            cards=lambda: [terms(d.id) for d in capacity.devices if d.kind != "cpu"],
            card_workers=cards.workers,
            noted=conduct.noted,
            proven=partial(is_proven, membership, book),
            claimed_rate=partial(claimed_rate, membership),
            convictions=convictions,
            standings=standings,
            # Both are made below, of this house.
            accuse=lambda *evidence: disputes.accuse(*evidence),  # noqa: PLW0108
            signed=lambda *receipt: defence.signed(*receipt),  # noqa: PLW0108
        )
        defence = Defence(house)
        disputes = Disputes(
            house,
            config.memory_bytes,
            withheld=lambda peer, what: standings.note(peer, Deed.WITHHELD, detail=what),
        )
        convictions.house = house
        convictions.convicted = standings.convicted
        convictions.accused_falsely = lambda peer, why: standings.note(
            peer, Deed.FALSE_ACCUSATION, detail=why
        )
        standings.banned = convictions.is_banned
        await convictions.load()
        retention.leaving = partial(chaining.let_go, house)
        prover = Prover(
            house,
            book,
            rates=measured.rates,
            belied=measured.belie,
            proven=membership.announce,
            gives=measured.to_give,
        )
        challenger = Challenger(
            house,
            membership,
            book,
            idle=lambda: not provider.units_waiting and not jobs.running,
        )
        await stack.enter_async_context(open_settling(house))
        await stack.enter_async_context(open_defence(defence))
        provider = await stack.enter_async_context(open_provider(house))
        jobs = await stack.enter_async_context(
            open_jobs(
                house,
                partial(providers, membership, convictions.is_banned),
                partial(facts_of, membership, standings, blob_server.sent_s),
            )
        )
        daemon = Daemon(
            lifecycle=lifecycle,
            identity=identity,
            house=house,
            swarm_key=swarm_key,
            network=network,
            blobs=blobs,
            journal=journal,
            worker=worker,
            membership=membership,
            capacity=capacity,
            measured=measured,
            challenger=challenger,
            provider=provider,
            jobs_running=jobs,
            owner=owner,
            versions=control.versions,
            conduct=conduct,
            standings=standings,
            convictions=convictions,
            disputes=disputes,
            reachability=reached,
            joining=joining,
            retention=retention,
        )
        network.handle(BLOB_PROTOCOL, blob_server.serve)
        await stack.enter_async_context(open_conduct(conduct, network, provider.drop))
        convictions.on_ban += [control.hang_up, channels.hang_up, provider.drop, jobs.banned]
        convictions.on_lift += [standings.lift, jobs.forgive]
        dispatch = Dispatch(membership, provider, prover, reached, introductions)
        dispatch.served[ChannelWanted] = channels.answer
        dispatch.served[Reveal] = provider.revealed
        dispatch.served[Acknowledge] = house.settling.acknowledged
        dispatch.served |= dict.fromkeys((Accusation, AccusationsWanted), convictions.answer)
        dispatch.served |= dict.fromkeys((TraceWanted, NodesWanted, LeafWanted), defence.answer)
        control.answer_with(dispatch.answer)
        await stack.enter_async_context(open_capability(measured))
        await stack.enter_async_context(open_membership(membership))
        await stack.enter_async_context(open_reachability(reached))
        await stack.enter_async_context(open_owner_watch(owner))
        await stack.enter_async_context(open_challenger(challenger))
        await stack.enter_async_context(open_proof_asking(control, membership, book))
        await stack.enter_async_context(open_convictions(convictions))
        await stack.enter_async_context(open_disputes(disputes))
        await jobs.resume()  # before a client can submit one
        settings.apply = partial(_apply, daemon, book)
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_on, make_app(daemon), listening)
            if watched is not None:
                await nursery.start(serve_on, make_metrics_app(daemon), watched)
            nursery.start_soon(_probe_all, daemon, cards)
            nursery.start_soon(lifecycle.pulse, daemon.look)
            nursery.start_soon(daemon.figures.follow_loop)
            nursery.start_soon(joining.run)
            nursery.start_soon(retention.run)
            log.info(
                "ready",
                peer=identity.peer_id,
                network=daemon.status().network,
                addresses=network.addresses(),
            )
            task_status.started(daemon)
            await lifecycle.stay(daemon)
            nursery.cancel_scope.cancel()


async def _bulk_listeners(config: Config) -> list[trio.SocketListener]:
    if config.bulk == "off" or not config.listen:
        return []
    return await listen_for_bulk(config.bulk, [parse_address(text) for text in config.listen])


OF_TERMS = frozenset({"provide", "allow", "deny", "serve", "min_price", "time_limit"})
"""Settings that decide whose units are taken."""


def _apply(daemon: Daemon, book: ProofBook, change: Change) -> None:
    """Let those follow who keep a live setting; the others ask for it when they need it."""
    config = change.config
    book.allowed = frozenset(config.allow)
    daemon.conduct.befriend(config.allow)
    daemon.blobs.set_quota(config.blob_quota_bytes)
    daemon.owner.follow(config.schedule, _step_back(config))
    daemon.lifecycle.logs.configure(config.log_level)
    if "bootstrap" in change.changed:
        daemon.joining.follow(config.bootstrap)
    if not OF_TERMS.isdisjoint(change.changed):
        daemon.membership.announce()  # who was refused may ask again at once


def _step_back(config: Config) -> float | None:
    return config.step_back if config.provide else None


async def _probe_all(daemon: Daemon, cards: Cards) -> None:
    """Find the devices, see what really runs on them, and tell the network."""
    capacity = daemon.capacity
    capacity.devices = (
        await trio.to_thread.run_sync(hardware.detect, abandon_on_cancel=True)
    ).devices
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_probe_cards, daemon, cards)
        await _probe_cpu(daemon)
        daemon.measured.settled.set()  # of the CPU: a card's driver may keep others waiting
    capacity.starting = False


async def _probe_cards(daemon: Daemon, cards: Cards) -> None:
    def lost(device: str, error: ComputeError) -> None:
        daemon.capacity.lose(device, error)
        daemon.provider.hand_back(Reason.BUSY, error.message[:256], device)
        daemon.membership.announce()

    await cards.look(lost)
    if cards.workers:
        daemon.membership.announce()


async def _probe_cpu(daemon: Daemon) -> None:
    capacity, worker = daemon.capacity, daemon.worker

    def offer(probes: Sequence[Probe], lacks: Sequence[Lack]) -> None:
        capacity.offer(probes, lacks, CPU, worker.sandbox, sandboxed=worker.sandboxed)

    try:
        probes = await worker.probe()
    except shoal.ShoalError as error:
        log.error("no executor works here: no work is taken", error=str(error))
        offer((), [failed(error.message, error.hint)])
    else:
        offer(probes, [COMPILING, *worker.missing])
        if not worker.sandboxed:
            log.warning("the sandbox is not complete", sandbox=worker.sandbox)
    daemon.membership.announce()
    try:
        probes = await worker.enable_exact()
    except shoal.ShoalError as error:
        log.warning("the class exact is not offered", error=str(error))
        known = capacity.canaries[CPU]
        lacks = [lack for lack in known.lacks if lack is not COMPILING]
        offer(known.probes, [*lacks, failed(error.message, error.hint)])
    else:
        for lack in worker.missing:
            log.warning("an executor does not work", reason=lack.reason)
        offer(probes, worker.missing)
        daemon.membership.announce()
