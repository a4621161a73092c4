"""How a job stands at this moment, peer by peer: what `shoal job why` tells live.

Values only. The scheduler makes them (`node.jobs`), `node.explain` puts them into words.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from shoal.crypto.peer_id import PeerId


class Doing(StrEnum):
    """What a job has to do with one peer now."""

    LEASED = "leased"
    """It holds a lease and has units, or is about to get some."""
    ASKED = "asked"
    """A call or an award is unanswered."""
    RESTING = "resting"
    """It is asked again at `PeerOutlook.again_in_s`, for what it answered last."""
    PASSED_OVER = "passed_over"
    """It could be asked, and others are chosen or nothing waits."""
    EXCLUDED = "excluded"
    """It is not asked any more in this job: `PeerOutlook.why` says why."""


class PeerOutlook(msgspec.Struct, frozen=True):
    """One peer, as a job sees it now.

    Attributes:
        units_out: Indices of the job's units that it has, some of them at most.
        units_done: How many it has done of this job.
        unit_s: Seconds that it takes for one unit of this job, as measured; None before.
        again_in_s: When it is asked again, where it rests.
        why: The code of what it answered last, or why it is excluded.
    """

    peer: PeerId
    doing: Doing
    units_out: tuple[int, ...] = ()
    units_done: int = 0
    unit_s: float | None = None
    again_in_s: float | None = None
    why: str = ""


class Outlook(msgspec.Struct, frozen=True):
    """One running job now.

    Attributes:
        units_waiting: Ready, and with nobody.
        units_out: With a peer.
        units_awaiting: Whose inputs are outputs of units that have not ended.
        share: Of the turns among this daemon's jobs, from 0 to 1.
        ends_in_s: An estimate from measured speeds; None before there are any.
    """

    units_waiting: int
    units_out: int
    units_awaiting: int = 0
    share: float = 1.0
    ends_in_s: float | None = None
    peers: tuple[PeerOutlook, ...] = ()
