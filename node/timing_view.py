"""Where one unit's time went, as it is shown; `node.timing` measures it."""

from __future__ import annotations

from typing import Final

import msgspec

from shoal.crypto.peer_id import PeerId
from shoal.node.records import JobId

STEPS: Final[dict[str, str]] = {
    "submitted": "checked and written down",
    "queued": "waited until a provider had room",
    "negotiated": "waited for a bid",
    "handed_over": "to the provider and back, and for a lease that was not there yet",
    "fetched": "the provider got program and inputs",
    "waited": "waited at the provider, its worker's process and back",
    "executed": "ran",
    "signed": "outputs hashed, receipt signed",
    "verified": "signature, ids and award checked",
    "taken_in": "outputs fetched and looked at",
    "checked": "run again by others",
    "written": "written down",
    "delivered": "waited until it was asked for, and read",
}
"""Each step that can be told, in order, and what it is, for people."""


class UnitTiming(msgspec.Struct, frozen=True):
    """Where one unit's time went.

    Attributes:
        provider: Who ran it.
        together: How many units went in its message; from handing over to its answer the
            times are those of the message, and what the provider did is the unit's own.
        steps: Seconds, by the names of `STEPS`; a step that was not needed, or not reached
            yet, is not there.
        total_s: From its submission to the last step.
    """

    job: JobId
    index: int
    provider: PeerId | None
    together: int
    steps: dict[str, float]
    total_s: float
