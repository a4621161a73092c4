"""A daemon's life with real processes: drained, ended at once, reloaded, watched."""

import os
import pty
import re
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import models
import numpy as np
import pytest
from daemons import SHOAL, clean_environment, curl, eventually, peers_of, shoal
from prometheus_client.parser import text_string_to_metric_families

from shoal.crypto import identity
from shoal.node.client import Client
from shoal.node.demo.swarm import Node
from shoal.node.errors import DaemonError, DaemonUnreachableError
from shoal.node.records import JobState, UnitState

SLOW_TURNS = 150_000
"""A unit then takes some tenths of a second."""

END_LIMIT_S = 60.0


def submit(node, rows, turns=SLOW_TURNS):
    with node.client() as client:
        return client.submit(models.slow(turns), [{"x": row[None]} for row in rows]).id


def served_by(node, provider, job_id):
    with node.client() as client:
        units = client.units(job_id, 0, 1000)
    return {u.index for u in units if u.provider == provider.peer and u.state is UnitState.DONE}


def assert_all_delivered(node, job_id, rows):
    with node.client() as client:
        job = client.wait(job_id, 60)
        assert (job.state, job.units_done, job.units_failed) == (JobState.DONE, len(rows), 0)
        found = np.concatenate([outputs["y"] for outputs in client.results(job_id)])
        np.testing.assert_array_equal(found, rows)


def log_of(node):
    return node.log_path.read_text()


@contextmanager
def daemon(home, *flags, environment=(), stdin=subprocess.DEVNULL, stderr=None):
    """One daemon alone, and its process; killed at the end where it still runs."""
    home.mkdir(exist_ok=True)
    key = identity.generate()
    identity.save(key, home / "identity.key")
    node = Node(9, home, key.peer_id)
    with (home / "daemon.log").open("ab") as log:
        node.process = subprocess.Popen(
            [*SHOAL, "up", f"--home={home}", "--listen=/ip4/127.0.0.1/tcp/0", *flags],
            stdin=stdin,
            stdout=log,
            stderr=log if stderr is None else stderr,
            env=clean_environment() | dict(environment),
            start_new_session=True,
        )
    try:
        yield node
    finally:
        node.kill()


def wait_ready(node):
    def answers():
        assert node.running, node.last_words()
        try:
            with node.client() as client:
                return client.status()
        except DaemonUnreachableError:
            return None

    return eventually(answers, 60, "the daemon answers")


# --- ending ----------------------------------------------------------------------------


def test_a_daemon_that_is_told_to_end_costs_its_requesters_no_unit_and_no_error(swarm):
    requester, provider = swarm.nodes[1:]
    rows = models.rows(30)
    job_id = submit(requester, rows)
    eventually(lambda: served_by(requester, provider, job_id), 60, "it has done a unit")
    before, its_before = len(log_of(requester)), len(log_of(provider))
    provider.signal(signal.SIGTERM)
    assert provider.process.wait(END_LIMIT_S) == 0
    eventually(lambda: provider.peer not in peers_of(requester), 60, "it is gone")
    assert_all_delivered(requester, job_id, rows)
    with requester.client() as client:
        answers, _ = client.why(job_id)
    verdicts = {answer.verdict for answer in answers if answer.peer == provider.peer}
    assert verdicts <= {"awarded", "draining"}, verdicts  # and no broken link
    assert "a lease broke" not in log_of(requester)[before:]
    said = log_of(provider)[its_before:]
    assert '"message": "draining"' in said
    assert "units_handed_back" not in said  # what ran has ended in its time


def test_while_a_daemon_drains_it_takes_nothing_and_down_says_what_it_waits_for(swarm):
    requester, provider = swarm.nodes[1:]
    (provider.home / "config.toml").write_text('drain = "3s"\n')
    assert shoal("reload", "--json", node=provider).json["reload"]["changed"] == ["drain"]
    job_id = submit(provider, models.rows(4), turns=30_000_000)  # each takes a minute or so
    with provider.client() as client:
        eventually(lambda: client.status().units_running, 60, "a unit runs")
        process = subprocess.Popen(
            [*SHOAL, "down", f"--home={provider.home}"],
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        )
        found = eventually(
            lambda: (s := client.status()).phase == "draining" and s, 60, "it drains"
        )
        assert 0 < found.drain_ends_in_s <= 3.0
        with pytest.raises(DaemonError, match="takes no more jobs") as caught:
            submit(provider, models.rows(1))
        assert (caught.value.code, caught.value.status) == ("draining", 503)
        by_requester = {view.peer: view.providing for view in requester.client().peers()}
        eventually(
            lambda: (
                not {v.peer: v.providing for v in requester.client().peers()}.get(provider.peer)
            ),  # nor does it once it has ended, which is soon
            60,
            f"its advert says that it takes nothing; before: {by_requester}",
        )
    _, said = process.communicate(timeout=END_LIMIT_S)
    assert re.search(r"^\d+ units? still running, for \d\.\d s more$", said, re.MULTILINE), said
    assert provider.process.wait(END_LIMIT_S) == 0
    assert '"units_handed_back"' in log_of(provider)
    (provider.home / "config.toml").unlink()
    swarm.start(provider)  # own jobs go on at the next start
    swarm.wait_ready(provider)
    with provider.client() as client:
        assert client.job(job_id).state is JobState.RUNNING
        client.cancel(job_id)


