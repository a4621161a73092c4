"""How often somebody may ask for something: token buckets by key, bounded in number.

Pure: time is an argument. A bucket that has filled up again says no more than none
at all, so those are the ones that are forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable


@dataclass(slots=True)
class Rates:
    """At most ``burst`` at once for each key, and ``per_s`` on average.

    Attributes:
        keys_limit: Buckets kept. While all of them are in use, new keys get nothing:
            whoever makes up keys must not push out those that are being counted.
    """

    per_s: float
    burst: float
    keys_limit: int = 1024
    _buckets: dict[Hashable, tuple[float, float]] = field(default_factory=dict)

    def admits(self, key: Hashable, now_s: float) -> bool:
        """Take one token of ``key``'s, if there is one."""
        if key not in self._buckets and len(self._buckets) >= self.keys_limit:
            self._forget_full(now_s)
            if len(self._buckets) >= self.keys_limit:
                return False
        tokens = self._tokens(key, now_s)
        if tokens < 1.0:
            return False
        self._buckets[key] = (tokens - 1.0, now_s)
        return True

    def _tokens(self, key: Hashable, now_s: float) -> float:
        tokens, at_s = self._buckets.get(key, (self.burst, now_s))
        return min(self.burst, tokens + (now_s - at_s) * self.per_s)

    def _forget_full(self, now_s: float) -> None:
        self._buckets = {
            key: bucket
            for key, bucket in self._buckets.items()
            if self._tokens(key, now_s) < self.burst
        }
