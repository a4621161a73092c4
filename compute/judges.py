"""Judges fraud proofs, one after another, in processes of their own beside those of units."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import trio

from shoal.compute import frames, priority
from shoal.compute.errors import ProgramError
from shoal.compute.exchanges import exchange, nonsense
from shoal.crypto.peer_id import PeerId
from shoal.protocol.verification import fraud_proof
from shoal.protocol.verification.fraud_proof import Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shoal.compute.frames import UnitLimits
    from shoal.compute.starting import Starter
    from shoal.crypto.content import BlobId, Buffer


class Judges:
    """Who judges: one at a time of others' proofs, and one of this node's own.

    Args:
        starter: Starts their processes.
    """

    def __init__(self, starter: Starter) -> None:
        self._starter = starter
        self._others, self._own = trio.Lock(), trio.Lock()
        self.spent_s = 0.0
        """Processor seconds that judging others' proofs has taken."""

    async def judge(
        self,
        proof: bytes,
        blobs: Mapping[BlobId, Buffer],
        limits: UnitLimits,
        processor_s: float,
        *,
        own: bool,
    ) -> Verdict:
        """Judge a proof; see `device_worker.Worker.judge`."""
        request = frames.Judge(tuple(blobs), limits, processor_s)
        start = self._starter.start
        niceness = start.niceness if own else priority.LOWEST
        start = msgspec.structs.replace(start, niceness=niceness, exact=False)
        async with self._own if own else self._others:
            spent_s, began_s = None, trio.current_time()
            room = await self._starter.started(start)
            try:
                answer, _ = await exchange(
                    room.process, request, [proof, *blobs.values()], limits, frames.Judged
                )
                spent_s = answer.processor_s
            except ProgramError as error:  # judging never raises, so this is not of a proof
                raise nonsense(str(error)) from None
            finally:
                took_s = trio.current_time() - began_s
                if not own:
                    self.spent_s += min(took_s, processor_s) if spent_s is None else spent_s
                if not room.process.ended:
                    await room.process.end()
        accused = None if answer.accused is None else PeerId(answer.accused)
        return Verdict(fraud_proof.Outcome(answer.outcome), accused, answer.sentence)