@pytest.mark.parametrize(("again", "code"), [(signal.SIGINT, 130), (None, 0)], ids=str)
def test_told_twice_or_told_to_do_it_now_a_daemon_ends_at_once(swarm, again, code):
    node = swarm.nodes[2]
    submit(node, models.rows(2), turns=30_000_000)
    with node.client() as client:
        eventually(lambda: client.status().units_running, 60, "a unit runs")
    began_s = time.monotonic()
    if again is None:
        with node.client() as client:
            client.end(now=True)
    else:
        node.signal(signal.SIGTERM)
        with node.client() as client:
            eventually(lambda: client.status().phase == "draining", 60, "it drains")
        node.signal(again)
    assert node.process.wait(8) == code
    assert time.monotonic() - began_s < 8  # of the 10 s that a drain may take
    swarm.start(node)
    swarm.wait_ready(node)
    with node.client() as client:
        for job in client.jobs():
            client.cancel(job.id)


# --- settings and log ------------------------------------------------------------------


def test_settings_read_again_count_at_once_and_bad_ones_change_nothing(swarm):
    node = swarm.nodes[1]
    settings = node.home / "config.toml"
    try:
        settings.write_text("min_price = 7\nlog_level = 'debug'\nniceness = 7\n")
        node.signal(signal.SIGHUP)
        with node.client() as client:
            eventually(lambda: client.status().owner.min_price == 7.0, 60, "it was read")
            assert client.log_level().level == "debug"
        settings.write_text("min_price = 8\ndrain = 'soon'\n")
        refused = shoal("reload", node=node)
        assert (refused.code, refused.stdout) == (2, "")
        assert "drain in " in refused.stderr
        assert "next: write it as in `drain = " in refused.stderr
        with node.client() as client:
            found = client.status()
            assert (found.owner.min_price, client.log_level().level) == (7.0, "debug")
        assert "drain in " in found.settings_error
        assert re.search(
            r"^settings +in error", shoal("status", node=node).stdout, re.MULTILINE
        )
        assert '"message": "the settings stay as they are"' in log_of(node)
        settings.write_text('name = "attic"\n')
        told = shoal("reload", "--json", node=node).json["reload"]
        # niceness is a flag of this swarm's, which goes before the file
        assert (told["changed"], told["needs_restart"]) == (
            ["min_price", "log_level"],
            ["name"],
        )
        assert "not yet in use: name" in shoal("status", node=node).stdout
    finally:
        settings.unlink()
        assert shoal("reload", node=node).code == 0
    with node.client() as client:
        assert client.status().needs_restart == ()


def test_the_log_level_is_changed_while_it_runs_until_a_reload(node):
    with node.client() as client:
        assert client.set_log_level("error").level == "error"
        assert client.set_log_level("debug", "shoal.node.lifecycle").modules == {
            "shoal.node.lifecycle": "debug"
        }
        with pytest.raises(DaemonError, match="no module"):
            client.set_log_level("debug", "os")
        with pytest.raises(DaemonError, match="none of debug"):
            client.set_log_level("loud")
    shown = shoal("log-level", node=node)
    assert shown.stdout.split("\n")[0] == "shoal                 error (settings: info)"
    assert shoal("reload", node=node).code == 0
    assert shoal("log-level", "--json", node=node).json["log_level"] == {
        "level": "info",
        "configured": "info",
        "modules": {},
    }


def test_a_detached_daemon_outlives_a_hang_up_and_opens_its_log_anew(tmp_path):
    home = tmp_path / "home"
    node = Node(9, home, "")
    started = shoal("up", "--detach", "--listen=/ip4/127.0.0.1/tcp/0", "--json", node=node)
    assert started.code == 0, started
    pid = started.json["pid"]
    try:
        (home / "daemon.log").rename(home / "moved")
        os.kill(pid, signal.SIGHUP)
        eventually((home / "daemon.log").exists, 60, "the log is opened anew")
        standard = {Path(f"/proc/{pid}/fd/{fd}").readlink() for fd in (1, 2)}
        assert standard == {home / "daemon.log"}
    finally:
        ended = shoal("down", node=node)
    assert ended.code == 0, ended
    assert '"message": "ending"' in (home / "daemon.log").read_text()


