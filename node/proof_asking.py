"""Asks linked nodes for the proofs of what they claim, once for each new one.

An advert says when the newest proof was issued that its node has to show; the proofs
themselves (some 360 bytes each) come over the control stream, to those alone who keep a
link with the node: whoever is called for bids gets one. What they are worth is
`node.proofs`'s.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import structlog
import trio

from shoal.crypto.errors import ShoalError
from shoal.crypto.peer_id import PeerId
from shoal.node.house import fitting
from shoal.protocol.challenge_messages import Proofs, ProofsWanted
from shoal.protocol.vocabulary import knows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterable

    from shoal.node.control import Control
    from shoal.node.membership import Membership
    from shoal.node.proofs import ProofBook
    from shoal.protocol.statements import Advert

LOOK_INTERVAL_S: Final = 1.0
ANSWER_LIMIT_S: Final = 5.0
RETRY_AFTER_S: Final = 60.0
"""Before a node is asked again that did not answer."""

log = structlog.get_logger(__name__)


def whom_to_ask(
    adverts: Iterable[Advert], links: Collection[str], lacks: Callable[[Advert], bool]
) -> list[Advert]:
    """Linked nodes that have proofs to show which are not known here: pure."""
    return [
        advert
        for advert in adverts
        if advert.peer in links and lacks(advert) and knows(advert.protocol, ProofsWanted)
    ]


class ProofAsking:
    """Asks one node after the other. Made by `open_proof_asking`."""

    def __init__(self, control: Control, membership: Membership, book: ProofBook) -> None:
        self._control = control
        self._membership = membership
        self._book = book
        self._failed_at_s: dict[PeerId, float] = {}

    async def keep_asking(self) -> None:
        """Ask whenever a linked node has something new to show, for ever."""
        while True:
            links = self._membership.links
            now_s = trio.current_time()
            self._failed_at_s = {  # no longer than the list of links
                peer: at_s
                for peer, at_s in self._failed_at_s.items()
                if peer in links and at_s + RETRY_AFTER_S > now_s
            }
            ready = links.keys() - self._failed_at_s.keys()
            adverts = (entry.advert for entry in self._membership.table)
            for advert in whom_to_ask(adverts, ready, self._book.lacks):
                await self._ask(advert)
            await trio.sleep(LOOK_INTERVAL_S)

    async def _ask(self, advert: Advert) -> None:
        peer = PeerId(advert.peer)
        try:
            answer = fitting(
                await self._control.request(peer, ProofsWanted(), ANSWER_LIMIT_S), Proofs
            )
        except ShoalError as error:
            self._failed_at_s[peer] = trio.current_time()
            log.info("a node did not show its proofs", peer=peer, error=str(error))
            return
        self._book.take_in(advert, answer.proofs)


@asynccontextmanager
async def open_proof_asking(
    control: Control, membership: Membership, book: ProofBook
) -> AsyncIterator[ProofAsking]:
    """Keep asking for as long as the block runs."""
    asking = ProofAsking(control, membership, book)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asking.keep_asking)
        yield asking
        nursery.cancel_scope.cancel()
