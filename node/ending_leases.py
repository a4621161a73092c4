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
    from collections.abc import Iterable, Sequence

    from shoal.node.checks import Draw
    from shoal.node.house import House
    from shoal.protocol.negotiation import RequesterSide


async def cancel(house: House, side: RequesterSide, units: Sequence[str]) -> None:
    """Tell a provider that nobody waits for these units any more; never raises."""
    message = _cancelled(side, units)
    if message is not None:
        await tell(house, side.provider, message)


def _cancelled(side: RequesterSide, units: Iterable[str]) -> Cancel | None:
    """Note that these units are cancelled, as far as they are out, and say it so."""
    out = [name for name in units if name in side.units]
    if side.state is not State.LEASED or side.call is None or not out:
        return None
    message = Cancel(call=side.call.call, unit=out[0], others=tuple(out[1:]))
    side.send(message, trio.current_time())
    return message


async def release(house: House, side: RequesterSide, draw: Draw | None = None) -> None:
    """End a bid or a lease that is not needed any more; never raises.

    What its verifiers were drawn by is told now, when no receipt is taken any more. An
    award that was not answered may be a lease over there. Units that are out are cancelled
    first: their answers may be on the way, and nobody will acknowledge those.
    """
    cancelled = _cancelled(side, tuple(side.units))
    open_states = {State.BID, State.AWARDED, State.LEASED}
    ends = side.state in open_states and side.call is not None
    if ends:
        assert side.call is not None
        message = Release(call=side.call.call)
        side.send(message, trio.current_time())
    if side.award_id is not None:
        house.rights.withdraw(side.award_id)
        house.awarded.remove(side.award_id)
    if cancelled is not None:
        await tell(house, side.provider, cancelled)
    if draw is not None and side.award_id is not None and _knows_reveal(house, side):
        await tell(house, side.provider, Reveal(side.award_id, draw.salt, draw.candidates))
    if ends:
        await tell(house, side.provider, message)


def _knows_reveal(house: House, side: RequesterSide) -> bool:
    return knows(house.control.versions.of(side.provider), Reveal)
