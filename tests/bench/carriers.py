"""Carriers of bytes between two processes on loopback, to nowhere: what shoal is beside.

Each is a context manager that starts another process, which gives, and yields a turn: a
function that takes so many MiB here and tells the seconds. The other process is this file::

    python tests/bench/carriers.py NAME …
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

PIECE = 1 << 20
LIMIT_S = 3000.0


@contextmanager
def giver(name, *arguments):
    """Another process that gives; yields the words of the line that it says first."""
    command = [sys.executable, __file__, name, *arguments]
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
    time.sleep(LIMIT_S)


GIVERS = {"tcp": give_tcp, "tls": give_tls, "py-libp2p": give_libp2p}

if __name__ == "__main__":
    wanted, *rest = sys.argv[1:]
    if wanted == "lattica":  # it has no loop that is ours
        give_lattica()
    else:
        import trio

        trio.run(GIVERS[wanted], *rest)
