"""How one peer stands with this node, as it is shown; `node.standings` makes it."""

from __future__ import annotations

import msgspec

from shoal.crypto.peer_id import PeerId


class StandingReason(msgspec.Struct, frozen=True):
    """One thing that a standing rests on.

    Attributes:
        code: A `Deed`, or of the wire a `node.standing.Offence`, or ``banned``.
        count: How often.
        last: When it last was, in seconds since the epoch; None where that is not kept.
        sentence: What it did, after its name.
        detail: The same more exactly, of the last time.
    """

    code: str
    count: int
    last: float | None
    sentence: str
    detail: str = ""


class StandingPage(msgspec.Struct, frozen=True):
    """How one peer stands with this node, what that decides, and why.

    Attributes:
        value: Of its work, from 0 to 1.
        conduct: Of how it keeps to the rules of the wire, from 0 to 1.
        share: The two together: by so much its price and time are divided where work is
            given out; 0 for a peer that gets none.
        check_probability: How often its results are checked under ``auto``.
        may_verify: Whether it may check others' results.
        served: Whether this node works for it, as far as its standing goes.
        refusal: Why not, for a person; "" where it does.
        banned_until: In seconds since the epoch; None where it is not banned.
    """

    peer: PeerId
    value: float
    conduct: float
    share: float
    newcomer: bool
    good_in_a_row: int
    check_probability: float
    may_verify: bool
    served: bool
    refusal: str
    banned_until: float | None
    reasons: tuple[StandingReason, ...]