def test_a_daemon_whose_log_cannot_be_written_runs_and_ends_as_ever(tmp_path):
    with (
        Path("/dev/full").open("w") as full,
        daemon(tmp_path / "home", "--log-level=debug", stderr=full) as node,
    ):
        wait_ready(node)
        lost = re.search(r"^shoal_log_lines_lost_total (.*)$", scraped_text(node), re.MULTILINE)
        assert float(lost[1]) > 0
        node.signal(signal.SIGTERM)
        assert node.process.wait(END_LIMIT_S) == 0


def test_a_daemon_ends_when_the_terminal_that_it_was_started_on_goes(tmp_path):
    ours, theirs = pty.openpty()
    command = [*SHOAL, "up", f"--home={tmp_path}/home", "--listen=/ip4/127.0.0.1/tcp/0"]
    process = subprocess.Popen(
        ["setsid", "--ctty", *command],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=clean_environment(),
    )
    os.close(theirs)
    try:
        shown = b""
        while b"ready" not in shown:
            shown += os.read(ours, 4096)
        os.close(ours)
        assert process.wait(END_LIMIT_S) == 0
    finally:
        process.kill()
        process.wait()


# --- a service manager -----------------------------------------------------------------


def test_a_service_manager_is_told_how_a_daemon_stands_and_prometheus_has_its_port(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(f"{tmp_path}/notify")
        ear.settimeout(60)

        def hear(wanted, patience=60):
            """The next datagram that says ``wanted``; gives all that it says."""
            for _ in range(patience):
                said = dict(line.split("=", 1) for line in ear.recv(4096).decode().split("\n"))
                heard.append(said)
                if wanted in said:
                    return said
            raise AssertionError(heard)

        heard = []
        environment = {"NOTIFY_SOCKET": f"{tmp_path}/notify", "WATCHDOG_USEC": "1000000"}
        flags = ("--metrics", str(port))
        with daemon(tmp_path / "home", *flags, environment=environment) as node:
            hear("READY")
            assert node.client().status().phase == "running"
            place = f"http://127.0.0.1:{port}"
            assert "shoal_build_info{" in httpx.get(f"{place}/metrics").text
            assert httpx.get(f"{place}/v1/status").status_code == 404
            hear("WATCHDOG")
            began_s = time.monotonic()
            hear("WATCHDOG")
            assert time.monotonic() - began_s < 1.0
            assert "0 peers linked" in (
                next((said["STATUS"] for said in heard if "STATUS" in said), "")
                or hear("STATUS")["STATUS"]
            )
            node.signal(signal.SIGHUP)
            reloading = hear("RELOADING")
            passed_us = time.monotonic_ns() // 1000 - int(reloading["MONOTONIC_USEC"])
            assert 0 <= passed_us < 10_000_000
            hear("READY")
            node.signal(signal.SIGTERM)
            hear("STOPPING")
            assert int(hear("EXTEND_TIMEOUT_USEC")["EXTEND_TIMEOUT_USEC"]) > 0
            assert node.process.wait(END_LIMIT_S) == 0


# --- metrics ---------------------------------------------------------------------------


def scraped_text(node):
    status, body = curl(node, "http://shoal/metrics")
    assert status == 200
    return body.decode()


def scraped(node):
    families = text_string_to_metric_families(scraped_text(node))
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics_follow_a_job_while_it_runs(swarm):
    requester = swarm.nodes[1]
    before = scraped(requester)
    rows = models.rows(6)
    job_id = submit(requester, rows)
    seen = []

    def over():
        seen.append(scraped(requester))
        with requester.client() as client:
            return client.job(job_id).state.final

    eventually(over, 300, "the job ends")
    after = scraped(requester)
    assert max(one["shoal_jobs_running",] for one in seen) == 1
    assert max(one["shoal_units_out",] for one in seen) > 0
    for name, label, grown in (
        ("shoal_jobs_ended_total", "done", 1),
        ("shoal_units_ended_total", "done", len(rows)),
        ("shoal_units_ended_total", "failed", 0),
    ):
        assert after[name, label] - before[name, label] == grown
    assert after["shoal_units_out",] == after["shoal_jobs_running",] == 0
    assert after["shoal_peers_linked",] >= 2
    eventually(
        lambda: scraped(requester)["shoal_link_rtt_seconds_count",] > 0, 60, "links were pinged"
    )
    assert after["shoal_event_loop_lag_seconds_count",] > 0
    with Client(requester.socket) as client:
        assert "# TYPE shoal_units_served_total counter" in client.metrics()
