"""Telling a provider that units, a bid or a lease are not needed any more.

Beside the data path, at the requester: whatever "negotiate" began of `node.pipeline` and
nobody waits for any more ends here, with the rights that the lease gave. When that is so is
decided by those who hold the leases.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from shoal.node.house import tell
from shoal.protocol.checking_messages import Reveal
from shoal.protocol.negotiation import State
from shoal.protocol.negotiation_messages import Cancel, Release
from shoal.protocol.vocabulary import knows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.node.checks import Draw
    from shoal.node.house import House
    from shoal.protocol.negotiation import RequesterSide


async def cancel(house: House, side: RequesterSide, units: Sequence[str]) -> None:
    """Tell a provider that nobody waits for these units any more; never raises."""
    out = [name for name in units if name in side.units]
    if side.state is State.LEASED and side.call is not None and out:
        message = Cancel(call=side.call.call, unit=out[0], others=tuple(out[1:]))
        side.send(message, trio.current_time())
        await tell(house, side.provider, message)


async def release(house: House, side: RequesterSide, draw: Draw | None = None) -> None:
    """End a bid or a lease that is not needed any more; never raises.

    What its verifiers were drawn by is told now, when no receipt is taken any more. An
    award that was not answered may be a lease over there.
    """
    open_states = {State.BID, State.AWARDED, State.LEASED}
    ends = side.state in open_states and side.call is not None
    if ends:
        assert side.call is not None
        message = Release(call=side.call.call)
        side.send(message, trio.current_time())
    if side.award_id is not None:
        house.rights.withdraw(side.award_id)
        house.awarded.remove(side.award_id)
        if draw is not None and knows(house.control.versions.of(side.provider), Reveal):
            reveal = Reveal(side.award_id, draw.salt, draw.candidates)
            await tell(house, side.provider, reveal)
    if ends:
        await tell(house, side.provider, message)
