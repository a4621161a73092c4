"""Who may verify what a provider gives, and by what verifiers are drawn among them.

An award names its candidates once and for all, and the hash of a salt; see
`protocol.verification.draw`. Part of `node.checking`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from random import SystemRandom
from typing import TYPE_CHECKING

from shoal.node import probation
from shoal.node.checks import Draw
from shoal.protocol.limits import CANDIDATES_LIMIT
from shoal.protocol.verification.draw import SALT_SIZE_BYTES

if TYPE_CHECKING:
    from shoal.crypto.peer_id import PeerId
    from shoal.node.house import House
    from shoal.node.running_jobs import Held, RunningJob
    from shoal.node.wanted import Wanted

random = SystemRandom()


class Candidates:
    """Gives those who may verify.

    Args:
        house: The modules that the steps call.
        providers: Gives the peers that offer what units look for now.
        is_false: Whether a peer was found false.
    """

    def __init__(
        self,
        house: House,
        providers: Callable[[Wanted], list[PeerId]],
        is_false: Callable[[PeerId], bool],
    ) -> None:
        self._house, self._providers, self._is_false = house, providers, is_false

    def draw_for(self, running: RunningJob, provider: PeerId) -> Draw | None:
        """By what the verifiers of a new lease's receipts are to be drawn.

        None where nothing is checked: under ``receipt``, and of this node's own results.
        """
        if running.verify.level == "receipt" or provider == self._house.peer_id:
            return None
        able = self.able(running, provider)
        if len(able) > CANDIDATES_LIMIT:
            able = random.sample(able, CANDIDATES_LIMIT)
        return Draw(secrets.token_bytes(SALT_SIZE_BYTES), tuple(sorted(able)))

    def is_outdated(self, running: RunningJob, held: Held) -> bool:
        """Whether a lease is to be given up for one whose award names more verifiers."""
        draw = held.draw
        if draw is None or len(draw.candidates) >= probation.LISTED_ENOUGH:
            return False
        able = self.able(running, held.side.provider)
        return probation.outdated(draw.candidates, len(able))

    def able(self, running: RunningJob, provider: PeerId) -> list[PeerId]:
        """Who may verify what a provider gives."""
        return [
            peer
            for peer in self._providers(running.need.wanted)
            if peer not in {provider, self._house.peer_id}
            and not self._is_false(peer)
            and self._house.standings.may_verify(peer)
        ]
