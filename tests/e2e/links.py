"""Machines of a test's own: network namespaces on one link, which can be cut. Needs root."""

import os
import subprocess
from contextlib import contextmanager

import pytest

from shoal.node.demo.swarm import Swarm


class Link:
    """Network namespaces that share a bridge, each with an address ``10.79.0.N``."""

    def __init__(self, count):
        self.names = [f"shoal{os.getpid()}x{number}" for number in range(1, count + 1)]
        self.hosts = [f"10.79.0.{number}" for number in range(1, count + 1)]
        self._middle = f"shoal{os.getpid()}x0"

    def open(self):
        for name in (self._middle, *self.names):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", self._middle, "link", "add", "br0", "type", "bridge")
        ip("-n", self._middle, "link", "set", "br0", "up")
        for number, (name, host) in enumerate(zip(self.names, self.hosts, strict=True)):
            pair = ("type", "veth", "peer", "up0", "netns", name)
            ip("-n", self._middle, "link", "add", f"to{number}", *pair)
            ip("-n", self._middle, "link", "set", f"to{number}", "master", "br0", "up")
            ip("-n", name, "addr", "add", f"{host}/24", "dev", "up0")
            ip("-n", name, "link", "set", "up0", "up")

    def cut(self, number):
        """Packets of one namespace are lost from now on, as when a switch dies."""
        ip("-n", self._middle, "link", "set", f"to{number}", "nomaster")

    def mend(self, number):
        ip("-n", self._middle, "link", "set", f"to{number}", "master", "br0")

    def inside(self, number):
        """What a command is run by, to run in one namespace."""
        return ("ip", "netns", "exec", self.names[number])

    def close(self):
        for name in (*self.names, self._middle):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def link_or_none(count):
    """A link; None where namespaces are not to be had."""
    link = Link(count)
    try:
        link.open()
    except (OSError, subprocess.CalledProcessError):
        link.close()
        yield None
        return
    try:
        yield link
    finally:
        link.close()


@contextmanager
def link_or_skip(count):
    """A link; without one the test is skipped, and says why."""
    with link_or_none(count) as link:
        if link is None:
            pytest.skip("network namespaces are not to be had: root and iproute2 are needed")
        yield link


class Machines(Swarm):
    """Daemons that are told of nobody, each on a machine of its own."""

    def __init__(self, link, count=3):
        super().__init__(count, settings=["--provide=no", "--lan=yes"])
        self.link = link

    def _before(self, node):
        return self.link.inside(node.number - 1)

    def _listen(self, node):
        return "/ip4/0.0.0.0/tcp/4711"

    def _bootstrap(self, node):
        return ()


def lan_state(node):
    """What a daemon does on its local network."""
    with node.client() as client:
        return client.status().joining.lan


def near(node):
    """The peers that a daemon has heard of on its local network."""
    with node.client() as client:
        seeds = client.status().joining.seeds
    return {seed.peer for seed in seeds if seed.source == "lan"}
