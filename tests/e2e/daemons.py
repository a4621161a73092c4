"""What the end-to-end tests share: the command line as a user has it, and waiting."""

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass

import commands

SHOAL = commands.SHOAL


@dataclass(frozen=True)
class Ended:
    """What a command printed and how it ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self):
        return json.loads(self.stdout)


def shoal(*arguments, node=None, timeout_s=60):
    """Run a command; ``node`` is whose daemon it talks to."""
    home = [] if node is None else [f"--home={node.home}"]
    done = commands.run(
        [*arguments, *home], environment=clean_environment(), timeout_s=timeout_s
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def clean_environment():
    """The environment without what a user has set for a daemon of their own.

    Daemons do not step back for the tests, nor for whatever else runs beside them, and
    do not look for others on this machine's networks.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SHOAL_")}
    return kept | {"SHOAL_STEP_BACK": "off", "SHOAL_NICENESS": "5", "SHOAL_LAN": "no"}


def curl(node, *arguments):
    """Give curl's status and body."""
    done = subprocess.run(
        ["curl", "-sS", "-w", "\n%{http_code}", "--unix-socket", node.socket, *arguments],
        capture_output=True,
        timeout=60,
        check=True,
    )
    body, _, code = done.stdout.rpartition(b"\n")
    return int(code), body


def eventually(condition, limit_s, what=""):
    """Wait until ``condition`` gives something true, and give that; fail at the limit.

    Looking costs the daemon too, so what takes longer is looked for less often.
    """
    began = time.monotonic()
    while not (found := condition()):
        waited_s = time.monotonic() - began
        assert waited_s < limit_s, f"not within {limit_s} s: {what or condition}"
        time.sleep(min(0.1, max(0.02, waited_s / 20)))
    return found


def listed(node):
    """The peers that ``shoal peers --json`` lists."""
    ended = shoal("peers", "--json", node=node)
    assert ended.code == 0, ended
    return {view["peer"] for view in ended.json["peers"]}


def peers_of(node):
    """The same by the local API, for quick polling."""
    with node.client() as client:
        return {view.peer for view in client.peers()}


def mend(swarm):
    """Bring a swarm that a test has hurt back to what it was: all up and acquainted.

    Adverts of peers that a test made up may live on in it for some seconds.
    """
    for node in swarm.nodes:
        if node.running:
            node.signal(signal.SIGCONT)
        else:
            swarm.start(node)
            swarm.wait_ready(node)
    swarm.wait_acquainted(timeout_s=60)
