"""A peer made of go-libp2p: its daemon p2pd as a process, driven over a Unix socket.

p2pd comes inside hivemind's wheel (`foreign-peers.txt`), with the protobufs of its control
socket; nothing of hivemind itself is imported. Whatever a `GoPeer` does, go-libp2p does:
dials, handshakes, identify, gossip and its signatures.
"""

import importlib.util
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import base58
import foreign
import trio
from multiaddr import Multiaddr

from shoal.crypto.identity import Identity, generate

ANSWER_LIMIT_S = 60.0


def _installed():
    """Where the wheel lies, without importing it: that would want torch."""
    foreign.reach()
    found = importlib.util.find_spec("hivemind")
    if found is None:
        raise AssertionError(
            "the foreign peer is missing: pip install --no-deps --require-hashes --target "
            f"{foreign.FOLDER} -r tests/interop/foreign-peers.txt"
        )
    return Path(found.submodule_search_locations[0])


def _protobufs():
    spec = importlib.util.spec_from_file_location(
        "p2pd_pb2", _installed() / "proto" / "p2pd_pb2.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class GoPeer:
    """A running p2pd. Made by `go_peer`."""

    identity: Identity
    place: Path
    pb: object = field(repr=False)
    address: str = ""
    """Where it listens, with its peer id."""

    @property
    def peer_id(self):
        return self.identity.peer_id

    async def connect(self, address):
        """Dial a peer; raises GoError."""
        place, _, peer = address.partition("/p2p/")
        await self._request(
            "CONNECT",
            connect=self.pb.ConnectRequest(
                peer=_id_bytes(peer), addrs=[Multiaddr(place).to_bytes()], timeout=10
            ),
        )

    async def peers(self):
        """The ids of the peers that it is connected to."""
        answer = await self._request("LIST_PEERS")
        return {_id_text(peer.id) for peer in answer.peers}

    async def open_stream(self, peer, protocol):
        """Open a stream to a connected peer; gives a trio stream of its bytes."""
        connection = await self._connection()
        asked = self.pb.StreamOpenRequest(peer=_id_bytes(peer), proto=[protocol], timeout=10)
        await _send(connection, self._message("STREAM_OPEN", streamOpen=asked))
        self._checked(await _receive(connection, self.pb.Response))
        return connection

    async def serve(self, nursery, protocol, handler):
        """Let ``handler(peer, stream)`` serve what peers open for ``protocol``."""
        path = self.place / f"handler-{protocol.replace('/', '-')}.sock"
        listener = await _listen(path)

        async def accept(stream):
            info = await _receive(stream, self.pb.StreamInfo)
            async with stream:
                await handler(_id_text(info.peer), stream)

        nursery.start_soon(trio.serve_listeners, accept, [listener])
        asked = self.pb.StreamHandlerRequest(
            addr=_unix_multiaddr(path), proto=[protocol], balanced=False
        )
        await self._request("STREAM_HANDLER", streamHandler=asked)

    async def publish(self, topic, data):
        """Gossip ``data``, signed by go-libp2p."""
        asked = self.pb.PSRequest(type=self.pb.PSRequest.PUBLISH, topic=topic, data=data)
        await self._request("PUBSUB", pubsub=asked)

    async def gossip_peers(self, topic):
        """The peers that it knows to take part in a topic."""
        asked = self.pb.PSRequest(type=self.pb.PSRequest.LIST_PEERS, topic=topic)
        answer = await self._request("PUBSUB", pubsub=asked)
        return {_id_text(peer) for peer in answer.pubsub.peerIDs}

    @asynccontextmanager
    async def subscribed(self, topic):
        """Take part in a topic; gives a function that waits for the next message."""
        async with await self._connection() as connection:
            asked = self.pb.PSRequest(type=self.pb.PSRequest.SUBSCRIBE, topic=topic)
            await _send(connection, self._message("PUBSUB", pubsub=asked))
            self._checked(await _receive(connection, self.pb.Response))

            async def next_message():
                with trio.fail_after(ANSWER_LIMIT_S):
                    return await _receive(connection, self.pb.PSMessage)

            yield next_message

    async def listening(self):
        """Its own addresses, by what it says of itself."""
        answer = await self._request("IDENTIFY")
        assert _id_text(answer.identify.id) == self.peer_id
        return [str(Multiaddr(address)) for address in answer.identify.addrs]

    async def _request(self, kind, **fields):
        with trio.fail_after(ANSWER_LIMIT_S):
            async with await self._connection() as connection:
                await _send(connection, self._message(kind, **fields))
                return self._checked(await _receive(connection, self.pb.Response))

    def _message(self, kind, **fields):
        return self.pb.Request(type=self.pb.Request.Type.Value(kind), **fields)

    def _checked(self, answer):
        if answer.type != self.pb.Response.OK:
            raise GoError(answer.error.msg)
        return answer

    async def _connection(self):
        return await trio.open_unix_socket(str(self.place / "p2pd.sock"))


class GoError(Exception):
    """What p2pd said went wrong."""


@asynccontextmanager
async def go_peer(directory, identity=None):
    """Run go-libp2p with strict gossip signatures, for as long as the block runs."""
    identity = identity or generate()
    directory.mkdir(parents=True, exist_ok=True)
    public = identity.key.public_key().public_bytes_raw()
    key_file = directory / "key"
    key_file.write_bytes(b"\x08\x01\x12\x40" + identity.seed + public)  # libp2p's protobuf
    key_file.chmod(0o600)
    command = [
        str(_installed() / "hivemind_cli" / "p2pd"),
        f"-listen=/unix{directory}/p2pd.sock",
        "-hostAddrs=/ip4/127.0.0.1/tcp/0",
        f"-id={key_file}",
        "-bootstrapPeers=",
        "-relay=false",
        "-pubsub",
        "-pubsubSign",
        "-pubsubSignStrict",
        "-gossipsubHeartbeatInterval=200ms",
    ]
    log = (directory / "p2pd.log").open("wb")
    process = await trio.lowlevel.open_process(command, stdout=log, stderr=log)
    peer = GoPeer(identity, directory, _protobufs())
    try:
        with trio.fail_after(ANSWER_LIMIT_S):
            while not peer.address:
                assert process.returncode is None, (directory / "p2pd.log").read_text()
                try:
                    places = await peer.listening()
                except OSError:
                    await trio.sleep(0.02)
                    continue
                peer.address = f"{next(p for p in places if '/tcp/' in p)}/p2p/{peer.peer_id}"
        yield peer
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        log.close()


# --- frames of p2pd's socket: a varint, then so many bytes of protobuf ---------------------


async def _send(stream, message):
    data = message.SerializeToString()
    await stream.send_all(varint(len(data)) + data)


async def _receive(stream, kind):
    return kind.FromString(await receive_exactly(stream, await receive_varint(stream)))


async def receive_exactly(stream, count):
    """Read ``count`` bytes; raises EOFError where the stream ends before."""
    received = b""
    while len(received) < count:
        some = await stream.receive_some(count - len(received))
        if not some:
            raise EOFError(f"the stream ended after {len(received)} bytes of {count}")
        received += some
    return received


async def receive_varint(stream):
    value, shift = 0, 0
    while True:
        (byte,) = await receive_exactly(stream, 1)
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
        shift += 7


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


async def _listen(path):
    listening = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await listening.bind(str(path))
    listening.listen()
    return trio.SocketListener(listening)


def _unix_multiaddr(path):
    """The path with its first slash, as Go has it; the multiaddr package leaves it out."""
    name = str(path).encode()
    return varint(400) + varint(len(name)) + name


def _id_bytes(peer):
    return base58.b58decode(peer)


def _id_text(peer):
    return base58.b58encode(peer).decode()
