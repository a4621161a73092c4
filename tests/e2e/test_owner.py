"""The owner first: pauses, stepping back, and who is served, with real daemons."""

import os
import signal
import subprocess
import time
from contextlib import contextmanager, suppress

import models
import numpy as np
import pytest
from daemons import SHOAL, clean_environment, eventually, peers_of, shoal
from owners_machine import owners_machine, way_in

from shoal.crypto import identity
from shoal.node.client import Client
from shoal.node.demo.swarm import Node
from shoal.node.errors import DaemonUnreachableError
from shoal.node.records import JobState, UnitState

STEP_BACK_LIMIT_S = 60.0
"""10 s on a machine that has nothing else to do."""

SLOW_TURNS = 150_000
"""A unit then takes some tenths of a second."""


@pytest.fixture
def resumed(swarm):
    """The swarm, without the pauses that a test made."""
    yield swarm
    for node in swarm.nodes:
        if node.running:
            with node.client() as client:
                client.resume()


def stance_of(node):
    with node.client() as client:
        (stance,) = (s for s in client.status().owner.stances if s.device == "cpu")
    return stance


def verdicts(node, job_id):
    """The newest answer of each peer to a job."""
    with node.client() as client:
        answers, summary = client.why(job_id)
    return {answer.peer: answer.verdict for answer in answers}, summary


def submit(node, rows, model=None, label=""):
    with node.client() as client:
        units = [{"x": row[None]} for row in rows]
        return client.submit(model or models.slow(SLOW_TURNS), units, label=label).id


def assert_all_delivered(node, job_id, rows):
    with node.client() as client:
        job = client.wait(job_id, 60)
        assert (job.state, job.units_done) == (JobState.DONE, len(rows))
        found = np.concatenate([outputs["y"] for outputs in client.results(job_id)])
        np.testing.assert_array_equal(found, rows)
        return client.units(job_id, 0, 1000)


# --- pause and resume -------------------------------------------------------------------


@pytest.mark.parametrize("device", [[], ["--device=cpu"]], ids=["node", "device"])
def test_a_pause_in_the_middle_of_a_job_costs_no_unit(resumed, device):
    requester, provider = resumed.nodes[1:]
    rows = models.rows(30)
    job_id = submit(requester, rows)
    with requester.client() as client:

        def given_to_provider(*states):
            units = client.units(job_id, 0, 100)
            return {u.index for u in units if u.provider == provider.peer and u.state in states}

        def done_by_provider():
            return given_to_provider(UnitState.DONE)

        eventually(done_by_provider, 60, "the provider has done a unit")
        paused = shoal("pause", *device, "--json", node=provider)
        assert paused.code == 0, paused
        (stance,) = (s for s in paused.json["owner"]["stances"] if s["device"] == "cpu")
        assert (stance["peers"], stance["own"]) == (False, not device)

        def told():  # by an answer, or before it asks again by the provider's advert
            (view,) = (view for view in client.peers() if view.peer == provider.peer)
            answer = verdicts(requester, job_id)[0].get(provider.peer)
            return answer == "paused" or not view.providing

        eventually(told, 60, "the requester was told")
        by_then = given_to_provider(UnitState.DONE, UnitState.LEASED)
    units = assert_all_delivered(requester, job_id, rows)
    by_provider = {unit.index for unit in units if unit.provider == provider.peer}
    assert by_provider <= by_then  # what it had in hand it may end
    assert len(by_provider) < len(rows)
    if verdicts(requester, job_id)[0].get(provider.peer) == "paused":
        assert "paused" in shoal("job", "why", job_id, node=requester).stdout


def test_a_paused_node_is_not_asked_any_more_and_is_again_once_it_is_resumed(resumed):
    requester, provider = resumed.nodes[1:]
    eventually(lambda: provider.peer in peers_of(requester), 60, "acquainted")
    assert shoal("pause", node=provider).code == 0

    def takes_work():
        with requester.client() as client:
            (view,) = (view for view in client.peers() if view.peer == provider.peer)
        return view.providing

    eventually(lambda: not takes_work(), 60, "its advert says so")
    rows = models.rows(8)
    job_id = submit(requester, rows)
    units = assert_all_delivered(requester, job_id, rows)
    assert provider.peer not in {unit.provider for unit in units}
    assert provider.peer not in verdicts(requester, job_id)[0]
    assert shoal("resume", node=provider).code == 0
    eventually(takes_work, 60, "its advert says so again")


def test_a_pause_outlasts_a_kill_and_ends_by_itself_at_its_time(resumed):
    node = resumed.nodes[2]
    assert shoal("pause", node=node).code == 0
    node.kill()
    resumed.start(node)
    resumed.wait_ready(node)
    assert stance_of(node).cause == "paused"
    paused = shoal("pause", "--for=15s", "--json", node=node)
    assert paused.code == 0, paused
    until = stance_of(node).until
    assert 0 < until - time.time() <= 15
    assert "paused, until" in shoal("status", node=node).stdout
    eventually(lambda: stance_of(node).peers, 60, "the pause is over")
    assert time.time() >= until


