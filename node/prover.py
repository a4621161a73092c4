"""The prover's half of capability challenges: this node shows what it claims.

Answers whoever is not denied, within bounds: one challenge at a time, so many a minute, no more
work than `PROVE_LIMIT_S` at its own claim, and only while nothing else runs. What is
said when is in `protocol.challenge`; what is multiplied, in the worker.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog
import trio

from shoal.compute import frames
from shoal.compute.errors import ComputeError, ProgramError
from shoal.crypto.envelope import Statement
from shoal.node.capability_records import take_up
from shoal.node.proofs import Proof, ProofBook, checked
from shoal.protocol.challenge import ProverSide
from shoal.protocol.challenge_messages import (
    Challenge,
    Committed,
    Draw,
    Opened,
    ProofOffer,
    Proofs,
    ProofsWanted,
)
from shoal.protocol.challenge_terms import SLACK, work_of
from shoal.protocol.codec import encode
from shoal.protocol.device_offers import ClassRate
from shoal.protocol.messages import ChallengeRequest, Done
from shoal.protocol.negotiation_messages import Reason, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from shoal.crypto.peer_id import PeerId
    from shoal.node.bidding import Terms
    from shoal.node.house import House

PROVE_LIMIT_S: Final = 2.0
"""Of work, at its own claim, that a node does for a challenge; whoever asks for more is
refused. The time it really takes may be three times as long."""

CHALLENGES_PER_MINUTE: Final = 4
STRANGERS_PER_MINUTE: Final = 2
"""Of those; the others are for peers on the allow list, whom strangers so cannot shut out."""

TURN_LIMIT_S: Final = 5.0
"""How much longer than a challenge may take is waited for its turn and its end. Units go before
it, and on a card that runs several at once one may always be under way; its verifier has long
given up by then, and another challenge may be answered."""

OVERTAKEN: Final = "overtaken"

_NOT_THE_DEVICES: Final = frozenset({"worker_start", "no_memory", OVERTAKEN})
"""Why a claim is not shown that is as true as it was: the machine is short of something."""

HELD_LIMIT: Final = 8
"""Challenges whose digests are held for the verifier's draw: 8 MiB each at the most."""

log = structlog.get_logger(__name__)


def refusal(
    challenge: Challenge,
    verifier: PeerId,
    terms: Terms,
    rates: Collection[ClassRate],
    *,
    busy: bool,
) -> Refusal | None:
    """Why this node does not take a challenge of ``verifier``, or None where it does.

    Args:
        challenge: What is to be shown.
        verifier: To whom.
        terms: Of the device that it names; of any, where there is none of that name.
        rates: What is claimed of the device.
        busy: Whether something runs there, or could not at once.
    """
    claim = next(
        (
            rate.rate
            for rate in rates
            if (rate.numeric_class, rate.precision)
            == (challenge.numeric_class, challenge.precision)
        ),
        0.0,
    )
    reason: tuple[Reason, str] | None = None
    if verifier in terms.denied:
        reason = (Reason.DENIED, "this node's owner has put you on its deny list")
    elif not terms.providing:
        reason = (Reason.NOT_PROVIDING, "this node claims nothing: it takes no work")
    elif terms.stance.cause is not None:
        reason = (Reason.PAUSED, "its owner lets it do no work now")
    elif terms.draining:
        reason = (Reason.DRAINING, "this node is shutting down")
    elif challenge.device != terms.device:
        reason = (Reason.NO_DEVICE, "no such device takes units here; see the newest advert")
    elif claim == 0.0:
        reason = (Reason.CLASS_NOT_OFFERED, "no rate is claimed for this class and precision")
    elif challenge.rate > claim:
        reason = (Reason.EXPIRED, f"claimed is {claim:.4g} now; see the newest advert")
    elif work_of(challenge).claimed_s(claim) > PROVE_LIMIT_S:
        reason = (Reason.TOO_LARGE, f"no more than {PROVE_LIMIT_S:g} s of work is done for one")
    elif busy or terms.units_waiting:
        reason = (Reason.BUSY, "units run here; ask again later")
    return Refusal(call=challenge.nonce, reason=reason[0], detail=reason[1]) if reason else None


@dataclass(slots=True)
class Allowance:
    """How often this node lets itself be challenged."""

    _taken: list[tuple[float, bool]] = field(default_factory=list)

    def take(self, now_s: float, *, stranger: bool) -> bool:
        """Take one challenge of this minute, if there is one left."""
        self._taken = [entry for entry in self._taken if entry[0] > now_s - 60.0]
        by_strangers = sum(was_stranger for _, was_stranger in self._taken)
        if len(self._taken) >= CHALLENGES_PER_MINUTE or (
            stranger and by_strangers >= STRANGERS_PER_MINUTE
        ):
            return False
        self._taken.append((now_s, stranger))
        return True


