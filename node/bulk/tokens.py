"""Who may open a bulk channel: tokens for one use each, and how many channels a peer has.

Pure, with time and randomness as arguments. A token stands for the peer that it was given
to and the certificate that this peer said it would show, so one that was stolen opens
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.crypto.peer_id import PeerId

TOKEN_LIFETIME_S = 20.0
"""From the offer to the token: a round trip and a dial, and some for a busy machine."""

CHANNELS_PER_PEER = 4
"""Channels of one peer at once: what a single blob at a time on each of them fills a
10 Gbit/s link with. A peer's share of threads, and so of cores, is bounded by it."""

ENDING_PER_PEER = 2
"""Beside them, channels that the peer has closed, and whose end has not come through yet
when it asks for others."""

CHANNELS_IN_ALL = 64
"""A thread and 1 MiB each. From half of it on, who has one already gets no second."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a token is good for."""

    peer: PeerId
    certificate: bytes
    until_s: float


@dataclass(slots=True)
class Tokens:
    """The tokens that wait to be used: at most `CHANNELS_PER_PEER` of one peer."""

    _waiting: dict[bytes, Offer] = field(default_factory=dict)

    def offer(self, token: bytes, peer: PeerId, certificate: bytes, now_s: float) -> Offer:
        """Take a fresh token up; of too many of one peer the oldest is void."""
        self.expire(now_s)
        own = [each for each, offer in self._waiting.items() if offer.peer == peer]
        for each in own[: max(0, len(own) + 1 - CHANNELS_PER_PEER)]:
            del self._waiting[each]
        self._waiting[token] = Offer(peer, certificate, now_s + TOKEN_LIFETIME_S)
        return self._waiting[token]

    def redeem(self, token: bytes, now_s: float) -> Offer | None:
        """What a token is good for; nothing, if it is unknown, used or late."""
        offer = self._waiting.pop(token, None)
        return offer if offer is not None and now_s < offer.until_s else None

    def revoke(self, peer: PeerId) -> None:
        """Void the tokens of a peer."""
        for token in [each for each, offer in self._waiting.items() if offer.peer == peer]:
            del self._waiting[token]

    def expire(self, now_s: float) -> None:
        """Forget those that are late."""
        for token in [each for each, one in self._waiting.items() if now_s >= one.until_s]:
            del self._waiting[token]

    def __len__(self) -> int:
        return len(self._waiting)


def may_open(open_of_peer: int, open_in_all: int) -> bool:
    """Whether a peer may open one more channel: pure."""
    if open_in_all >= CHANNELS_IN_ALL:
        return False
    most = CHANNELS_PER_PEER + ENDING_PER_PEER if open_in_all < CHANNELS_IN_ALL // 2 else 1
    return open_of_peer < most
