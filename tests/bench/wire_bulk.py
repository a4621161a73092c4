"""A large blob from one daemon to another, beside what carries bytes and does nothing else.

shoal has two daemons as processes on loopback. One submits a unit with an input of 1 GiB,
the other fetches it: the clock runs from when its partial file appears to when the blob
is held, with each chunk's hash checked and the file synced. Two more have their homes in
memory (/dev/shm), where no disk is waited for. What disk and memory take of one thread that
does nothing else but write a file of that size is told beside both. A target that is
more than the disk takes is held against the two in memory.

Beside it, each also between two processes on loopback and to nowhere: a bare stream of
py-libp2p (default muxer and security), an iterated stream of lattica's, bare TCP of Trio's,
and bare TLS over that (`trio.SSLStream`, with the bulk channel's certificates). All are up
at once and take turns, so that what else the machine does weighs on each alike; figures
are medians. Prints a table. lattica is installed into an environment of its own.

    python tests/bench/wire_bulk.py [--rounds 5] [--mib 1024] [--only NAME …]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import carriers
import environments

ROUNDS = 5
MIB = 1024
SLOW_MIB = 128
"""In one turn of the peers that take seconds for it: their rate does not grow with more."""

PIECE = 1 << 20
TARGETS = {"py-libp2p": 6.0, "lattica": 3.0, "bare TLS": 0.6}


# --- two daemons ------------------------------------------------------------------------


@contextmanager
def shoal(root):
    """Two daemons with homes under ``root``; a turn is one blob."""
    import numpy as np
    from two_daemons import fetched, two_daemons

    with two_daemons(root, quota="2GiB") as pair:
        data = np.random.default_rng(7).integers(0, 255, MIB << 20, np.uint8)
        serial = time.time_ns()

        def turn(mib):
            nonlocal serial
            serial += 1
            array = data[: mib << 20].view(np.float32)
            array[:2].view(np.int64)[0] = serial  # another blob each time
            return fetched(pair, array)

        yield turn


# --- turns ------------------------------------------------------------------------------

PLACES = {"shoal": Path(tempfile.gettempdir()), "shoal in memory": Path("/dev/shm")}
CONTESTANTS = {
    **{name: partial(shoal, root) for name, root in PLACES.items()},
    "py-libp2p": carriers.libp2p,
    "lattica": carriers.lattica,
    "bare TCP": carriers.tcp,
    "bare TLS": carriers.tls,
}
SLOW = ("py-libp2p", "lattica")


def inside(name):
    """Serve turns: MiB come in on one line, the seconds go out on another."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a peer prints is no answer
    with CONTESTANTS[name]() as turn:
        turn(16)
        print("ready", file=out)
        for line in sys.stdin:
            print(json.dumps(turn(int(line))), file=out)


class Contestant:
    """A process of its own, which is given turns."""

    def __init__(self, name, mib):
        self.name, self.mib = name, mib
        self.rates = []
        self.failed = ""
        try:
            python = environments.python_with("lattica") if name == "lattica" else None
        except LookupError as error:
            self.failed = f"cannot be had here: {error}"
            return
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed at the end
        self._process = subprocess.Popen(
            [python or sys.executable, __file__, "--inside", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        if self._process.stdout.readline() != "ready\n":
            self._fail()

    def turn(self):
        """Let it carry its bytes once."""
        if self.failed:
            return
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{self.mib}\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if answer:
            self.rates.append((self.mib << 20) / json.loads(answer) / 1e6)
        else:
            self._fail()

    def end(self):
        """Close its input, at which it ends in order."""
        if not hasattr(self, "_process"):
            return
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()

    def _fail(self):
        self._said.seek(0)
        self.failed = f"failed: {' | '.join(self._said.read().splitlines()[-3:])}"


def alone(root, mib):
    """MB/s that one thread writes and syncs there which does nothing else."""
    piece = os.urandom(PIECE)
    with tempfile.TemporaryFile(dir=root, buffering=0) as file:
        began = time.perf_counter()
        for _ in range(mib):
            file.write(piece)
        os.fsync(file.fileno())
        return (mib << 20) / (time.perf_counter() - began) / 1e6


def main(names, rounds, mib):
    """Print the table; whether all was measured and the targets are met."""
    up, loads = [], []
    beside = {name: [] for name in PLACES if name in names}
    try:
        for name in names:
            up += [Contestant(name, min(mib, SLOW_MIB) if name in SLOW else mib)]
        for _ in range(rounds):
            for one in up:
                one.turn()
            for name, rates in beside.items():
                rates.append(alone(PLACES[name], mib))
            loads.append(os.getloadavg()[0])
    finally:
        for one in up:
            one.end()
    print(f"{mib} MiB on loopback, medians of {rounds} turns; {os.cpu_count()} cores, ", end="")
    print(f"load {min(loads):.0f} to {max(loads):.0f}")
    failed = [one for one in up if one.failed]
    rates = {one.name: one.rates for one in up if not one.failed}
    rates |= {f"a file beside {name}": found for name, found in beside.items()}
    medians = {name: statistics.median(found) for name, found in rates.items()}
    ours = [name for name in PLACES if name in medians]
    print(f"  {'':30s}{'MB/s':>6s}  {'least, most':>11s}", end="")
    print("".join(f"{f'{name} is':>20s}" for name in ours))
    for name, rate in medians.items():
        spread = f"{min(rates[name]):.0f}, {max(rates[name]):.0f}"
        ratios = "".join(f"{medians[own] / rate:18.2f} x" for own in ours)
        print(f"  {name:30s}{rate:6.0f}  {spread:>11s}{ratios}")
    for one in failed:
        print(f"  {one.name:30s}  {one.failed}")
    met = [told(name, medians) for name in TARGETS if name in medians and ours]
    return not failed and all(met)


def told(name, medians):
    """Print how a target is met; whether it is."""
    limit = TARGETS[name]
    wanted = limit * medians[name]
    print(f"  target: >= {limit:g} x {name}, which is {wanted:.0f} MB/s")
    met = False
    for own in PLACES:
        if own not in medians:
            continue
        met = medians[own] >= wanted
        says = "met" if met else f"MISSED by {1 - medians[own] / wanted:.0%}"
        possible = wanted <= medians[f"a file beside {own}"]
        print(f"    {own}: {says}{'' if possible else '; a file alone is slower than that'}")
        if met or possible:
            break
    return met


if __name__ == "__main__":
    given = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    given.add_argument("--rounds", type=int, default=ROUNDS)
    given.add_argument("--mib", type=int, default=MIB)
    given.add_argument("--only", choices=CONTESTANTS, action="append")
    given.add_argument("--inside", choices=CONTESTANTS, help=argparse.SUPPRESS)
    asked = given.parse_args()
    if asked.inside:
        inside(asked.inside)
    else:
        sys.exit(not main(asked.only or list(CONTESTANTS), asked.rounds, asked.mib))