def test_the_owners_job_waits_for_a_device_that_the_owner_has_paused(stranger):
    assert shoal("pause", "--device=cpu", node=stranger).code == 0
    rows = models.rows(1)
    job_id = submit(stranger, rows, models.slow(2))
    eventually(
        lambda: verdicts(stranger, job_id)[0].get(stranger.peer) == "paused", 60, "told why"
    )
    assert "shoal status" in verdicts(stranger, job_id)[1]
    shown = shoal("devices", node=stranger).stdout
    assert "none, paused" in shown
    assert shoal("resume", "--device=cpu", node=stranger).code == 0
    assert_all_delivered(stranger, job_id, rows)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["pause", "--device=gpu7"], 1, "no device 'gpu7'"),
        (["resume", "--device=gpu7"], 1, "no device 'gpu7'"),
        (["pause", "--for=soon"], 2, "2h"),
    ],
)
def test_a_pause_of_what_is_not_there_is_an_error_with_the_next_step(
    node, arguments, code, said
):
    ended = shoal(*arguments, node=node)
    assert ended.code == code
    assert said in ended.stderr


# --- stepping back ------------------------------------------------------------------------


def test_a_node_steps_back_while_its_owner_is_busy_and_returns_after(swarm, tmp_path):
    way = way_in()
    if way is None:
        pytest.skip("other processes of this machine cannot be kept out of sight here")
    requester = swarm.nodes[1]
    key = identity.generate()
    identity.save(key, tmp_path / "identity.key")
    flags = [
        f"--home={tmp_path}",
        "--listen=/ip4/127.0.0.1/tcp/0",
        f"--bootstrap={requester.address}",
        *(f"--allow={node.peer}" for node in swarm.nodes),
        "--step-back=10%",
    ]
    owners = Node(5, tmp_path, key.peer_id)

    def answer():
        """What it answers to a new job."""
        job_id = submit(requester, models.rows(1), models.dense())
        with requester.client() as client:
            client.wait(job_id, 60)
        return verdicts(requester, job_id)[0].get(owners.peer)

    with (
        (tmp_path / "daemon.log").open("w") as log,
        owners_machine(way, *flags, log=log) as say,
    ):
        eventually(owners.socket.exists, 60, "started")
        with Client(owners.socket) as client:
            eventually(
                lambda: any(device.executors for device in client.devices()), 60, "probed"
            )
        eventually(lambda: owners.peer in peers_of(requester), 60, "acquainted")
        eventually(lambda: stance_of(owners).peers, 60, "the start is over")
        eventually(lambda: answer() in {"awarded", None} and stance_of(owners).peers, 60)
        say("busy")
        began = time.monotonic()
        eventually(lambda: not stance_of(owners).peers, STEP_BACK_LIMIT_S, "stepping back")
        assert time.monotonic() - began <= STEP_BACK_LIMIT_S
        assert stance_of(owners).cause == "stepping_back"
        eventually(  # it may be back and away again where the loops get no core for a moment
            lambda: "stepping back" in shoal("status", node=owners).stdout, 60, "status says so"
        )
        eventually(lambda: answer() == "paused", 60, "nothing new is taken")
        say("quiet")
        eventually(lambda: stance_of(owners).peers, 60, "back")
        eventually(lambda: answer() != "paused", 60, "it serves again")


# --- who is served --------------------------------------------------------------------------


@contextmanager
def providers(wishes, root, *common):
    """Daemons of owners who each want something particular, by name."""
    nodes, starting = {}, []
    for number, (name, flags) in enumerate(wishes.items()):
        home = root / name
        home.mkdir()
        key = identity.generate()
        identity.save(key, home / "identity.key")
        nodes[name] = Node(10 + number, home, key.peer_id)
        command = [*SHOAL, "up", "--detach", f"--home={home}", *common, *flags]
        starting.append(subprocess.Popen(command, env=clean_environment()))
    try:
        assert [started.wait(60) for started in starting] == [0] * len(wishes)
        yield nodes
    finally:
        for node in nodes.values():
            with suppress(DaemonUnreachableError), node.client() as client:
                os.kill(client.status().pid, signal.SIGTERM)
        for node in nodes.values():
            eventually(lambda node=node: not node.socket.exists(), 60, "ended")


def test_who_is_not_served_is_told_why_and_what_would_change_it(stranger, tmp_path):
    """Of the price and of those who serve friends alone `test_why` tells."""
    allow = f"--allow={stranger.peer}"
    wishes = {
        "denied": [allow, f"--deny={stranger.peer}"],
        "anyone": [],
        "hours": [allow, f"--schedule={closed_now()}"],
    }
    common = ("--listen=/ip4/127.0.0.1/tcp/0", f"--bootstrap={stranger.address}")
    with providers(wishes, tmp_path, *common) as nodes, stranger.client() as client:
        peers = {node.peer for node in nodes.values()}

        def ready():
            return {v.peer for v in client.peers() if v.numeric_classes} >= peers

        eventually(ready, 60, "known with what they offer")
        client.pause("cpu")  # so that its own node cannot do it
        job_id = submit(stranger, models.rows(1), models.slow(1_000_000_000))
        eventually(lambda: len(verdicts(stranger, job_id)[0]) >= 3, 60, "all have answered")
        found, summary = verdicts(stranger, job_id)  # of a job that runs
        client.cancel(job_id)
        assert {name: found.get(node.peer) for name, node in nodes.items()} == {
            "denied": "denied",
            "anyone": "awarded",
            "hours": None,  # its advert says so, and it was not asked
        }
        line = next(line for line in summary.splitlines() if nodes["denied"].peer in line)
        assert "deny list" in line
        assert f"“shoal deny --remove {stranger.peer}” there" in line
        assert "by the schedule, until" in shoal("status", node=nodes["hours"]).stdout
        assert "1 denied" in shoal("doctor", node=nodes["denied"]).stdout


def closed_now():
    """A window that is neither now nor within the next minutes."""
    hour = (time.localtime().tm_hour + 12) % 24
    return f"{hour:02}:00-{hour:02}:30"
