"""Results that could be delivered and are held, until more is known of who gave them.

When that is, `node.look_back` says; here they are kept, and delivered in time whatever
becomes of their provider. Part of `node.checking`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

import trio

from shoal.node import look_back
from shoal.node.checked import Checked, JobChecks

if TYPE_CHECKING:
    from shoal.crypto.peer_id import PeerId
    from shoal.node.house import House
    from shoal.node.scheduling.state import State

RELEASE_S: Final = 1.0
"""How often is looked whether what is held may be delivered, beside whenever a check ends."""


class Holding:
    """Holds results of jobs.

    Args:
        house: The modules that the steps call.
        state: The scheduler's: what is out at a peer is read from it.
        deliver: Delivers results of a job, and lets go of what they held.
    """

    def __init__(
        self,
        house: House,
        state: State,
        deliver: Callable[[JobChecks, Sequence[Checked]], Awaitable[None]],
    ) -> None:
        self._house, self._state, self._deliver = house, state, deliver

    def is_held(
        self, job: JobChecks, provider: PeerId, waited_s: float = 0.0, newer: int = 0
    ) -> bool:
        """Whether a result of a peer is not to be delivered yet.

        Args:
            job: Its job.
            provider: Whose it is.
            waited_s: How long it has been held.
            newer: How many of the job are held that came after it.
        """
        if job.running.verify.level != "auto" or provider == self._house.peer_id:
            return False
        if self._house.standings.may_verify(provider):  # nothing more is counted of most
            return False
        out = len(self._state.line(provider).batches) + sum(
            checked.machine.provider == provider for checked in job.waiting.values()
        )
        return look_back.is_held(trusted=False, out=out, held=newer, waited_s=waited_s)

    def keep(self, job: JobChecks, checked: Checked) -> None:
        """Hold a result."""
        job.ready[checked.unit.index] = checked, trio.current_time()
        job.size_bytes += checked.size_bytes
        if not job.releasing:
            job.releasing = True
            assert job.running.nursery is not None
            job.running.nursery.start_soon(self._keep_releasing, job)

    async def _keep_releasing(self, job: JobChecks) -> None:
        """Deliver in time what is held, whatever becomes of its provider."""
        while job.ready:
            await trio.sleep(RELEASE_S)
            await self.release(job)
        job.releasing = False

    async def release(self, job: JobChecks) -> None:
        """Deliver what need not be held any more."""
        if not job.ready:
            return
        now_s, last = trio.current_time(), len(job.ready) - 1
        free = [
            checked
            for place, (checked, since_s) in enumerate(job.ready.values())
            if not self.is_held(job, checked.machine.right, now_s - since_s, last - place)
        ]
        for checked in free:
            del job.ready[checked.unit.index]
            job.size_bytes -= checked.size_bytes
        if free:
            await self._deliver(job, free)
