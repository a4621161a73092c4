"""A long thin link between daemons on loopback: a proxy of TCP that delays and holds back.

Everything that goes through the ports of one `ShapedLink` shares its two directions. Each
sends so many bytes a second, and gives them on half a round trip later. What is sent
faster waits in front of it, in a bounded queue, and then in the sender's socket. There is
no loss: this stands above TCP, and a machine that loses packets must be had by netem.
"""

import math
import socket
import threading
from contextlib import contextmanager

import trio

PIECE_BYTES = 8 << 10
QUEUE_S = 0.02
"""How far ahead of the link's pace a connection may be, as in a router's short queue."""

PIECES_LIMIT = 2048
"""Of one connection's, on the way in one direction: more than the link itself holds."""

SOCKET_BYTES = 64 << 10
"""Of the proxy's own sockets, so that senders feel the link and not a cushion before it."""


class Direction:
    """One direction of a link.

    Attributes:
        bytes: What has gone through.
    """

    def __init__(self, link):
        self._link = link
        self._free_at_s = 0.0
        self.bytes = 0

    async def carry(self, source, sink):
        """Carry all that one connection sends, to its end."""
        giving, taking = trio.open_memory_channel(PIECES_LIMIT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._deliver, taking, sink)
            async with giving:
                while data := await source.receive_some(PIECE_BYTES):
                    now_s = trio.current_time()
                    pace_s = len(data) / self._link.bytes_per_s
                    self._free_at_s = max(now_s, self._free_at_s) + pace_s
                    self.bytes += len(data)
                    await giving.send((self._free_at_s + self._link.round_trip_s / 2, data))
                    await trio.sleep_until(self._free_at_s - QUEUE_S)

    async def _deliver(self, taking, sink):
        async for at_s, data in taking:
            await trio.sleep_until(at_s)
            await sink.send_all(data)
        await sink.send_eof()


class ShapedLink:
    """A link, and the proxied ports that it is between.

    Args:
        round_trip_s: Both ways together; may be set anew at any time.
        bits_per_s: Of each direction.
    """

    def __init__(self, round_trip_s, bits_per_s):
        self.round_trip_s = round_trip_s
        self.bytes_per_s = bits_per_s / 8
        self.there, self.back = Direction(self), Direction(self)
        self.connections = 0

    async def serve(self, listener, port):
        """Proxy what a listener takes in to a port of this machine, for ever."""

        async def answer(near):
            self.connections += 1
            near.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
            try:
                far = await trio.open_tcp_stream("127.0.0.1", port)
                far.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
                async with far, trio.open_nursery() as nursery:
                    nursery.start_soon(self.there.carry, near, far)
                    nursery.start_soon(self.back.carry, far, near)
            except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # one end went: so does the other

        await trio.serve_listeners(answer, [listener])


class Ports:
    """Has proxied ports served in a thread, while a test goes on in its own."""

    def __init__(self, link):
        self._link = link
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main,))

    def __enter__(self):
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_):
        trio.from_thread.run_sync(self._nursery.cancel_scope.cancel, trio_token=self._token)
        self._thread.join()

    def to(self, port):
        """A port that leads over the link to another."""
        [listener] = trio.from_thread.run(self._listen, port, trio_token=self._token)
        return listener.socket.getsockname()[1]

    async def _listen(self, port):
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self._nursery.start_soon(self._link.serve, listeners[0], port)
        return listeners

    async def _main(self):
        async with trio.open_nursery() as self._nursery:
            self._token = trio.lowlevel.current_trio_token()
            self._ready.set()
            await trio.sleep(math.inf)


@contextmanager
def shaped_link(round_trip_s, bits_per_s):
    """A link and its ports, gone at the end."""
    link = ShapedLink(round_trip_s, bits_per_s)
    with Ports(link) as ports:
        yield link, ports


def free_port():
    """A port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
