"""Metrics: the names by Prometheus' rules, as its own linter has them, and bounded series."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from shoal.node.metrics import (
    HEARTBEAT_S,
    LAG_BOUNDS_S,
    METRICS,
    Histogram,
    Metrics,
    Readings,
)
from shoal.node.settings import SETTINGS
from shoal.protocol.negotiation_messages import Reason

NETWORK = SimpleNamespace(
    connections_in=3,
    connections_out=4,
    half_open=1,
    streams=9,
    unread_bytes=1234,
    refused={"per_ip": 5},
    evicted=6,
    breaches={"gossip_flood": 2},
    received={"blob": 1 << 20, "control": 5000},
    sent={"blob": 300, "control": 6000},
    gossip_in=7,
    gossip_out=8,
    gossip_dropped=1,
    restarts=2,
)
READINGS = Readings(
    version="0.1.0",
    protocol="1.1",
    python="3.11.7",
    uptime_s=12.5,
    draining=False,
    peers_known=20,
    peers_linked=6,
    jobs_running=1,
    jobs_ended={"done": 2, "failed": 0, "cancelled": 1},
    units_waiting=10,
    units_out=3,
    units_ended={"done": 100, "failed": 1},
    units_running=2,
    units_served=55,
    leases=1,
    refusals={reason.value: 0 for reason in Reason},
    blob_bytes=1000,
    blob_quota_bytes=2000,
    worker_processes=2,
    workers_started=5,
    tasks=77,
    threads=4,
    log_lines_lost=0,
    settings_ok=True,
    peers_banned=1,
    accusations={"proved": 2, "false": 1},
    ledger_units={"given": 30, "taken": 40},
    ledger_credits={"given": 1.5, "taken": 2.5},
    ledger_acknowledged={"given": 29, "taken": 40},
    unsettled=2,
    disputes_open=1,
    disputes_ended={"convicted": 3, "acquitted": 0, "undecided": 0, "none": 1},
    checks={"agrees": 70, "differs": 4, "no_answer": 5},
    network=NETWORK,
)
BASE_UNITS = ("seconds", "bytes", "info", "total", "ratio")
NOT_BASE = re.compile(
    "milli|micro|nano|minute|hour|day|kilo|mega|giga|kb|mb|gb|percent|msec|_ms|_us|_ns"
)
SERIES_LIMIT = 150


def scraped(readings=READINGS):
    text = Metrics(lambda: readings).exposition().decode()
    return list(text_string_to_metric_families(text))


def value(families, sample, **labels):
    (found,) = (
        s.value for f in families for s in f.samples if (s.name, s.labels) == (sample, labels)
    )
    return found


def test_every_metric_is_named_as_prometheus_wants_it():
    for family in scraped():
        assert family.documentation.strip(), family
        assert re.fullmatch("(shoal|process)_[a-z][a-z0-9_]*", family.name), family.name
        assert not NOT_BASE.search(family.name), family.name
        # Words of the type and of the kind have no place in a name.
        assert not re.search("gauge|counter|histogram|metric", family.name)
        for sample in family.samples:
            assert (family.type == "counter") == sample.name.endswith("_total"), sample
            assert not re.search("_(count|sum|bucket)$", family.name)
            for label in sample.labels:
                assert re.fullmatch("[a-z][a-z_]*", label)
                assert label == "le" or label not in family.name.split("_")
    assert {family.type for family in scraped()} == {"gauge", "counter", "histogram"}


def test_what_has_a_unit_says_it_last_but_for_total():
    for family in scraped():
        for unit in ("seconds", "bytes"):
            if unit in family.name:
                assert family.name.removesuffix("_total").endswith(unit)


def test_each_row_gives_what_it_reads():
    families = scraped()
    assert value(families, "shoal_peers_linked") == 6
    assert value(families, "shoal_units_served_total") == 55
    assert value(families, "shoal_jobs_ended_total", state="cancelled") == 1
    assert value(families, "shoal_refusals_total", reason="draining") == 0
    assert value(families, "shoal_connections", direction="inbound") == 3
    assert value(families, "shoal_gossip_messages_total", outcome="dropped") == 1
    assert value(families, "shoal_settings_ok") == 1
    assert value(families, "shoal_ledger_units_total", direction="taken") == 40
    assert value(families, "shoal_disputes_total", outcome="convicted") == 3
    assert value(families, "shoal_checks_total", verdict="differs") == 4
    assert value(families, "process_open_fds") > 0
    labels = {"version": "0.1.0", "protocol": "1.1", "python": "3.11.7"}
    assert value(families, "shoal_build_info", **labels) == 1
    named = {family.name + "_total" * (family.type == "counter") for family in families}
    assert {row.name for row in METRICS} <= named


def test_names_are_told_once():
    names = [row.name for row in METRICS]
    assert len(names) == len(set(names))


def test_no_label_holds_what_others_choose_and_the_series_are_few():
    labels = {label for f in scraped() for s in f.samples for label in s.labels}
    assert labels == {
        *("version", "protocol", "python", "state", "reason", "direction", "cause"),
        *("outcome", "rule", "verdict", "le"),
    }
    assert sum(len(family.samples) for family in scraped()) < SERIES_LIMIT
    crowd = replace(READINGS, peers_known=10**6, peers_linked=10**4, jobs_running=10**4)
    assert sum(len(f.samples) for f in scraped(crowd)) == sum(len(f.samples) for f in scraped())


def test_a_network_that_counts_nothing_is_left_out():
    names = {family.name for family in scraped(replace(READINGS, network=None))}
    assert "shoal_peers_linked" in names
    assert not names & {"shoal_connections", "shoal_gossip_messages", "shoal_streams"}


@pytest.mark.parametrize(
    ("seen", "counts"),
    [([], [0, 0, 0]), ([0.5, 1.0], [2, 2, 2]), ([1.5, 2.0, 9.0, 9.0], [0, 2, 4])],
)
def test_a_histogram_counts_what_is_at_most_each_bound(seen, counts):
    histogram = Histogram("shoal_x_seconds", "X.", (1.0, 2.0))
    for figure in seen:
        histogram.observe(figure)
    samples = {s.labels.get("le", s.name): s.value for s in histogram.family().samples}
    assert [samples[bound] for bound in ("1.0", "2.0", "+Inf")] == counts
    assert samples["shoal_x_seconds_sum"] == sum(seen)
    assert samples["shoal_x_seconds_count"] == len(seen)


async def test_how_late_the_loop_is_is_among_them(autojump_clock, nursery):
    metrics = Metrics(lambda: READINGS)
    nursery.start_soon(metrics.follow_loop)
    await trio.sleep(10.05 * HEARTBEAT_S)
    text = metrics.exposition().decode()
    assert 'shoal_event_loop_lag_seconds_bucket{le="0.001"} 10.0' in text


def test_a_loop_that_was_late_beyond_all_bounds_is_counted_too():
    metrics = Metrics(lambda: READINGS)
    metrics.lag_s.observe(LAG_BOUNDS_S[-1] * 2)
    text = metrics.exposition().decode()
    assert 'shoal_event_loop_lag_seconds_bucket{le="10.0"} 0.0' in text
    assert 'shoal_event_loop_lag_seconds_bucket{le="+Inf"} 1.0' in text


DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.mark.parametrize("file", ["grafana/shoal.json", "prometheus/rules.yml"])
def test_what_is_drawn_and_watched_is_there_to_be_scraped(file):
    text = (DEPLOY / file).read_text()
    if file.endswith("json"):
        panels = json.loads(text)["panels"]
        text = "\n".join(target["expr"] for panel in panels for target in panel["targets"])
    asked = set(re.findall(r"\b(?:shoal|process)_[a-z_]+", text))
    assert len(asked) > 4
    assert asked <= {sample.name for family in scraped() for sample in family.samples}


def test_every_metric_and_every_live_setting_is_in_the_documentation():
    text = (DEPLOY.parent / "docs" / "OPERATING.md").read_text()
    told = set(re.findall(r"`(shoal_[a-z_]+)`", text))
    assert {row.name for row in METRICS} <= told
    assert told <= {family.name for family in scraped()} | {row.name for row in METRICS}
    (row,) = re.findall(r"^\| `bootstrap`.*$", text, re.MULTILINE)
    live, others = row.strip("| ").split(" | ")
    for setting in SETTINGS:
        assert f"`{setting.name}`" in (live if setting.live else others)
