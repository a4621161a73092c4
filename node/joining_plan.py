"""How a node finds its network, as decisions: when to ask for names again, what to tell.

Pure: the tasks are `node.joining`'s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from shoal.node.addresses import Address, DnsAddress
from shoal.node.status_views import SeedView

RESOLVE_AGAIN_S = 600.0
"""While the network is there: names seldom move, and a node that has links needs none."""

RESOLVE_ALONE_S = 30.0
"""With no link left: the network may have moved."""

RESOLVE_FAILED_FIRST_S = 2.0
RESOLVE_FAILED_LIMIT_S = 120.0

TELL_AGAIN_S = 300.0
"""How often one place that fails is told of; at its first failure at once."""

KEEP_AGAIN_S = 600.0
"""How often it is written down that a link is still one."""

KEEP_FROM_S = 30.0
"""How long a peer has to be a link until it is worth remembering where it is."""


class Source(StrEnum):
    """Where this node has a place from."""

    SETTING = "setting"
    INVITATION = "invitation"
    DNSADDR = "dnsaddr"
    REMEMBERED = "remembered"
    LAN = "lan"

    @property
    def bootstrap(self) -> bool:
        """Whether somebody has said that the network is there."""
        return self not in (Source.REMEMBERED, Source.LAN)


@dataclass(frozen=True, slots=True)
class Entry:
    """One place to join through, as it was set."""

    text: str
    source: Source
    place: Address | DnsAddress


@dataclass(slots=True)
class Resolving:
    """The questions about one ``/dnsaddr`` name.

    Attributes:
        found: What it stood for, last time it was resolved.
        error: Why it was not resolved the last time; "" where it was.
        at_s: When it was asked for last.
        failures: How often in a row that came to nothing.
        asking: Whether a question is under way.
    """

    found: tuple[Address, ...] = ()
    error: str = ""
    at_s: float = -math.inf
    failures: int = 0
    asking: bool = False

    def due(self, now_s: float, *, alone: bool) -> bool:
        """Whether to ask (again). It never gives up."""
        if self.asking:
            return False
        if self.failures:
            wait_s = RESOLVE_FAILED_FIRST_S * 2.0 ** min(self.failures - 1, 16)
            return now_s - self.at_s >= min(wait_s, RESOLVE_FAILED_LIMIT_S)
        return now_s - self.at_s >= (RESOLVE_ALONE_S if alone else RESOLVE_AGAIN_S)

    def resolved(self, found: Sequence[Address], now_s: float) -> None:
        """It stands for these addresses."""
        self.found, self.error, self.at_s, self.failures = tuple(found), "", now_s, 0

    def failed(self, error: str, now_s: float) -> None:
        """No answer; what it stood for before stays."""
        self.error, self.at_s, self.failures = error, now_s, self.failures + 1


def to_tell(failed_at_s: float, told_at_s: float, now_s: float) -> bool:
    """Whether to tell of a failure now: the first at once, then every few minutes."""
    return failed_at_s > told_at_s and now_s - told_at_s >= TELL_AGAIN_S


def sentence(seeds: Sequence[SeedView], links: int) -> str:
    """Why a node is alone, in a line; "" while it has a link."""
    if links:
        return ""
    bootstrap = [seed for seed in seeds if Source(seed.source).bootstrap]
    others = [seed for seed in seeds if not Source(seed.source).bootstrap and seed.error]
    failed = sorted((s for s in bootstrap if s.error), key=lambda s: s.error_at or 0.0)
    more = f"; {_count(len(others), 'peer')} {_OTHERS} tried too" if others else ""
    if failed:
        return (
            f"alone: {_count(len(failed), 'bootstrap peer')} tried, the last failed: "
            f"{failed[-1].error}{more}"
        )
    if bootstrap:
        return f"joining: {_count(len(bootstrap), 'bootstrap peer')} being tried{more}"
    if others:
        last = max(others, key=lambda seed: seed.error_at or 0.0)
        return (
            f"alone: no bootstrap peer is set; {_count(len(others), 'peer')} {_OTHERS} "
            f"tried, the last failed: {last.error}"
        )
    if seeds:
        return (
            f"joining: no bootstrap peer is set; {_count(len(seeds), 'peer')} {_OTHERS} "
            "being tried"
        )
    return (
        "alone: no bootstrap peer is set, none is remembered and none is near; set "
        "`bootstrap`, or give this node's address to others"
    )


_OTHERS = "of earlier times or nearby"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
