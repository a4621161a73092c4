"""What a peer says of itself by libp2p's identify: for people, and nothing hangs on it.

Asked only of peers that do not speak our control protocol, to say what they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from shoal.node.errors import NetworkError
from shoal.node.libp2p_compat.identify import DecodeError, read

if TYPE_CHECKING:
    from shoal.crypto.peer_id import PeerId
    from shoal.node.network import ByteStream, Network

IDENTIFY_PROTOCOL: Final = "/ipfs/id/1.0.0"
_LIMIT_BYTES: Final = 8 << 10
"""Of one answer: as go-libp2p has it, whose own have some hundred bytes."""

_AGENT_LIMIT: Final = 64
_PROTOCOLS_LIMIT: Final = 256


@dataclass(frozen=True, slots=True)
class Identified:
    """A peer's own words; empty where it did not say."""

    agent: str = ""
    protocols: tuple[str, ...] = ()


async def identify(network: Network, peer: PeerId, timeout_s: float) -> Identified:
    """Ask a connected peer what it is; a peer that does not say so is nobody. Cancel-safe."""
    with trio.move_on_after(timeout_s):
        try:
            stream = await network.open_stream(peer, IDENTIFY_PROTOCOL, timeout_s)
            async with stream:
                return _read(await _receive(stream))
        except (NetworkError, DecodeError):
            pass
    return Identified()


async def _receive(stream: ByteStream) -> bytes:
    size, shift = 0, 0
    while True:
        (byte,) = await stream.receive_exactly(1)
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80 or shift > 14:
            break
    if size > _LIMIT_BYTES:
        raise NetworkError(f"{stream.remote} says too much of itself", code="frame_too_large")
    return await stream.receive_exactly(size)


def _read(data: bytes) -> Identified:
    agent, protocols = read(data)
    agent = "".join(c for c in agent[:_AGENT_LIMIT] if c.isprintable())
    return Identified(agent, tuple(protocols[:_PROTOCOLS_LIMIT]))
