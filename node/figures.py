"""How a daemon is as a whole: its status for a person, and its readings for a scrape.

Both are read anew of its modules at each call; nothing is kept here. What the readings are
called outside is `node.metrics`'.
"""

from __future__ import annotations

import os
import platform
import threading
from typing import TYPE_CHECKING, get_args

import trio

import shoal
from shoal.node.disputing import VERDICTS
from shoal.node.docket import End
from shoal.node.metrics import Readings
from shoal.node.offer import CPU
from shoal.node.owner_view import owner_view
from shoal.node.records import CheckVerdict, JobState, UnitState
from shoal.node.status_views import OwnerView, Status
from shoal.node.swarm_key import PUBLIC
from shoal.protocol.limits import PROTOCOL_MAJOR, PROTOCOL_MINOR
from shoal.protocol.negotiation_messages import Reason

if TYPE_CHECKING:
    from shoal.compute.device_worker import Worker
    from shoal.node.front import Daemon


def status_of(daemon: Daemon) -> Status:
    """How the daemon is."""
    config, settings = daemon.config, daemon.lifecycle.settings
    return Status(
        peer=daemon.identity.peer_id,
        version=shoal.__version__,
        protocol_version=PROTOCOL_MAJOR,
        protocol_minor=PROTOCOL_MINOR,
        pid=os.getpid(),
        home=str(config.home),
        socket=str(config.socket),
        network=daemon.swarm_key.name if daemon.swarm_key else PUBLIC,
        network_fingerprint=daemon.swarm_key.fingerprint if daemon.swarm_key else "",
        addresses=daemon.network.addresses(),
        bulk=daemon.house.channels.port or 0 if daemon.house.channels else 0,
        bulk_announced=":".join(map(str, config.bulk_announce or ())),
        uptime_s=trio.current_time() - daemon.started_at_s,
        peers_known=len(daemon.membership.table) - 1,
        peers_linked=len(daemon.membership.links),
        peers_banned=len(daemon.convictions.bans()),
        jobs_running=daemon.jobs_running.running,
        units_served=daemon.provider.units_served,
        blob_bytes=daemon.blobs.used_bytes,
        blob_quota_bytes=daemon.blobs.quota_bytes,
        sandbox=_sandboxes(daemon),
        sandboxed=daemon.capacity.sandboxed.get(CPU, False),
        owner=owner_of(daemon),
        reachability=daemon.reachability.view(),
        joining=daemon.joining.view(),
        units_running=daemon.units_running,
        units_out=daemon.jobs_running.units_out,
        phase=daemon.lifecycle.phase.value,
        drain_ends_in_s=daemon.lifecycle.drain_ends_in_s,
        settings_error=str(settings.complaint or ""),
        needs_restart=settings.needs_restart,
    )


def owner_of(daemon: Daemon) -> OwnerView:
    """How its owner's settings and pauses stand at this moment."""
    used = daemon.capacity.units_run_on()
    others = (device.id for device in daemon.capacity.devices if device.id not in used)
    paused = (device for device in others if not daemon.owner.stance(device).own)
    return owner_view(
        daemon.config,
        daemon.owner,
        (*used, *paused),
        daemon.house.terms(),
        daemon.capacity.units_at_once,
    )


def readings_of(daemon: Daemon) -> Readings:
    """Its figures at this moment, for a scrape."""
    settled = daemon.house.settling.ledger.since_start.values()
    if daemon.house.channels is not None:
        daemon.house.channels.count()
    return Readings(
        version=shoal.__version__,
        protocol=f"{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}",
        python=platform.python_version(),
        uptime_s=trio.current_time() - daemon.started_at_s,
        draining=daemon.capacity.draining,
        peers_known=len(daemon.membership.table) - 1,
        peers_linked=len(daemon.membership.links),
        peers_banned=len(daemon.convictions.bans()),
        accusations={end: daemon.convictions.ended[end] for end in End},
        ledger_units={row.direction: row.units for row in settled},
        ledger_credits={row.direction: row.credits for row in settled},
        ledger_acknowledged={row.direction: row.acknowledged_units for row in settled},
        unsettled=daemon.house.settling.unsettled_messages,
        disputes_open=daemon.disputes.open_now,
        disputes_ended={
            outcome: daemon.disputes.ended[outcome] for outcome in (*VERDICTS, "none")
        },
        checks={v: daemon.jobs_running.check_verdicts[v] for v in get_args(CheckVerdict)},
        jobs_running=daemon.jobs_running.running,
        jobs_ended={s: daemon.jobs_running.jobs_ended[s] for s in JobState if s.final},
        units_waiting=daemon.jobs_running.units_waiting,
        units_out=daemon.jobs_running.units_out,
        units_ended={
            state: daemon.jobs_running.units_ended[state]
            for state in (UnitState.DONE, UnitState.FAILED)
        },
        units_running=daemon.units_running,
        units_served=daemon.provider.units_served,
        leases=daemon.provider.leases,
        refusals={reason: daemon.provider.refused[reason] for reason in Reason},
        blob_bytes=daemon.blobs.used_bytes,
        blob_quota_bytes=daemon.blobs.quota_bytes,
        worker_processes=sum(len(worker.pids) for worker in _workers(daemon)),
        workers_started=sum(worker.processes_started for worker in _workers(daemon)),
        tasks=trio.lowlevel.current_statistics().tasks_living,
        network=daemon.network.statistics(),
        threads=threading.active_count(),
        log_lines_lost=daemon.lifecycle.logs.lines_lost,
        settings_ok=daemon.lifecycle.settings.complaint is None,
    )


def _sandboxes(daemon: Daemon) -> str:
    """How the worker of each device that takes units is locked in."""
    cards = daemon.capacity.units_run_on()[1:]
    texts = (f"{card}: {daemon.capacity.canaries[card].sandbox}" for card in cards)
    return "; ".join([daemon.worker.sandbox, *texts])


def _workers(daemon: Daemon) -> list[Worker]:
    return [daemon.worker, *daemon.house.card_workers.values()]
