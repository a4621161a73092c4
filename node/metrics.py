"""What Prometheus fetches: the daemon's figures at the moment of a scrape, by name.

`METRICS` is the table; a row reads one figure of `Readings`, which the daemon makes
anew for each scrape, so that nothing is counted twice and nothing is kept in globals.
Only what must be watched between scrapes is kept here: two histograms.

Names go by Prometheus' rules: the prefix, base units, ``_total`` for what only grows.
The process's own figures have the names that every client library gives them. No
label holds a peer, a job, a program or anything else that others may choose: the
number of series is bounded by this file, whatever the network does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, TypeAlias

import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.process_collector import ProcessCollector

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from shoal.node.network_statistics import NetworkStatistics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LAG_BOUNDS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0, 10.0)
HEARTBEAT_S = 0.1
"""Often enough for a hundredth of a minute to be seen, at 0.1 % of a core."""

RTT_BOUNDS_S = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class Readings:
    """The figures of one moment. Those by name are by values of closed lists."""

    version: str
    protocol: str
    python: str
    uptime_s: float
    draining: bool
    peers_known: int
    peers_linked: int
    jobs_running: int
    jobs_ended: Mapping[str, float]
    units_waiting: int
    units_out: int
    units_ended: Mapping[str, float]
    units_running: int
    units_served: int
    leases: int
    refusals: Mapping[str, float]
    blob_bytes: int
    blob_quota_bytes: int
    worker_processes: int
    workers_started: int
    tasks: int
    threads: int
    log_lines_lost: int
    settings_ok: bool
    peers_banned: int = 0
    accusations: Mapping[str, float] = field(default_factory=dict)
    ledger_units: Mapping[str, float] = field(default_factory=dict)
    ledger_credits: Mapping[str, float] = field(default_factory=dict)
    ledger_acknowledged: Mapping[str, float] = field(default_factory=dict)
    unsettled: int = 0
    disputes_open: int = 0
    disputes_ended: Mapping[str, float] = field(default_factory=dict)
    checks: Mapping[str, float] = field(default_factory=dict)
    network: NetworkStatistics | None = None


Figure: TypeAlias = float | Mapping[str, float] | None
"""One value; or one for each value of the row's label; None where there is nothing to say."""


@dataclass(frozen=True, slots=True)
class Row:
    """One metric.

    Attributes:
        name: With its unit; a counter ends in ``_total``.
        help: One sentence.
        read: Takes the figure out of the readings.
        label: What the figure is by, where it is by something.
    """

    name: str
    help: str
    read: Callable[[Readings], Figure]
    label: str = ""

    @property
    def counts(self) -> bool:
        """Whether it is a counter, which only grows; else it is a gauge."""
        return self.name.endswith("_total")


def _of_network(read: Callable[[NetworkStatistics], Figure]) -> Callable[[Readings], Figure]:
    return lambda now: None if now.network is None else read(now.network)


