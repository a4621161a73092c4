"""What identify's message says, read from its bytes."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from libp2p.identity.identify.pb.identify_pb2 import Identify

__all__ = ["DecodeError", "read"]


def read(data: bytes) -> tuple[str, list[str]]:
    """Give a peer's own name for what it runs, and the protocols that it answers.

    Raises:
        DecodeError: The bytes are no such message.
    """
    said = Identify.FromString(data)
    return said.agent_version, list(said.protocols)
