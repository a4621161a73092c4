"""A large blob from one daemon to another, beside what carries bytes and does nothing else.

shoal has two daemons as processes on loopback. One submits a unit with an input of 1 GiB,
the other fetches it: the clock runs from when its partial file appears to when the blob
is held, with each chunk's hash checked and the file synced. What the disk takes of one
thread that does nothing else is told beside it.

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
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import environments

ROUNDS = 5
MIB = 1024
SLOW_MIB = 128
"""In one turn of the peers that take seconds for it: their rate does not grow with more."""

PIECE = 1 << 20
LIMIT_S = 300.0
TARGETS = {"py-libp2p": 6.0, "lattica": 3.0, "bare TLS": 0.6}


# --- two daemons ------------------------------------------------------------------------


@contextmanager
def shoal():
    """Two daemons; a turn is one blob."""
    import numpy as np
    from two_daemons import fetched, two_daemons

    with two_daemons(Path(tempfile.gettempdir())) as pair:
        data = np.random.default_rng(7).integers(0, 255, MIB << 20, np.uint8)
        serial = time.time_ns()

        def turn(mib):
            nonlocal serial
            serial += 1
            array = data[: mib << 20].view(np.float32)
            array[:2].view(np.int64)[0] = serial  # another blob each time
            return fetched(pair, array)

        yield turn


# --- peers: a giver as a process, and a taker here --------------------------------------


@contextmanager
def giver(name, *arguments):
    """Another process that gives; yields the words of the line that it says first."""
    command = [sys.executable, __file__, "--give", name, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().split()
    finally:
        process.kill()
        process.wait()


def by_trio(taken):
    """A turn that runs `taken(size)` on Trio and gives its seconds."""
    import trio

    async def timed(mib):
        began = time.perf_counter()
        await taken(mib << 20)
        return time.perf_counter() - began

    return lambda mib: trio.run(timed, mib)


async def take_bare(stream, size):
    await stream.send_all(size.to_bytes(8))
    while size:
        size -= len(await stream.receive_some(PIECE))


async def give_bare(stream):
    size = int.from_bytes(await stream.receive_some(8))
    piece = memoryview(os.urandom(PIECE))
    while size:
        await stream.send_all(piece[:size])
        size -= min(size, PIECE)
    await stream.receive_some(1)


@contextmanager
def tcp():
    import trio

    with giver("tcp") as (port,):

        async def taken(size):
            async with await trio.open_tcp_stream("127.0.0.1", int(port)) as stream:
                await take_bare(stream, size)

        yield by_trio(taken)


async def give_tcp():
    import trio

    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(listener.socket.getsockname()[1], flush=True)
    await trio.serve_listeners(give_bare, [listener])


@contextmanager
def tls():
    import trio

    from shoal.node.bulk.certificates import context, make_certificate

    own = make_certificate()
    with giver("tls", own.der.hex()) as (port, theirs):
        ours = context(own, bytes.fromhex(theirs), server=False)

        async def taken(size):
            plain = await trio.open_tcp_stream("127.0.0.1", int(port))
            async with trio.SSLStream(plain, ours, https_compatible=True) as stream:
                await take_bare(stream, size)

        yield by_trio(taken)


async def give_tls(theirs):
    import trio

    from shoal.node.bulk.certificates import context, make_certificate

    own = make_certificate()
    ours = context(own, bytes.fromhex(theirs), server=True)
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(listener.socket.getsockname()[1], own.der.hex(), flush=True)

    async def give(plain):
        stream = trio.SSLStream(plain, ours, server_side=True, https_compatible=True)
        with suppress(trio.BrokenResourceError):
            await give_bare(stream)
        await trio.aclose_forcefully(stream)

    await trio.serve_listeners(give, [listener])


LIBP2P_PROTOCOL = "/bench/1"


@contextmanager
def libp2p():
    from libp2p import new_host
    from libp2p.peer.peerinfo import info_from_p2p_addr
    from multiaddr import Multiaddr

    with giver("py-libp2p") as (address,):
        import trio

        async def taken(mib):
            host, peer = new_host(), info_from_p2p_addr(Multiaddr(address))
            async with host.run(listen_addrs=[]):
                await host.connect(peer)
                stream = await host.new_stream(peer.peer_id, [LIBP2P_PROTOCOL])
                began, size = time.perf_counter(), mib << 20
                await stream.write(size.to_bytes(8))
                while size:
                    size -= len(await stream.read(min(size, PIECE)))
                return time.perf_counter() - began

        yield lambda mib: trio.run(taken, mib)


async def give_libp2p():
    import trio
    from libp2p import new_host
    from multiaddr import Multiaddr

    host = new_host()
    piece = os.urandom(PIECE)

    async def give(stream):
        size = int.from_bytes(await stream.read(8))
        while size:
            await stream.write(piece[:size])
            size -= min(size, PIECE)
        await trio.sleep(1)

    async with host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        host.set_stream_handler(LIBP2P_PROTOCOL, give)
        print(host.get_addrs()[0], flush=True)
        await trio.sleep_forever()


def lattica_at(bootstraps):
    """A node of lattica's on a free port of TCP; gives its address with it."""
    from lattica import ConnectionHandler, Lattica, rpc_stream_iter

    class Giving(ConnectionHandler):
        @rpc_stream_iter
        def give(self, pieces: int):
            piece = os.urandom(PIECE)
            for _ in range(pieces):
                yield piece

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = f"/ip4/127.0.0.1/tcp/{probe.getsockname()[1]}"
    builder = Lattica.builder().with_listen_addrs([place]).with_mdns(False).with_upnp(False)
    if bootstraps:
        builder = builder.with_bootstraps(bootstraps)
    node = builder.build()
    return node, Giving(node), f"{place}/p2p/{node.peer_id()}"