METRICS = (
    Row("shoal_uptime_seconds", "Since the daemon started.", lambda now: now.uptime_s),
    Row("shoal_draining", "1 while the daemon ends in order.", lambda now: now.draining),
    Row(
        "shoal_settings_ok",
        "0 while the settings, when read last, were in error and those before them count.",
        lambda now: now.settings_ok,
    ),
    Row("shoal_peers_known", "Other nodes with a valid advert.", lambda now: now.peers_known),
    Row("shoal_peers_linked", "Peers that are linked.", lambda now: now.peers_linked),
    Row(
        "shoal_peers_banned",
        "Peers that a fraud proof has convicted, while their bans last.",
        lambda now: now.peers_banned,
    ),
    Row(
        "shoal_accusations_total",
        "Fraud proofs that peers told of and that were looked into, by what came of it.",
        lambda now: now.accusations,
        "outcome",
    ),
    Row(
        "shoal_checks_total",
        "What verifiers said of own results that were checked, by verdict.",
        lambda now: now.checks,
        "verdict",
    ),
    Row(
        "shoal_disputes_open",
        "Receipts of peers that this node disputes.",
        lambda now: now.disputes_open,
    ),
    Row(
        "shoal_disputes_total",
        "Disputes of this node that ended, by outcome.",
        lambda now: now.disputes_ended,
        "outcome",
    ),
    Row(
        "shoal_ledger_units_total",
        "Units done for peers (given), and by peers for this node (taken).",
        lambda now: now.ledger_units,
        "direction",
    ),
    Row(
        "shoal_ledger_credits_total",
        "Credits of these units, by the price of their awards.",
        lambda now: now.ledger_credits,
        "direction",
    ),
    Row(
        "shoal_ledger_acknowledged_units_total",
        "Of these units those whose receipts were acknowledged.",
        lambda now: now.ledger_acknowledged,
        "direction",
    ),
    Row(
        "shoal_unsettled_messages",
        "Answered messages of which requesters have not acknowledged the receipts.",
        lambda now: now.unsettled,
    ),
    Row("shoal_jobs_running", "Own jobs that run.", lambda now: now.jobs_running),
    Row(
        "shoal_jobs_ended_total",
        "Own jobs that ended, by how.",
        lambda now: now.jobs_ended,
        "state",
    ),
    Row(
        "shoal_units_waiting",
        "Units of own jobs that no lease has taken.",
        lambda now: now.units_waiting,
    ),
    Row("shoal_units_out", "Units of own jobs at a provider.", lambda now: now.units_out),
    Row(
        "shoal_units_ended_total",
        "Units of own jobs that ended, by how.",
        lambda now: now.units_ended,
        "state",
    ),
    Row(
        "shoal_units_running",
        "Units that run in this node or wait for its worker, anybody's.",
        lambda now: now.units_running,
    ),
    Row(
        "shoal_units_served_total",
        "Units that this node ran and signed, anybody's.",
        lambda now: now.units_served,
    ),
    Row("shoal_leases", "Leases that this node serves.", lambda now: now.leases),
    Row(
        "shoal_refusals_total",
        "Calls, awards and units that this node refused, by reason.",
        lambda now: now.refusals,
        "reason",
    ),
    Row("shoal_blob_bytes", "Disk space that blobs take.", lambda now: now.blob_bytes),
    Row(
        "shoal_blob_quota_bytes",
        "Disk space that blobs may take.",
        lambda now: now.blob_quota_bytes,
    ),
    Row("shoal_worker_processes", "Workers that live.", lambda now: now.worker_processes),
    Row(
        "shoal_worker_starts_total",
        "Worker processes that were started, first ones and those after them.",
        lambda now: now.workers_started,
    ),
    Row("shoal_tasks", "Tasks of the daemon's loop.", lambda now: now.tasks),
    Row("shoal_threads", "Threads of the daemon's process.", lambda now: now.threads),
    Row(
        "shoal_log_lines_lost_total",
        "Lines of the log that could not be written.",
        lambda now: now.log_lines_lost,
    ),
    Row(
        "shoal_connections",
        "Open connections to peers, by who opened them.",
        _of_network(
            lambda now: {"inbound": now.connections_in, "outbound": now.connections_out}
        ),
        "direction",
    ),
    Row(
        "shoal_connections_half_open",
        "Connections of peers in their handshake.",
        _of_network(lambda now: now.half_open),
    ),
    Row(
        "shoal_connections_refused_total",
        "Connections that were refused, by cause.",
        _of_network(lambda now: now.refused),
        "cause",
    ),
    Row(
        "shoal_connections_evicted_total",
        "Connections that were ended to make room for others.",
        _of_network(lambda now: now.evicted),
    ),
    Row("shoal_streams", "Open streams.", _of_network(lambda now: now.streams)),
    Row(
        "shoal_unread_bytes",
        "What peers have sent on streams and nobody has read yet.",
        _of_network(lambda now: now.unread_bytes),
    ),
    Row(
        "shoal_stream_received_bytes_total",
        "Bytes that came over streams, by protocol, without what libp2p adds.",
        _of_network(lambda now: now.received),
        "protocol",
    ),
    Row(
        "shoal_stream_sent_bytes_total",
        "Bytes that went out over streams, by protocol, without what libp2p adds.",
        _of_network(lambda now: now.sent),
        "protocol",
    ),
    Row(
        "shoal_breaches_total",
        "Rules of the network that peers broke, by rule.",
        _of_network(lambda now: now.breaches),
        "rule",
    ),
    Row(
        "shoal_gossip_messages_total",
        "Gossip messages: new ones taken in, own ones, and those that were dropped.",
        _of_network(
            lambda now: {
                "received": now.gossip_in,
                "sent": now.gossip_out,
                "dropped": now.gossip_dropped,
            }
        ),
        "outcome",
    ),
    Row(
        "shoal_network_restarts_total",
        "Times that the libp2p host came back after a failure.",
        _of_network(lambda now: now.restarts),
    ),
)


@dataclass(slots=True)
class Histogram:
    """How often a figure was at most each of some bounds, and its sum."""

    name: str
    help: str
    bounds: tuple[float, ...]
    _counts: list[int] = field(init=False)
    _sum: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count one figure."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self._sum += value

    def family(self) -> Metric:
        """It as Prometheus has it."""
        bounds = [*map(str, self.bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        return HistogramMetricFamily(self.name, self.help, buckets, self._sum)


class Metrics:
    """The metrics of one daemon.

    Args:
        read: Gives the figures of this moment.
    """

    def __init__(self, read: Callable[[], Readings]) -> None:
        self._read = read
        self.lag_s = Histogram(
            "shoal_event_loop_lag_seconds",
            "How late a timer of the daemon's loop fires, ten times a second.",
            LAG_BOUNDS_S,
        )
        self.rtt_s = Histogram(
            "shoal_link_rtt_seconds",
            "The round trip to each linked peer as it was measured last, once a second.",
            RTT_BOUNDS_S,
        )
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        self._registry.register(self)  # it has `collect`

    async def follow_loop(self) -> None:
        """Measure for ever how late the loop is."""
        while True:
            due_s = trio.current_time() + HEARTBEAT_S
            await trio.sleep_until(due_s)
            self.lag_s.observe(trio.current_time() - due_s)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """The families of this moment; asked by the registry."""
        now = self._read()
        build = GaugeMetricFamily(
            "shoal_build_info",
            "Always 1; what runs is in the labels.",
            labels=["version", "protocol", "python"],
        )
        build.add_metric([now.version, now.protocol, now.python], 1)
        yield build
        for row in METRICS:
            yield from _families(row, row.read(now))
        yield self.lag_s.family()
        yield self.rtt_s.family()


def _families(row: Row, figure: Figure) -> Iterator[Metric]:
    if figure is None:
        return
    kind = CounterMetricFamily if row.counts else GaugeMetricFamily
    family = kind(row.name, row.help, labels=[row.label] if row.label else [])
    if isinstance(figure, Mapping):
        for name, value in sorted(figure.items()):
            family.add_metric([name], value)
    else:
        family.add_metric([], float(figure))
    yield family
