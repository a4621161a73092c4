"""Machines of a small internet, each a network namespace of its own behind one router.

Made without root too, where the system lets users have namespaces. The processes
that hold the namespaces end with the test.
"""

import os
import subprocess
from contextlib import contextmanager

ADDRESS_RANGES = ("198.51.100", "203.0.113", "192.0.2", "198.18.7", "198.18.9")
"""Of each machine's own network: documentation and benchmark ranges, which nobody has."""


class Internet:
    """A router, and machines that reach each other through it."""

    def __init__(self):
        self._holders = []
        self._router = self._hold(first=True)
        self._run(self._router, "sysctl -q -w net.ipv4.ip_forward=1")

    def add_machine(self, *more_addresses):
        """A machine with one address on the internet, and ``more_addresses`` that are not."""
        number = len(self._holders)
        network = ADDRESS_RANGES[number - 1]
        holder = self._hold()
        inside = f"nsenter --net=/proc/{holder.pid}/ns/net"
        for command in (
            f"ip link add to{number} type veth peer name eth0 netns {holder.pid}",
            f"ip address add {network}.1/24 dev to{number}",
            f"ip link set to{number} up",
            f"{inside} ip address add {network}.7/24 dev eth0",
            f"{inside} ip link set eth0 up",
            f"{inside} ip link set lo up",
            f"{inside} ip route add default via {network}.1",
            *(f"{inside} ip address add {more}/32 dev lo" for more in more_addresses),
        ):
            self._run(self._router, command)
        return Machine(f"{network}.7", self._enter(holder))

    def block(self, machine, port):
        """Let nothing leave ``port``, as a firewall would: who dials it gets no answer."""
        rule = f"ip rule add priority 10 ipproto tcp sport {port} blackhole"
        subprocess.run([*machine.enter, *rule.split()], check=True, capture_output=True)

    def end(self):
        for holder in self._holders:
            holder.kill()
            holder.wait()

    def _hold(self, *, first=False):
        users = ["--user", "--map-root-user"] if os.geteuid() and first else []
        enter = [] if first or not os.geteuid() else self._enter(self._router)
        holder = subprocess.Popen(
            [*enter, "unshare", *users, "--net", "sh", "-c", "echo held; exec sleep 600"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._holders.append(holder)
        if holder.stdout.readline() != "held\n":
            raise OSError(holder.stderr.read())
        return holder

    def _enter(self, holder):
        users = ["--user", "--preserve-credentials"] if os.geteuid() else []
        return ["nsenter", f"--target={holder.pid}", *users, "--net"]

    def _run(self, holder, command):
        subprocess.run(
            [*self._enter(holder), *command.split()],
            check=True,
            capture_output=True,
            timeout=10,
        )


class Machine:
    """Where its daemon is seen to come from, and the command that runs something there."""

    def __init__(self, ip, enter):
        self.ip, self.enter = ip, enter


@contextmanager
def small_internet():
    """Raises OSError where this system has no namespaces for us."""
    internet = Internet.__new__(Internet)
    internet._holders = []
    try:
        internet.__init__()
        yield internet
    finally:
        internet.end()