@contextmanager
def lattica():
    with giver("lattica") as (address,):
        _node, service, _ = lattica_at([address])
        time.sleep(2)  # it says of nothing when it is connected
        stub = service.get_stub(address.rpartition("/")[2])

        def turn(mib):
            began = time.perf_counter()
            got = sum(map(len, stub.give(mib)))
            assert got >= mib << 20, f"{got} bytes"
            return time.perf_counter() - began

        yield turn


def give_lattica():
    kept = lattica_at([])
    print(kept[-1], flush=True)
    time.sleep(LIMIT_S * 10)


# --- turns ------------------------------------------------------------------------------

CONTESTANTS = {
    "shoal": shoal,
    "py-libp2p": libp2p,
    "lattica": lattica,
    "bare TCP": tcp,
    "bare TLS": tls,
}
GIVERS = {"tcp": give_tcp, "tls": give_tls, "py-libp2p": give_libp2p}
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

    @property
    def rate(self):
        """The median, in MB/s; 0 for none."""
        return statistics.median(self.rates) if self.rates else 0.0

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


def disk_rate(mib):
    """MB/s that the disk takes, written and synced by one thread that does nothing else."""
    piece = os.urandom(PIECE)
    with tempfile.TemporaryFile() as file:
        began = time.perf_counter()
        for _ in range(mib):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        return (mib << 20) / (time.perf_counter() - began) / 1e6


def main(names, rounds, mib):
    """Print the table; whether all was measured and the targets are met."""
    up, disk, loads = [], [], []
    try:
        for name in names:
            up += [Contestant(name, min(mib, SLOW_MIB) if name in SLOW else mib)]
        for _ in range(rounds):
            for one in up:
                one.turn()
            disk.append(disk_rate(mib))
            loads.append(os.getloadavg()[0])
    finally:
        for one in up:
            one.end()
    print(
        f"{mib} MiB on loopback, medians of {rounds} turns; {os.cpu_count()} cores, load",
        end="",
    )
    print(f" {min(loads):.0f} to {max(loads):.0f}")
    found = {one.name: one for one in up}
    ours = found.get("shoal")
    compared = ours is not None and not ours.failed
    print(f"  {'':16s}{'MB/s':>7s}  {'least, most':>13s}{'shoal is':>11s}")
    for one in up:
        if one.failed:
            print(f"  {one.name:16s}  {one.failed}")
            continue
        spread = f"{min(one.rates):.0f}, {max(one.rates):.0f}"
        ratio = f"{ours.rate / one.rate:9.2f} x" if compared else ""
        print(f"  {one.name:16s}{one.rate:7.0f}  {spread:>13s}{ratio}")
    print(f"  {'the disk alone':16s}{statistics.median(disk):7.0f}")
    good = all(not one.failed for one in up)
    for name, limit in TARGETS.items():
        other = found.get(name)
        if not compared or other is None or other.failed:
            continue
        met = ours.rate >= limit * other.rate
        says = "met" if met else f"MISSED by {1 - ours.rate / (limit * other.rate):.0%}"
        print(f"  target: >= {limit:g} x {name}: {says}")
        good = good and met
    return good


if __name__ == "__main__":
    given = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    given.add_argument("--rounds", type=int, default=ROUNDS)
    given.add_argument("--mib", type=int, default=MIB)
    given.add_argument("--only", choices=CONTESTANTS, action="append")
    given.add_argument("--inside", choices=CONTESTANTS, help=argparse.SUPPRESS)
    given.add_argument("--give", nargs="+", help=argparse.SUPPRESS)
    asked = given.parse_args()
    if asked.inside:
        inside(asked.inside)
    elif asked.give == ["lattica"]:
        give_lattica()
    elif asked.give:
        import trio

        trio.run(GIVERS[asked.give[0]], *asked.give[1:])
    else:
        sys.exit(not main(asked.only or list(CONTESTANTS), asked.rounds, asked.mib))
