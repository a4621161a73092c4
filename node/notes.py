"""Notes: what was seen of peers and strangers that proves nothing against anybody.

Pure state with time as an argument. An offence (`node.standing`) is something that no
honest node does and that nobody can do in its name; a *note* is all else that its operator
will want to see. A bulk channel's token goes in the clear, so that whoever copies it on the
way can show a wrong certificate as if it were the token's peer; a link that breaks in the
middle of a blob may be anybody's fault; and one who asks for what it has no right to may
have had it a moment ago. So a note takes nothing from a peer's standing, cuts and bans
nobody, and is not asked for in any decision: it is counted, logged and shown.

The table is bounded, and whoever was noted longest ago is forgotten: that costs a line in
a table, and so it matters little that fresh keys can bring it about.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

NOTED_LIMIT: Final = 1024
"""Peers, or places, of which notes are kept; some 300 bytes for each kind of note."""

LOGGED_AGAIN_S: Final = 60.0
"""A note that goes on is logged so often, with its count: a flood must not fill the log."""

DETAIL_LIMIT: Final = 200
"""Characters of the last one's detail that are kept."""


class Seen(StrEnum):
    """What is noted: a closed list."""

    OTHER_CERTIFICATE = "other_certificate"
    NO_TLS = "no_tls"
    NO_RIGHT = "no_right"
    BROKE_OFF = "broke_off"
    STALLED = "stalled"
    UNKNOWN_CALLER = "unknown_caller"


SENTENCES: Final = {
    Seen.OTHER_CERTIFICATE: "somebody with its token, or at its bulk port, showed a "
    "certificate that is not its own",
    Seen.NO_TLS: "somebody with its token, or at its bulk port, made no TLS 1.3",
    Seen.NO_RIGHT: "asked for a blob that it has no right to",
    Seen.BROKE_OFF: "broke off a bulk channel in the middle of a blob",
    Seen.STALLED: "sent nothing of a blob, so that others sent it",
    Seen.UNKNOWN_CALLER: "called at the bulk port without a good token",
}
"""What was seen, after the name of whom."""


@dataclass(frozen=True, slots=True)
class Note:
    """One kind of thing seen of one peer or place, so far.

    Attributes:
        about: The peer, or the place where no peer is known.
        times: How often.
        last_s: When last.
        detail: The last one more exactly.
    """

    about: str
    what: Seen
    times: int
    last_s: float
    detail: str


@dataclass(slots=True)
class _Count:
    times: int = 0
    last_s: float = 0.0
    detail: str = ""
    logged_s: float = -math.inf


class Notes:
    """The notes about peers, or those about places.

    Args:
        limit: Of how many.
    """

    def __init__(self, limit: int = NOTED_LIMIT) -> None:
        self._limit = limit
        self._counts: OrderedDict[str, dict[Seen, _Count]] = OrderedDict()
        """In order of the last note."""

    def note(self, about: str, what: Seen, detail: str, now_s: float) -> Note | None:
        """Note something; gives what is to be logged now, if anything is."""
        counts = self._counts.setdefault(about, {})
        self._counts.move_to_end(about)
        if len(self._counts) > self._limit:
            self._counts.popitem(last=False)
        count = counts.setdefault(what, _Count())
        count.times += 1
        count.last_s, count.detail = now_s, detail[:DETAIL_LIMIT]
        if now_s - count.logged_s < LOGGED_AGAIN_S:
            return None
        count.logged_s = now_s
        return _note(about, what, count)

    def of(self, about: str) -> tuple[Note, ...]:
        """The notes about one."""
        counts = self._counts.get(about, {})
        return tuple(_note(about, what, count) for what, count in counts.items())

    def forget(self, about: str) -> bool:
        """Forget the notes about one; False where there are none."""
        return self._counts.pop(about, None) is not None

    def __iter__(self) -> Iterator[str]:
        """All of whom there are notes, the latest noted last."""
        return iter(self._counts)


def _note(about: str, what: Seen, count: _Count) -> Note:
    return Note(about, what, count.times, count.last_s, count.detail)
