"""Nodes that one link alone tells of: how a table of adverts is kept from being filled.

Keys cost nothing, so a peer can sign adverts of a thousand nodes that do not exist.
An advert that one link alone has told of, and whose node this one never met, is
*hearsay*. One link may fill a quarter of the table with hearsay; and in a full table
a newcomer takes the place of the newest hearsay of whichever link told most of it,
if that is more than its own link told. So each link gets a fair share of what is
left, and nodes that were met, or that two links told of, stay until they expire
(after Bitcoin's addrman, which buckets addresses by their source). What remains:
honest peers repeat what they were told, so that an attacker with patience, or with
several links, turns its inventions into what two links tell; the table then stays
bounded, honest nodes in it stay, and new ones enter by being met.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.crypto.peer_id import PeerId
from shoal.protocol.limits import DIGEST_LIMIT

HEARSAY_LIMIT = DIGEST_LIMIT // 4
"""Adverts held on the word of one link alone: one liar leaves three quarters free."""


@dataclass(slots=True)
class Hearsay:
    """Whose adverts are held on the word of which one link."""

    told_by: dict[PeerId, PeerId] = field(default_factory=dict)
    _of: dict[PeerId, dict[PeerId, None]] = field(default_factory=dict)
    """Of each link, whom it alone has told of, the newest last."""

    def room(self, source: PeerId) -> int:
        """How many more nodes ``source`` may tell of that nobody else does."""
        return HEARSAY_LIMIT - len(self._of.get(source, ()))

    def note(self, peer: PeerId, source: PeerId) -> None:
        """Note that ``peer`` is held on the word of ``source`` alone."""
        self.told_by[peer] = source
        self._of.setdefault(source, {})[peer] = None

    def vouch(self, peer: PeerId, source: PeerId) -> None:
        """Note that ``source`` tells of ``peer``, too: if it is another, it is no hearsay."""
        if self.told_by.get(peer, source) != source:
            self.forget(peer)

    def forget(self, peer: PeerId) -> None:
        """It is no hearsay any more, or not held."""
        source = self.told_by.pop(peer, None)
        if source is not None:
            del self._of[source][peer]
            if not self._of[source]:
                del self._of[source]

    def replaceable(self, source: PeerId | None) -> PeerId | None:
        """Who makes room for a node that ``source`` tells of, or that is met (None)."""
        most = max(self._of.values(), key=len, default={})
        told = len(self._of.get(source, ())) if source is not None else 0
        return next(reversed(most)) if len(most) > told else None
