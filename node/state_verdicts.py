"""The part of the state that is about others' conduct in work; see `node.state`.

Checks of results, bans and the proofs behind them, disputes that are open, standing,
receipts that this node may have to answer for, acknowledgements and the ledger. What bounds
each is in `node.journal_verdicts`, `node.defending` and `node.journal_ledger`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from shoal.node import journal_defence, journal_ledger, journal_verdicts
from shoal.node.journal_verdicts import KeptProof

if TYPE_CHECKING:
    from shoal.crypto.content import BlobId
    from shoal.crypto.peer_id import PeerId
    from shoal.node.journal_defence import Given
    from shoal.node.journal_ledger import KeptAcknowledgement, Settled, Unacknowledged
    from shoal.node.ledger import LedgerRow
    from shoal.node.records import Ban, Check, JobId
    from shoal.node.result_standing import StandingRow

T = TypeVar("T")


class VerdictState:
    """Methods of `node.state.State`, which raise as all of its do."""

    async def _read(self, work: Callable[..., T], *arguments: object) -> T:
        raise NotImplementedError

    async def _write(self, work: Callable[..., T], *arguments: object) -> T:
        raise NotImplementedError

    # --- checks of results --------------------------------------------------------

    async def add_checks(self, checks: Iterable[Check]) -> None:
        """Keep checks of units that have ended, or have not; of each unit the newest.

        Those that are there when a unit ends go with it: `Ended.checks`.
        """
        await self._write(journal_verdicts.add_checks, tuple(checks))

    async def checks(self, job_id: JobId, unit: int | None = None) -> list[Check]:
        """The checks of a job's units, or of one of them, by unit and then as they came."""
        return await self._read(journal_verdicts.checks, job_id, unit)

    async def unfetched_units_by(self, peer: PeerId) -> list[tuple[JobId, int, PeerId]]:
        """Units that a peer ran or vouched for, of jobs that still run, with who ran each.

        Only those whose results nobody has yet.
        """
        return await self._read(journal_verdicts.unfetched_units_by, peer)

    # --- bans and proofs ----------------------------------------------------------

    async def add_ban(self, ban: Ban) -> bool:
        """Keep a ban; False where there is no room for one that others' proof is behind."""
        return await self._write(journal_verdicts.add_ban, ban)

    async def bans(self) -> list[Ban]:
        """All bans; those that have lapsed are among them until another one is added."""
        return await self._read(journal_verdicts.bans)

    async def lift_ban(self, peer: PeerId) -> bool:
        """End a ban before its time; False where there was none."""
        return await self._write(journal_verdicts.lift_ban, peer)

    async def add_proof(
        self,
        proof_id: BlobId,
        accused: PeerId,
        proof: bytes,
        blobs: Iterable[BlobId],
        verdict: str,
        *,
        own: bool = False,
        at: float | None = None,
        private: bool = False,
    ) -> bool:
        """Keep a fraud proof, or its new verdict; False where there is no room for it.

        Args:
            proof_id: Its content id.
            accused: Whom it is against.
            proof: Its bytes.
            blobs: Ids of the blobs that it takes to check it.
            verdict: What this node found.
            own: Whether it is of work that this node gave; those are kept before others.
            at: When, in seconds since the epoch; now, where it is not said.
            private: Whether it is for this node alone.
        """
        at = time.time() if at is None else at
        kept = KeptProof(proof_id, accused, proof, tuple(blobs), verdict, own, at, private)
        return await self._write(journal_verdicts.add_proof, kept)

    async def proofs(self) -> list[KeptProof]:
        """All fraud proofs, oldest first."""
        return await self._read(journal_verdicts.proofs)

    async def proof(self, proof_id: BlobId) -> KeptProof | None:
        """One fraud proof; None where it is not kept."""
        return await self._read(journal_verdicts.proof, proof_id)

    # --- disputes -----------------------------------------------------------------

    async def add_dispute(self, evidence: bytes) -> int:
        """Open a dispute; gives its number. One too many ends the oldest, as ``displaced``."""
        return await self._write(journal_verdicts.add_dispute, evidence)

    async def keep_dispute(self, number: int, evidence: bytes) -> bool:
        """Write down how far a dispute is, over its evidence; False where it has ended."""
        return await self._write(journal_verdicts.keep_dispute, number, evidence)

    async def open_disputes(self) -> list[tuple[int, bytes]]:
        """The disputes that have not ended, with their evidence, oldest first."""
        return await self._read(journal_verdicts.open_disputes)

    async def close_dispute(self, number: int, outcome: str) -> bool:
        """End a dispute; False where it had ended before."""
        return await self._write(journal_verdicts.close_dispute, number, outcome)

    # --- standing -----------------------------------------------------------------

    async def save_standing(
        self, rows: Iterable[StandingRow], forgotten: Iterable[PeerId] = ()
    ) -> None:
        """Write the accounts of some peers, and forget others'."""
        await self._write(journal_ledger.save_standing, tuple(rows), tuple(forgotten))

    async def standing_rows(self) -> list[StandingRow]:
        """The accounts of all peers."""
        return await self._read(journal_ledger.standing_rows)

    # --- receipts that this node gave ------------------------------------------------

    async def save_given_receipts(self, row: int, given: Sequence[Given], oldest: int) -> None:
        """Write receipts as one row, and forget the rows before ``oldest``."""
        await self._write(journal_defence.save, row, tuple(given), oldest)

    async def given_receipts(self) -> list[tuple[int, list[Given]]]:
        """All rows with their numbers, oldest first."""
        return await self._read(journal_defence.read)

    # --- acknowledgements and ledger ----------------------------------------------

    async def add_acknowledged(self, settled: Settled) -> list[PeerId]:
        """Write what was done, acknowledged or not; gives peers that the ledger forgot."""
        return await self._write(journal_ledger.settle, settled)

    async def ledger(self) -> list[LedgerRow]:
        """Who did how much for whom, the last to change first."""
        return await self._read(journal_ledger.ledger)

    async def unacknowledged(self) -> list[Unacknowledged]:
        """Receipts that this node gave and nobody has acknowledged, oldest first."""
        return await self._read(journal_ledger.unacknowledged)

    async def acknowledgements(
        self, requester: PeerId | None = None
    ) -> list[KeptAcknowledgement]:
        """The newest acknowledgements of a requester, or of all; oldest first."""
        return await self._read(journal_ledger.acknowledgements, requester)

    async def receipts_from(self, provider: PeerId | None, limit: int) -> list[bytes]:
        """The newest receipts of a provider's that are here, or of all providers'."""
        return await self._read(journal_ledger.receipts_from, provider, limit)
