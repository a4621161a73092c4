"""Which version of the protocol each connected peer speaks, and whom there is no talking to.

Filled by the greeting of control streams, in either direction, and emptied when a
connection ends, so it is no longer than the list of connections. What follows from a
version is `protocol.versions`'.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import structlog

from shoal.node.identify import identify
from shoal.protocol.limits import PROTOCOL_MAJOR
from shoal.protocol.versions import OWN, Version, is_newer, misfit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.crypto.peer_id import PeerId
    from shoal.node.network import Network

CONTROL_PROTOCOLS = "/shoal/control/"
CONTROL_PROTOCOL = f"{CONTROL_PROTOCOLS}{PROTOCOL_MAJOR}"
IDENTIFY_TIME_LIMIT_S = 5.0

PEERS_LIMIT = 1024
"""Twice as many as may be connected: one may be gone before its hello is read."""

Value = TypeVar("Value")

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class PeerVersions:
    """What peers said that they speak.

    Attributes:
        misfits: Connected peers that this node cannot talk to, and why not.
    """

    misfits: dict[PeerId, str] = field(default_factory=dict)
    _said: dict[PeerId, Version] = field(default_factory=dict)

    def of(self, peer: PeerId) -> Version:
        """The version of a connected peer; this node's own before it said so."""
        return self._said.get(peer, OWN)

    def is_newer(self, peer: PeerId) -> bool:
        """Whether a peer may say what this node's version does not know.

        One that has not said its version may: after a reconnect its blob stream can
        come before its hello, and nobody is to be blamed for that.
        """
        return peer not in self._said or is_newer(self._said[peer])

    def note(self, peer: PeerId, theirs: Version) -> str | None:
        """Keep what a peer says in its hello; gives why it is a misfit, where it is one."""
        _put(self._said, peer, theirs)
        problem = misfit(theirs)
        if problem is None:
            self.misfits.pop(peer, None)
        else:
            self.refuse(peer, problem)
        return problem

    def refuse(self, peer: PeerId, why: str) -> None:
        """Keep why there is no talking to a peer; tell the operator once."""
        if self.misfits.get(peer) != why:
            log.warning("a connected peer cannot be talked to", peer=peer, why=why)
        _put(self.misfits, peer, why)

    async def refuse_stranger(self, network: Network, peer: PeerId) -> tuple[str, str]:
        """Find out what a peer is that does not speak our control protocol.

        Returns:
            An error's code, and why there is no talking to it.
        """
        said = await identify(network, peer, IDENTIFY_TIME_LIMIT_S)
        problem = misfit(self.of(peer)) or of_protocols(said.protocols)
        why = problem or f"is no node of shoal: it runs {said.agent or 'something else'}"
        self.refuse(peer, why)
        return "version_unsupported" if problem else "protocol_unknown", why

    def forget(self, peer: PeerId) -> None:
        """The peer is gone, and may come back as another version."""
        self._said.pop(peer, None)
        self.misfits.pop(peer, None)


def _put(table: dict[PeerId, Value], peer: PeerId, value: Value) -> None:
    table.pop(peer, None)
    while len(table) >= PEERS_LIMIT:
        del table[next(iter(table))]
    table[peer] = value


def of_protocols(protocols: Sequence[str]) -> str | None:
    """Why a peer that offers these protocols, and not ours, is a misfit: pure."""
    majors = [
        int(number)
        for name in protocols
        if (number := name.removeprefix(CONTROL_PROTOCOLS)) != name
        and number.isdecimal()
        and len(number) < len("1000")
    ]
    return misfit((max(majors), 0)) if majors else None
