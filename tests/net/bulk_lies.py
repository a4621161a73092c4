"""What a server of blobs can do wrong on a bulk channel.

Each of `LIES` is called in a node's serving thread with the channel's wire, a request and the
blob's bytes, once for each request; `honestly` is what they should do.
"""

import fcntl
import os
import termios
import time
from contextlib import suppress

from shoal.crypto.content import CHUNK_SIZE_BYTES
from shoal.node.bulk import wire as wires
from shoal.protocol.channel_messages import ChunksGiven, ListGiven

SHORT_S = 0.5
"""A bound on how long something may take, for tests that lower it so far."""


def chunk_of(data, index):
    return data[index * CHUNK_SIZE_BYTES : (index + 1) * CHUNK_SIZE_BYTES]


def honestly(wire, request, data, until=None):
    """Answer a request for chunks as an honest server would, up to a chunk."""
    wire.send(ChunksGiven(first=request.first, count=request.count))
    for index in range(request.first, request.first + request.count)[:until]:
        wire.send_bytes(memoryview(chunk_of(data, index)))


def until_arrived(sock):
    """Wait until the peer's kernel has all: closing with requests unread throws it away.

    Where the peer has reset the connection, what it did not take is counted for ever.
    """
    with suppress(OSError):  # the peer has left
        while any(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4))):
            sock.getpeername()
            time.sleep(0.001)


def sends_a_wrong_chunk(wire, request, data):
    honestly(wire, request, data, 3)
    wire.send_bytes(memoryview(bytes(CHUNK_SIZE_BYTES)))
    honestly(wire, request, data)


def sends_too_many_bytes(wire, request, data):
    honestly(wire, request, data)
    wire.send_bytes(memoryview(bytes(100)))


def sends_too_few_and_the_next_answer(wire, request, data):
    honestly(wire, request, data, 3)
    wire.send_bytes(memoryview(chunk_of(data, request.first + 3)[:-100]))
    honestly(wire, request, data)


def sends_too_few_and_says_goodbye(wire, request, data):
    honestly(wire, request, data, 3)
    wire.send_bytes(memoryview(chunk_of(data, request.first + 3)[:-100]))
    with suppress(OSError):  # the other side has asked for more by then
        wire.sock.unwrap()
    until_arrived(wire.sock)


def sends_too_few_and_no_more(wire, request, data):
    honestly(wire, request, data, 3)
    time.sleep(3 * SHORT_S)


def sends_nothing(_wire, _request, _data):
    time.sleep(3 * SHORT_S)


def sends_a_byte_now_and_then(wire, request, _data):
    wire.send(ChunksGiven(first=request.first, count=request.count))
    for _ in range(100):
        wire.send_bytes(memoryview(b"x"))
        time.sleep(SHORT_S / 10)


def sends_garbage(wire, _request, _data):
    wire.send_bytes(memoryview(os.urandom(400)))


def sends_a_message_that_is_none(wire, _request, _data):
    wire.send_bytes(memoryview(b"\0\0\0\3abc"))


def sends_other_chunks(wire, request, _data):
    wire.send(ChunksGiven(first=request.first + 1, count=1))


def sends_a_list(wire, _request, _data):
    wire.send(ListGiven(list_bytes=8))


def closes_at_every_chunk(wire, request, data):
    honestly(wire, request, data, 1)
    until_arrived(wire.sock)
    wires.shut(wire.sock)


LIES = (
    (sends_a_wrong_chunk, "bad_blob"),
    (sends_too_many_bytes, "bad_frame"),
    (sends_too_few_and_the_next_answer, "bad_blob"),
    (sends_too_few_and_says_goodbye, "bad_frame"),
    (sends_too_few_and_no_more, "slow_frame"),
    (sends_nothing, "slow_frame"),
    (sends_a_byte_now_and_then, "slow_frame"),
    (sends_garbage, "bad_frame"),
    (sends_a_message_that_is_none, "bad_frame"),
    (sends_other_chunks, "bad_frame"),
    (sends_a_list, "bad_frame"),
)
"""What no honest server does, and which offence it is. To close at every chunk is none."""
