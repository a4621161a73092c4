"""What a private network costs: its cipher alone, and a stream in one and in the public one.

Both nodes run in this process, so that one core does the work of two; the two kinds of
network take turns, and each figure is the median. Prints a table.
"""

import statistics
import time

import trio

from shoal.crypto.identity import generate
from shoal.crypto.xsalsa20 import xsalsa20
from shoal.node.network import open_network
from shoal.node.private_network import PrivateNetwork
from shoal.node.swarm_key import make_key

SINK = "/bench/sink/1"
SIZE = 32 << 20
ROUNDS = 7
CONNECTS = 20


def cipher_rate(size):
    """MB/s of one key stream over pieces of ``size`` bytes."""
    add_stream, piece = xsalsa20(bytes(32), bytes(24)), bytes(size)
    count = (64 << 20) // size
    started = time.perf_counter()
    for _ in range(count):
        add_stream(piece)
    return count * size / (time.perf_counter() - started) / 1e6


async def swallow(stream):
    count = 0
    while data := await stream.receive_some(1 << 20):
        count += len(data)
    await stream.send_all(count.to_bytes(8))


async def measure(private):
    """MB/s over one stream, and the seconds that connecting takes."""
    networks = [PrivateNetwork(private) if private else None for _ in range(2)]
    connects = []
    async with open_network(generate(), ["/ip4/127.0.0.1/tcp/0"], networks[0]) as a:
        a.handle(SINK, swallow)
        async with open_network(generate(), [], networks[1]) as b:
            for _ in range(CONNECTS):
                started = time.perf_counter()
                await b.connect(a.peer_id, a.addresses(), 10)
                connects.append(time.perf_counter() - started)
                await b.disconnect(a.peer_id)
                while a.connected():
                    await a.next_change(a.connected())
            await b.connect(a.peer_id, a.addresses(), 10)
            stream = await b.open_stream(a.peer_id, SINK, 10)
            started = time.perf_counter()
            for _ in range(SIZE >> 20):
                await stream.send_all(bytes(1 << 20))
            await stream.aclose()
            assert int.from_bytes(await stream.receive_exactly(8)) == SIZE
            return SIZE / (time.perf_counter() - started) / 1e6, statistics.median(connects)


def main():
    key = make_key("bench")
    found = {None: [], key: []}
    for _ in range(ROUNDS):
        for each, figures in found.items():
            figures.append(trio.run(measure, each))
    print(f"{'':<28}{'stream':>12}{'connect':>12}")
    medians = {}
    for each, name in ((None, "public network"), (key, "private network")):
        rate, connect_s = (
            statistics.median(column) for column in zip(*found[each], strict=True)
        )
        medians[name] = rate, connect_s
        print(f"{name:<28}{rate:>7.1f} MB/s{connect_s * 1e3:>9.1f} ms")
    (rate, connect_s), (private_rate, private_connect_s) = medians.values()
    ratios = private_rate / rate, private_connect_s / connect_s
    print(f"{'private / public':<28}{ratios[0]:>12.2f}{ratios[1]:>12.2f}")
    for size in (4 << 10, 64 << 10, 256 << 10):
        print(f"cipher alone, {size >> 10:>3} KiB pieces {cipher_rate(size):>7.0f} MB/s")


if __name__ == "__main__":
    main()
