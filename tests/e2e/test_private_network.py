"""A private network of two real daemons: invite, join, work, and what strangers see."""

import json
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

import models
import numpy as np
import plain_libp2p
import pytest
import trio
from daemons import SHOAL, clean_environment, eventually, listed, peers_of, shoal

from shoal.crypto import identity
from shoal.node.demo.swarm import Node
from shoal.node.swarm_key import load_key

UNITS = 12
SLOW_TURNS = 150_000
"""A unit then takes some tenths of a second, so that both nodes get some."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def up(node, *flags):
    """Start a daemon at the address that it has for good."""
    place = node.address.partition("/p2p/")[0]
    started = shoal("up", "--detach", "--json", f"--listen={place}", *flags, node=node)
    assert started.code == 0, started
    return started.json


def down(node):
    ended = shoal("down", node=node)
    assert ended.code == 0, ended


def join(node, token, *flags):
    """Join as a careful user does: the token is on nobody's list of processes."""
    done = subprocess.run(
        [*SHOAL, "join", "-", "--json", f"--home={node.home}", *flags],
        input=token,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=clean_environment(),
    )
    assert done.returncode == 0, done
    return json.loads(done.stdout)


@dataclass
class Private:
    """Two daemons in one private network, how they got there, and one that is in none."""

    first: Node
    second: Node
    public: Node
    token: str
    invited: dict
    joined: dict


@pytest.fixture(scope="module")
def private(tmp_path_factory):
    first, second, public = (_node(tmp_path_factory.mktemp("node"), n) for n in (1, 2, 3))
    running = []
    try:
        assert up(first)["network"] == "public"
        running.append(first)
        invited = shoal("invite", "--name", "lab", "--json", node=first)
        assert invited.code == 0, invited
        down(first)
        up(first, f"--allow={second.peer}")
        joined = join(second, invited.json["token"])
        up(second, f"--allow={first.peer}")
        running.append(second)
        up(public, "--provide=false")
        running.append(public)
        yield Private(first, second, public, invited.json["token"], invited.json, joined)
    finally:
        for node in running:
            down(node)


def _node(home, number):
    key = identity.generate()
    identity.save(key, home / "identity.key")
    return Node(
        number, home, key.peer_id, f"/ip4/127.0.0.1/tcp/{free_port()}/p2p/{key.peer_id}"
    )


def test_an_invitation_brings_two_daemons_together(private):
    first, second = private.first, private.second
    assert private.invited["restart_needed"]
    assert private.invited["addresses"] == [first.address]
    assert private.joined["bootstrap"] == [first.address]
    eventually(lambda: peers_of(first) == {second.peer}, 60, "acquainted")
    eventually(lambda: peers_of(second) == {first.peer}, 60, "acquainted")
    for node in (first, second):
        status = shoal("status", "--json", node=node).json
        assert status["network"] == "lab"
        assert status["network_fingerprint"] == private.invited["fingerprint"]
        shown = shoal("status", node=node).stdout
        assert f"lab (private, fingerprint {private.invited['fingerprint']})" in shown
        checks = shoal("doctor", "--json", node=node).json["checks"]
        assert [c["verdict"] for c in checks if c["check"] == "network"] == ["ok"]


def test_units_run_on_both_and_every_receipt_is_valid(private, tmp_path):
    first, second = private.first, private.second
    with second.client() as client:
        eventually(
            lambda: [view.numeric_classes for view in client.peers()] and client.devices(),
            60,
            "the first offers work",
        )
        eventually(lambda: all(v.numeric_classes for v in client.peers()), 60, "offers")
    model = tmp_path / "slow.onnx"
    model.write_bytes(models.slow(SLOW_TURNS))
    np.save(tmp_path / "x.npy", models.rows(UNITS))
    x, out = f"--input=x={tmp_path}/x.npy", f"--output={tmp_path}/out"
    done = shoal("map", model, x, out, "--json", node=second)
    assert done.code == 0, done
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "y.npy"), models.rows(UNITS))
    job = done.json["job"]["id"]
    with second.client() as client:
        assert {unit.provider for unit in client.units(job, 0, 100)} == {
            first.peer,
            second.peer,
        }
    files = shoal("receipt", "fetch", job, f"--output={tmp_path}/r", node=second).stdout.split()
    assert len(files) == UNITS
    assert shoal("receipt", "verify", *files).code == 0


def test_a_plain_libp2p_host_gets_no_advert_and_no_answer(private):
    """Of a public daemon the same host learns all but adverts, which are not sent so often."""

    async def attempt(address, patience_s):
        async with plain_libp2p.plain_host() as host:
            return await plain_libp2p.learn(host, address, patience_s)

    assert trio.run(attempt, private.public.address, 2) >= plain_libp2p.EVERYTHING - {"advert"}
    assert trio.run(attempt, private.first.address, 0.5) == set()
    assert listed(private.first) == {private.second.peer}


def test_a_public_daemon_learns_nothing_and_is_logged_once(private):
    first, public = private.first, private.public
    for _ in range(2):
        tried = shoal("peers", "--connect", first.address, "--json", node=public)
        assert tried.code == 1
        assert tried.json["error"]["code"] == "unreachable"
        assert "in the same network" in tried.json["error"]["hint"]
    tried = shoal("peers", "--connect", public.address, "--json", node=first)
    assert tried.code == 1
    assert tried.json["error"]["code"] == "other_network"
    assert "another private network, or to none" in tried.json["error"]["hint"]
    assert listed(public) == set()
    assert listed(first) == {private.second.peer}
    log = (first.home / "daemon.log").read_text()
    assert log.count("a stranger was turned away") == 1


def test_neither_token_nor_secret_is_in_any_log(private):
    secret = load_key(private.first.home / "swarm.key", {}).secret
    for node in (private.first, private.second):
        for log in node.home.glob("daemon.log*"):
            text = log.read_text()
            assert text
            assert private.token not in text
            assert secret.hex() not in text
            assert private.token[7:] not in text
    assert [path.name for path in Path(private.second.home).glob("swarm.key*")] == ["swarm.key"]
