"""Yamux, as a peer that keeps no rules cannot break it: bounded, cut, and never blocked.

What a peer sends is read here frame by frame, by our own loop: the stock one
takes more than the window it gave, opens whatever is asked for, and goes on after
frames that it does not understand. A peer that breaks a rule of the muxer is
named (`admission.Breach`) and its connection ends; nothing is mended.

Specification: https://github.com/hashicorp/yamux/blob/master/spec.md
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, ClassVar

import structlog
import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.utils import read_exactly
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.stream_muxer.yamux.yamux import (
    DEFAULT_WINDOW_SIZE,
    FLAG_ACK,
    FLAG_FIN,
    FLAG_RST,
    FLAG_SYN,
    GO_AWAY_NORMAL,
    HEADER_SIZE,
    TYPE_DATA,
    TYPE_GO_AWAY,
    TYPE_PING,
    TYPE_WINDOW_UPDATE,
    YAMUX_HEADER_FORMAT,
    Yamux,
    YamuxStream,
)

from shoal.node import admission
from shoal.node.admission import Breach, Bucket

if TYPE_CHECKING:
    from collections.abc import Callable

    from libp2p.abc import IMuxedConn, ISecureConn
    from libp2p.peer.id import ID

    from shoal.node.libp2p_compat.transport import BufferedTCPStream

log = structlog.get_logger()

MAX_FRAME_PAYLOAD_BYTES = 65519 - HEADER_SIZE
"""Of one yamux frame: with its header it fits one Noise message (65535 less the tag)."""

FRAME_LIMIT_S = 10.0
"""A frame that is not taken by then never will be; its connection is cut. As in go-yamux."""

CREDIT_STEP_BYTES = 32 << 10
"""For a stream of small messages: an eighth of the window that it begins with, so that a
large one among them has to wait no longer than elsewhere."""

_TURN_FRAMES = 64
"""Frames read before other tasks get a turn: about a millisecond."""


class BreachError(Exception):
    """A peer broke a rule of the muxer."""

    def __init__(self, breach: Breach) -> None:
        super().__init__(breach.value)
        self.breach = breach


class SafeStream(YamuxStream):
    """A stream that waits for credit by an event, and grows its window to a limit.

    Attributes:
        credit_step_bytes: How much has to be read before the peer gets credit for it. The
            base class gives it at each read, by a frame that goes out before what was read
            is given out: for small messages that come one by one, see `CREDIT_STEP_BYTES`.
        abandoned_since_s: Since when nobody here reads or writes it any more, while
            the peer has not closed its side.
    """

    abandoned_since_s: float | None = None
    credit_step_bytes: int = 0
    _credit_came: trio.Event | None = None

    async def write(self, data: bytes) -> None:
        """Send ``data``; a cancelled or failed one leaves some of it sent.

        Raises:
            MuxedStreamError: The stream has ended, or the peer read nothing for
                `admission.WRITE_STALL_LIMIT_S`.
        """
        rest = memoryview(data)
        while rest:
            size = await self._credit(min(len(rest), MAX_FRAME_PAYLOAD_BYTES))
            header = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_DATA, 0, self.stream_id, size)
            await self.conn._write_frame(b"".join((header, rest[:size])))  # noqa: SLF001
            rest = rest[size:]

    async def _credit(self, wanted: int) -> int:
        """Wait until the peer has room, and take up to ``wanted`` bytes of it."""
        with trio.move_on_after(admission.WRITE_STALL_LIMIT_S):
            while not self.closed and not self.send_closed:
                if self.send_window > 0:
                    size = min(wanted, self.send_window)
                    self.send_window -= size
                    return size
                if self._credit_came is None:
                    self._credit_came = trio.Event()
                await self._credit_came.wait()
            raise MuxedStreamError("the stream is closed for sending")
        message = f"the peer read nothing for {admission.WRITE_STALL_LIMIT_S:.0f} s"
        raise MuxedStreamError(message)

    def wake_writers(self) -> None:
        """Let who waits for credit look again."""
        if self._credit_came is not None:
            self._credit_came.set()
            self._credit_came = None

    async def _auto_tune_and_send_window_update(self, *, bytes_read: int = 0) -> None:
        there = self.recv_window + len(self.conn.stream_buffers.get(self.stream_id, b""))
        if self.target_recv_window - there >= self.credit_step_bytes:
            await super()._auto_tune_and_send_window_update(bytes_read=bytes_read)

    def _apply_autotune_epoch(self, buffered: int) -> int:
        if 2 * self.target_recv_window > admission.STREAM_WINDOW_LIMIT_BYTES:
            return 0
        return super()._apply_autotune_epoch(buffered)


class SafeYamux(Yamux):
    """Yamux that survives a cancelled caller, a peer that hangs, and one that floods.

    `connections.secure` sets what is known of the connection before it is started.

    Attributes:
        tcp: What it runs over.
        place: Where the peer is, for the limits.
        used_s: When a stream of shoal's was last opened on it, or when it began.
        report: Told of a breach of the peer's, before the connection ends by it.
    """

    tcp: BufferedTCPStream
    _rtt: float | None
    place: str = ""
    used_s: float = 0.0
    report: Callable[[Breach], None]
    _own_openings: Bucket | None = None
    streams: dict[int, SafeStream]

    # -- what we send --

    async def _write_frame(self, data: bytes) -> None:
        """Write a whole frame or none of it.

        Half a frame leaves Noise's counters apart and kills the connection with
        every stream on it. So cancellation counts only while waiting for the
        turn to write; then the frame goes out, for `FRAME_LIMIT_S` at most.
        """
        async with self._write_lock:
            with trio.move_on_after(FRAME_LIMIT_S, shield=True) as limit:
                await self.secured_conn.write(data)
            if limit.cancelled_caught:
                with trio.CancelScope(shield=True):
                    await self.secured_conn.close()
                message = f"the peer took no data for {FRAME_LIMIT_S:.0f} s"
                raise ConnectionClosedError(message)
        await trio.lowlevel.checkpoint()

    async def open_stream(self) -> SafeStream:
        """Open a stream; refuse, where the base class would wait, when 256 are open.

        It waits where this node opens them faster than a peer takes: many small blobs
        over a fast link would look like a flood there.
        """
        await self._wait_to_open()
        if self.stream_backlog_semaphore.value == 0:
            message = f"{self.stream_backlog_limit} streams to this peer are open already"
            raise MuxedStreamError(message)
        if self.event_shutting_down.is_set():
            raise MuxedStreamError("the connection has ended")
        self.stream_backlog_semaphore.acquire_nowait()
        stream = self._add(self.next_stream_id, is_ours=True)
        stream._owns_backlog_slot = True  # noqa: SLF001
        self.next_stream_id += 2
        try:
            with trio.CancelScope(shield=True):  # bounded by FRAME_LIMIT_S
                await self._say(stream.stream_id, FLAG_SYN)
        except Exception as error:
            self._finalize_stream_locked(stream, fully_closed=True)
            raise MuxedStreamError("the connection takes no new stream") from error
        return stream

    async def _wait_to_open(self) -> None:
        now_s = trio.current_time()
        if self._own_openings is None:
            self._own_openings = Bucket(
                admission.OWN_STREAMS_PER_S, admission.OWN_STREAMS_BURST, now_s
            )
        pause_s = self._own_openings.wait_s(now_s)
        while pause_s > 0.0:  # others that waited may have been before
            await trio.sleep(pause_s)
            pause_s = self._own_openings.wait_s(trio.current_time())

    async def close(self, error_code: int = GO_AWAY_NORMAL) -> None:
        """Close at once: the socket first, so that no frame stuck in it is waited for."""
        ended = list(self.streams.values())
        await self.secured_conn.close()
        await super().close(error_code)
        for stream in ended:
            stream.wake_writers()

    async def _cleanup_on_error(self) -> None:
        ended = list(self.streams.values())
        await super()._cleanup_on_error()
        for stream in ended:
            stream.wake_writers()

    def abort(self) -> None:
        """End it without a word, where no task of the connection's runs any more.

        Whoever waits for one of its streams learns that it is over.
        """
        self.on_close = None
        self.event_shutting_down.set()
        self.event_closed.set()
        self.new_stream_send_channel.close()
        self.tcp.stream.socket.close()
        for stream in self.streams.values():
            stream.closed = stream.send_closed = stream.recv_closed = True
            stream.reset_received = True
            self.stream_events[stream.stream_id].set()
            stream.wake_writers()
        for table in (self.streams, self.stream_buffers, self.stream_events):
            table.clear()

    async def _say(self, stream_id: int, flags: int) -> None:
        frame = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_WINDOW_UPDATE, flags, stream_id, 0)
        await self._write_frame(frame)

    # -- what the peer sends --

    async def handle_incoming(self) -> None:
        """Read frames until the connection ends, or the peer breaks a rule."""
        now_s = trio.current_time()
        self._openings = Bucket(admission.STREAMS_PER_S, admission.STREAMS_BURST, now_s)
        self._refusals = Bucket(admission.REFUSALS_PER_S, admission.REFUSALS_BURST, now_s)
        self._strays = Bucket(admission.STRAY_BYTES_PER_S, admission.STRAY_BURST_BYTES, now_s)
        pace = Bucket(admission.FRAMES_PER_S, admission.FRAMES_BURST, now_s)
        count = 0
        self.tcp.frame_ended()
        try:
            while not self.event_shutting_down.is_set():
                header = await read_exactly(self.secured_conn, HEADER_SIZE)
                await self._take_frame(*struct.unpack(YAMUX_HEADER_FORMAT, header))
                self.tcp.frame_ended()
                count += 1
                if count % _TURN_FRAMES == 0:
                    await _keep_pace(pace)
        except BreachError as error:
            self.report(error.breach)
        except Exception as error:  # noqa: BLE001  # root of a connection's task
            log.debug("connection_ended", peer=str(self.peer_id), error=repr(error)[:200])
        await self._cleanup_on_error()

    async def _take_frame(
        self, version: int, kind: int, flags: int, stream_id: int, length: int
    ) -> None:
        if version != 0 or kind not in self._KINDS:
            raise BreachError(Breach.BAD_FRAME)
        if kind == TYPE_GO_AWAY:
            raise ConnectionClosedError("the peer ends the connection")
        if kind == TYPE_PING:
            await self._take_ping(flags, length)
            return
        opened = await self._take_opening(stream_id) if flags & FLAG_SYN else None
        stream = opened or self.streams.get(stream_id)
        if kind == TYPE_DATA:
            await self._take_data(stream, length)
        elif stream is not None:
            stream.send_window += length
            stream.wake_writers()
        if stream is None:
            return
        if flags & (FLAG_FIN | FLAG_RST):
            self._take_end(stream, was_reset=bool(flags & FLAG_RST))
        if opened is not None:
            if not flags & FLAG_RST:
                await self._say(stream_id, FLAG_ACK)
            await self.new_stream_send_channel.send(stream)

    _KINDS: ClassVar = frozenset({TYPE_DATA, TYPE_WINDOW_UPDATE, TYPE_PING, TYPE_GO_AWAY})

    async def _take_ping(self, flags: int, value: int) -> None:
        if flags & FLAG_SYN:
            pong = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_PING, FLAG_ACK, 0, value)
            await self._write_frame(pong)
        elif flags & FLAG_ACK and value == self._ping_id:
            now_rtt_s = trio.current_time() - self._ping_sent_time
            self._rtt = (self._rtt + now_rtt_s) / 2 if self._rtt else now_rtt_s
            self._ping_event.set()

    async def _take_opening(self, stream_id: int) -> SafeStream | None:
        """Open the peer's stream, or refuse it: None."""
        if (
            stream_id % 2 == self.next_stream_id % 2
            or stream_id in self.streams
            or not stream_id
        ):
            raise BreachError(Breach.BAD_FRAME)
        now_s = trio.current_time()
        open_now = sum(not stream.is_initiator for stream in self.streams.values())
        if open_now < admission.INBOUND_STREAMS_LIMIT and self._openings.takes(now_s):
            return self._add(stream_id, is_ours=False)
        if not self._refusals.takes(now_s):
            raise BreachError(Breach.STREAM_FLOOD)
        await self._say(stream_id, FLAG_RST)
        return None

    async def _take_data(self, stream: SafeStream | None, length: int) -> None:
        if length > (DEFAULT_WINDOW_SIZE if stream is None else stream.recv_window):
            raise BreachError(Breach.FLOW_CONTROL)
        data = await read_exactly(self.secured_conn, length) if length else b""
        if stream is None or stream.abandoned_since_s is not None:
            if not self._strays.takes(trio.current_time(), length):
                raise BreachError(Breach.STRAY_DATA)
            return
        stream.recv_window -= length
        buffer = self.stream_buffers.get(stream.stream_id)
        if buffer is None:  # it ended while its data was read
            return
        buffer += data
        self.stream_events[stream.stream_id].set()
        if self.unread_bytes() > admission.CONNECTION_UNREAD_LIMIT_BYTES:
            raise BreachError(Breach.HOARDING)

    def _take_end(self, stream: SafeStream, *, was_reset: bool) -> None:
        stream.recv_closed = True
        if was_reset:
            stream.closed = stream.send_closed = stream.reset_received = True
        stream.closed = stream.closed or stream.send_closed
        if (event := self.stream_events.get(stream.stream_id)) is not None:
            event.set()
        stream.wake_writers()
        if stream.closed:
            self._finalize_stream_locked(stream, fully_closed=True)

    def _add(self, stream_id: int, *, is_ours: bool) -> SafeStream:
        stream = SafeStream(stream_id, self, is_ours)
        self.streams[stream_id] = stream
        self.stream_buffers[stream_id] = bytearray()
        self.stream_events[stream_id] = trio.Event()
        return stream

    # -- what it holds --

    def unread_bytes(self) -> int:
        """Bytes that the peer has sent and nobody has read."""
        return sum(map(len, self.stream_buffers.values()))

    def abandon(self, stream: Any) -> None:
        """Drop what comes on a stream that was served; `sweep` resets it in the end."""
        if not stream.closed and not stream.recv_closed:
            stream.abandoned_since_s = trio.current_time()
            if (buffer := self.stream_buffers.get(stream.stream_id)) is not None:
                buffer.clear()

    async def _stale_stream_sweeper(self) -> None:
        """Leave it to `sweep`: one task for all connections sees to that."""

    def sweep(self, now_s: float) -> list[SafeStream]:
        """Forget what has ended; gives the streams to be reset, which the peer never closed."""
        self._sweep_stale_streams(now_s)
        return [
            stream
            for stream in self.streams.values()
            if stream.abandoned_since_s is not None
            and now_s - stream.abandoned_since_s > admission.ABANDONED_LIMIT_S
        ]

    def is_dribbling(self, now_s: float) -> bool:
        """Whether the peer began a frame too long ago."""
        since_s = self.tcp.unfinished_since_s
        return since_s is not None and now_s - since_s > admission.UNFINISHED_LIMIT_S


async def _keep_pace(pace: Bucket) -> None:
    """Wait until so many frames more are within the rate, and let others have a turn."""
    pause_s = pace.wait_s(trio.current_time(), _TURN_FRAMES)
    await trio.sleep(pause_s)
    if pause_s:
        pace.wait_s(trio.current_time(), _TURN_FRAMES)  # they are taken now


class SafeMuxing(MuxerMultistream):
    """Builds the muxer it was given; the stock one builds its own `Yamux` all the same."""

    async def new_conn(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        """Agree on the muxer with the other side, and set it up."""
        _, muxer = await self._selector.select(conn, conn.is_initiator, self.negotiate_timeout)
        return muxer(conn, peer_id)