class Prover:
    """Answers challenges, and who asks for proofs.

    Args:
        house: The modules of this node.
        book: The proofs.
        rates: Gives what this node claims now of a device.
        gives: Gives the proofs of those claims.
        belied: Told of which device this node could not show its own claim.
        proven: Told when a verifier has seen it shown.
    """

    def __init__(
        self,
        house: House,
        book: ProofBook,
        rates: Callable[[str], Collection[ClassRate]],
        gives: Callable[[], Collection[Proof]],
        belied: Callable[[str], None],
        proven: Callable[[], None],
    ) -> None:
        self._house = house
        self._book = book
        self._rates = rates
        self._gives = gives
        self._belied = belied
        self._proven = proven
        self._allowance = Allowance()
        self._proving = False
        self._sides: dict[tuple[PeerId, str], ProverSide] = {}

    async def answer(
        self, peer: PeerId, message: ChallengeRequest
    ) -> Committed | Opened | Proofs | Done | Refusal:
        """Answer one message of a verifier.

        Raises:
            RemoteProtocolError: It is out of turn.
            VerificationError: It brings a proof that is none.
        """
        if isinstance(message, ProofsWanted):
            return Proofs(proofs=tuple(proof.envelope for proof in self._gives()))
        for key, side in list(self._sides.items()):
            if side.expire(trio.current_time()):
                del self._sides[key]
        if isinstance(message, Challenge):
            return await self._prove(peer, message)
        held = self._sides.get((peer, message.nonce))
        if held is None:
            if isinstance(message, ProofOffer):
                return Done()
            return Refusal(
                call=message.nonce, reason=Reason.EXPIRED, detail="no such challenge is held"
            )
        held.receive(message, trio.current_time())
        match message:
            case Draw():
                opened: Opened = await trio.to_thread.run_sync(held.open)
                held.send(opened, trio.current_time())
                return opened
            case ProofOffer():
                del self._sides[peer, message.nonce]
                proof = checked(message.proof)
                await take_up(self._house.journal, self._book, proof)
                log.info("a claim was seen shown", verifier=peer)
                self._proven()
        return Done()

    async def _prove(self, peer: PeerId, challenge: Challenge) -> Committed | Refusal:
        side = ProverSide(verifier=peer, prover=self._house.peer_id)
        side.receive(challenge, trio.current_time())
        answer: Committed | Refusal | None = self._refusal(peer, challenge)
        if answer is None:
            self._proving = True
            try:
                answer = await self._commit(side, challenge)
            except (ProgramError, ComputeError) as error:
                log.warning(
                    "a claim could not be shown",
                    verifier=peer,
                    device=challenge.device,
                    error=str(error),
                )
                if error.code not in _NOT_THE_DEVICES:
                    self._belied(challenge.device)
                reason = Reason.BUSY if error.code == OVERTAKEN else Reason.INTERNAL
                answer = Refusal(
                    call=challenge.nonce, reason=reason, detail=error.message[:256]
                )
            finally:
                self._proving = False
        side.send(answer, trio.current_time())
        if isinstance(answer, Committed):
            while len(self._sides) >= HELD_LIMIT:
                del self._sides[next(iter(self._sides))]
            self._sides[peer, challenge.nonce] = side
        return answer

    def _refusal(self, peer: PeerId, challenge: Challenge) -> Refusal | None:
        offers = self._house.offers()
        terms = next((t for t in offers if t.device == challenge.device), offers[0])
        busy = self._proving or self._house.worker_on(terms.device).busy
        rates = self._rates(terms.device)
        answer = refusal(challenge, peer, terms, rates, busy=busy)
        if answer is None and (peer, challenge.nonce) in self._sides:
            answer = Refusal(
                call=challenge.nonce, reason=Reason.EXPIRED, detail="this nonce was used"
            )
        stranger = peer not in self._book.allowed
        if answer is None and not self._allowance.take(trio.current_time(), stranger=stranger):
            answer = Refusal(
                call=challenge.nonce,
                reason=Reason.BUSY,
                detail="this node was challenged often enough in this minute",
            )
        return answer

    async def _commit(self, side: ProverSide, challenge: Challenge) -> Committed:
        limit_s = SLACK * work_of(challenge).claimed_s(challenge.rate)
        request = frames.Prove(
            root=side.root,
            rows=challenge.rows,
            size=challenge.size,
            steps=challenge.steps,
            precision=challenge.precision,
            time_limit_s=limit_s,
        )
        worker = self._house.worker_on(challenge.device)
        try:
            with trio.fail_after(limit_s + TURN_LIMIT_S):
                done = await worker.measure(request, frames.Proved, limit_s)
        except trio.TooSlowError:
            raise ComputeError("units came before its turn", code=OVERTAKEN) from None
        commitment = side.commitment_to(done.roots, done.elapsed_s)
        side.leaves = done.leaves
        envelope = self._house.identity.sign(Statement.COMMITMENT, encode(commitment))
        return Committed(nonce=challenge.nonce, commitment=envelope)
