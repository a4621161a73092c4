"""For whom this node works, by how they have dealt with it: standing, debts, acknowledgements.

Beside the owner's lists and settings (`node.bidding`), and asked with them at each call,
award and message of units. What it gives ends no unit that runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.protocol.negotiation_messages import Reason

if TYPE_CHECKING:
    from shoal.crypto.peer_id import PeerId
    from shoal.node.bidding import Withheld
    from shoal.node.config import Config
    from shoal.node.settling import Settling
    from shoal.node.standings import Standings

THOSE_WHO_SERVE = "those-who-serve"


def withheld(
    config: Config, standings: Standings, settling: Settling, peer: PeerId
) -> Withheld | None:
    """Why another node gets nothing more of this one, or None where it does.

    Friends are held to nothing but their acknowledgements.
    """
    unsettled = settling.unsettled(peer)
    if unsettled is not None:
        return Reason.UNSETTLED, *unsettled
    if peer in config.allow:
        return None
    refusal = standings.refusal(peer)
    if refusal is not None:
        return Reason.UNTRUSTED_REQUESTER, refusal[:256], None
    if config.serve == THOSE_WHO_SERVE:
        debt = settling.ledger.why_not(peer)
        if debt is not None:
            return Reason.UNTRUSTED_REQUESTER, debt[:256], None
    return None
