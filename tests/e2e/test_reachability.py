"""Nodes behind firewalls, in network namespaces: how they are judged, and that they take part.

The daemons are real and the networks too; what is not is the number of links that a
node wants, so that a small network has pairs that are not linked (see `few_links`).
"""

import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import few_links
import models
import pytest
from daemons import clean_environment, eventually, shoal
from internet import small_internet

from shoal.crypto import identity
from shoal.node.demo.swarm import Node
from shoal.node.errors import DaemonUnreachableError
from shoal.node.records import JobState

PORT = 4711
START_LIMIT_S = 60
JUDGED_LIMIT_S = 300
"""Links, then a round of dial-backs of 4 s at most, another 10 s after the first: 11 s alone.
A peer that was too busy to answer is asked again 120 s later, and may be so twice."""

KNOWN_LIMIT_S = 60


class Daemons:
    """Daemons on machines of their own."""

    def __init__(self, root):
        self._root = root
        self.nodes = []

    def start(self, machine, *flags, listen="0.0.0.0", bootstrap=()):
        number = len(self.nodes) + 1
        home = self._root / f"n{number}"
        home.mkdir(mode=0o700)
        key = identity.generate()
        identity.save(key, home / "identity.key")
        node = Node(
            number, home, key.peer_id, f"/ip4/{machine.ip}/tcp/{PORT}/p2p/{key.peer_id}"
        )
        command = [*machine.enter, sys.executable, "-P", few_links.__file__, "up"]
        command += [f"--home={home}", f"--listen=/ip4/{listen}/tcp/{PORT}", *flags]
        command += [f"--bootstrap={other.address}" for other in bootstrap]
        with node.log_path.open("ab") as log:
            node.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean_environment(),
            )
        self.nodes.append(node)
        return node

    def wait_ready(self):
        for node in self.nodes:
            eventually(lambda node=node: answers(node), START_LIMIT_S, f"{node.log_path} ready")

    def end(self):
        for node in self.nodes:
            node.signal(signal.SIGTERM)
        for node in self.nodes:
            try:
                node.process.wait(10)
            except subprocess.TimeoutExpired:
                node.kill()


@contextmanager
def on_small_internet():
    root = Path(tempfile.mkdtemp(prefix="shoal-reach-", dir="/tmp"))
    try:
        with small_internet() as internet:
            daemons = Daemons(root)
            try:
                yield internet, daemons
            finally:
                daemons.end()
    except OSError as error:
        pytest.skip(f"no network namespaces here: {error}")
    finally:
        shutil.rmtree(root, ignore_errors=True)


def answers(node):
    assert node.running, node.last_words()
    try:
        with node.client() as client:
            return client.status()
    except DaemonUnreachableError:
        return None


def judged(node, verdict, limit_s=JUDGED_LIMIT_S):
    """Wait until a daemon says so of itself; gives its view."""

    def found():
        view = answers(node).reachability
        return view if view.verdict == verdict else None

    return eventually(found, limit_s, f"{node.home} is {verdict}")


def view_of(node, other):
    """How ``node`` sees ``other``; None while it does not know it."""
    with node.client() as client:
        return next((view for view in client.peers() if view.peer == other.peer), None)


def run(node, rows):
    with node.client() as client:
        job = client.submit(models.dense(), [{"x": row[None]} for row in rows])
        ended = client.wait(job.id, 60)
        return ended, {unit.provider for unit in client.units(job.id, 0, 100)}


def why(node, job):
    with node.client() as client:
        return client.why(job.id)


def test_a_node_behind_a_firewall_is_told_so_works_for_others_and_has_work_done():
    with on_small_internet() as (internet, daemons):
        home = internet.add_machine()
        internet.block(home, PORT)
        first = daemons.start(internet.add_machine(), "--provide=false")
        second = daemons.start(internet.add_machine(), "--provide=false", bootstrap=[first])
        asker = daemons.start(internet.add_machine(), bootstrap=[first])
        daemons.wait_ready()  # it links both, and with few links wanted no other
        hidden = daemons.start(home, bootstrap=[first, second])
        daemons.wait_ready()
        with asker.client() as client:
            client.pause("cpu")

        # 1. Each knows how it is reached, and says so.
        view = judged(hidden, "blocked")
        assert view.sentence == (
            f"blocked: 2 peers see us come from {home.ip}, and port {PORT} gives no answer "
            "there: open or forward it"
        )
        assert {line.split()[0] for line in view.evidence} == {first.peer, second.peer}
        judged(first, "public")
        shown = shoal("status", node=hidden).stdout
        assert view.sentence in shown
        assert shown.count("gives no answer") == 3

        # 2. Its advert follows: what would not answer is not in it any more.
        eventually(
            lambda: (view := view_of(asker, hidden)) and not view.addresses and view.devices,
            KNOWN_LIMIT_S,
            "the hidden node's advert names no address",
        )
        assert view_of(asker, first).addresses == (first.address.rpartition("/p2p/")[0],)

        # 3. It works for a requester that it is not linked to, and could not be dialled by.
        assert not view_of(asker, hidden).linked
        job, providers = run(asker, models.rows(3))
        assert (job.state, providers) == (JobState.DONE, {hidden.peer})
        assert "dialled a node that was introduced" in hidden.log_path.read_text()

        # 4. And has work of its own done.
        with asker.client() as client:
            client.resume("cpu")
        with hidden.client() as client:
            client.pause("cpu")
        job, providers = run(hidden, models.rows(3))
        assert (job.state, providers) == (JobState.DONE, {asker.peer}), why(hidden, job)


def test_two_nodes_that_cannot_be_dialled_are_told_that_nothing_connects_them():
    with on_small_internet() as (internet, daemons):
        first = daemons.start(internet.add_machine(), "--provide=false")
        asker = daemons.start(internet.add_machine(), listen="127.0.0.1", bootstrap=[first])
        hidden = daemons.start(internet.add_machine(), listen="127.0.0.1", bootstrap=[first])
        daemons.wait_ready()
        with asker.client() as client:
            client.pause("cpu")
        assert "listens on loopback only" in judged(asker, "private").sentence
        eventually(
            lambda: (view := view_of(asker, hidden)) and not view.addresses and view.devices,
            KNOWN_LIMIT_S,
            "the hidden node's advert names no address",
        )
        with asker.client() as client:
            job = client.submit(models.dense(), [{"x": models.rows(1)}])

            def answered():
                said, summary = client.why(job.id)
                verdicts = {answer.peer: answer.verdict for answer in said}
                return summary if hidden.peer in verdicts else None

            summary = eventually(answered, 60, "an answer of the hidden node")
            assert f"{hidden.peer} cannot be dialled and neither can this node" in summary
            client.cancel(job.id)
