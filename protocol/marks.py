"""What two tables of adverts compare: for each node 16 bytes that say how new its word is.

A *mark* is a node's advert's sequence and its renewal's number; greater is newer. A
digest is the marks of a table, each after the first 8 bytes of its node's key. Marks of
nodes that are gone are kept as *graves*, so that slower peers do not bring them back.
`protocol.adverts` holds what the marks are of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import starmap
from struct import Struct

from shoal.crypto.peer_id import PeerId, public_key_of
from shoal.protocol.limits import DIGEST_LIMIT

GRAVE_LIMIT = 4 * DIGEST_LIMIT
"""Marks kept of nodes that are gone; the oldest graves are forgotten first."""

NOTHING = -1
"""Older than any mark: what stands for one where nothing is held."""

_MARK = Struct(">8sQ")
_NUMBER_BITS = 16


def mark_of(sequence: int, number: int) -> int:
    """The mark of an advert's sequence and its renewal's number."""
    return sequence << _NUMBER_BITS | number


def is_of(mark: int, sequence: int) -> bool:
    """Whether ``mark`` is of the advert with this sequence, however often renewed."""
    return mark != NOTHING and mark >> _NUMBER_BITS == sequence


def read_marks(held: bytes) -> dict[bytes, int]:
    """Marks by the beginnings of their keys; a remainder that is no mark is dropped."""
    whole = len(held) - len(held) % _MARK.size
    return dict(_MARK.iter_unpack(held[:whole]))


@lru_cache(DIGEST_LIMIT)
def prefix_of(peer: PeerId) -> bytes:
    """How the node's public key begins."""
    return public_key_of(peer)[:8]


@dataclass(slots=True)
class Marks:
    """The marks of the nodes that a table holds, and of those that it buried."""

    _held: dict[bytes, int] = field(default_factory=dict)
    _peers: dict[bytes, PeerId] = field(default_factory=dict)
    _graves: dict[bytes, int] = field(default_factory=dict)

    def hold(self, peer: PeerId, mark: int) -> None:
        """Note what is held of ``peer``, who is no longer gone."""
        prefix = prefix_of(peer)
        self._held[prefix] = mark
        self._peers[prefix] = peer
        self._graves.pop(prefix, None)

    def drop(self, peer: PeerId) -> None:
        """Nothing is held of ``peer`` any more."""
        prefix = prefix_of(peer)
        del self._peers[prefix], self._held[prefix]

    def bury(self, peer: PeerId, mark: int) -> None:
        """Only what is newer than ``mark`` counts of ``peer`` from now on."""
        while len(self._graves) >= GRAVE_LIMIT:
            del self._graves[next(iter(self._graves))]
        self._graves[prefix_of(peer)] = mark

    def forgive(self, peer: PeerId) -> None:
        """``peer`` was met: whatever it said last counts again."""
        if self._graves:
            self._graves.pop(prefix_of(peer), None)

    def buried_at(self, peer: PeerId) -> int:
        """The mark in the grave of ``peer``, if it has one."""
        return self._graves.get(prefix_of(peer), NOTHING)

    def is_taken(self, peer: PeerId) -> bool:
        """Whether a key that begins alike is held: nobody finds such by chance."""
        return prefix_of(peer) in self._peers

    # -- comparing --

    def digest(self) -> bytes:
        """The marks of all that is held."""
        return b"".join(starmap(_MARK.pack, self._held.items()))

    def wanted(self, theirs: Mapping[bytes, int], room: int) -> bytes:
        """The marks here of what is newer there; of new nodes ``room`` at most."""
        wanted = []
        # Sorted, so that a run of the simulator is the same each time.
        for prefix, mark in sorted(theirs.items() - self._held.items()):
            held = self._held.get(prefix)
            if held is not None and mark > held:
                wanted.append(_MARK.pack(prefix, held))
            elif held is None and mark > self._graves.get(prefix, NOTHING) and room > 0:
                wanted.append(_MARK.pack(prefix, 0))
                room -= 1
        return b"".join(wanted)

    def lacking(self, theirs: Mapping[bytes, int]) -> dict[PeerId, int]:
        """Whose marks differ there, and what they are there."""
        return {
            self._peers[prefix]: theirs.get(prefix, NOTHING)
            for prefix, _ in sorted(self._held.items() - theirs.items())
        }

    def asked_for(self, wanted: bytes) -> dict[PeerId, int]:
        """Of whom ``wanted`` asks for what is newer, as far as they are held."""
        return {
            self._peers[prefix]: mark or NOTHING
            for prefix, mark in read_marks(wanted).items()
            if prefix in self._peers
        }
