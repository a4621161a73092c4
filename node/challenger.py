"""The verifier's half of capability challenges: this node has others show their claims.

An operator asks by ``shoal challenge``; the node itself, seldom and when it is idle,
asks those providers whose claims nobody it trusts has seen shown. One challenge is out
at a time, so that nothing but the link stands between the prover and this node's clock.
What is said when is in `protocol.challenge`; the few rows that are computed here are
computed in the worker.
"""

from __future__ import annotations

import random
import secrets
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog
import trio

from shoal.compute import frames
from shoal.compute.capability import PRECISION_SHOWN
from shoal.compute.errors import ComputeError
from shoal.compute.executors.base import NumericClass
from shoal.crypto.content import DIGEST_SIZE_BYTES
from shoal.crypto.envelope import Statement
from shoal.crypto.errors import ShoalError, VerificationError
from shoal.crypto.peer_id import PeerId
from shoal.node.capability_records import leased_from, take_up
from shoal.node.capability_views import ChallengeView, Claim
from shoal.node.device_lines import line_of
from shoal.node.errors import NetworkError, PeerError
from shoal.node.house import fitting, wall_ms
from shoal.node.proofs import ProofBook, checked
from shoal.node.standing import Offence
from shoal.protocol.challenge import VerifierSide
from shoal.protocol.challenge_messages import Challenge, Committed, Draw, Opened, ProofOffer
from shoal.protocol.challenge_terms import (
    OPENING_LIMIT_S,
    delay_taken_off_s,
    draw_places,
    time_allowed_s,
    work_for,
    work_of,
)
from shoal.protocol.codec import encode
from shoal.protocol.negotiation_messages import Refusal
from shoal.protocol.vocabulary import knows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence

    from shoal.node.house import House
    from shoal.node.membership import Membership
    from shoal.protocol.device_offers import ClassRate
    from shoal.protocol.statements import Advert

PINGS: Final = 3
PING_LIMIT_S: Final = 2.0
TELL_LIMIT_S: Final = 5.0
RECOMPUTE_LIMIT_S: Final = 20.0

AUTO_INTERVAL_S: Final = 600.0
"""Between two challenges of the node's own accord: each costs the prover about a second."""

RETRY_AFTER_S: Final = 3600.0
"""Before a peer is asked again by the node itself."""

FALSE: Final = frozenset({"wrong_rows", "commitment_mismatch", "bad_signature", "wrong_signer"})
"""What only a liar does in a challenge; being too slow for one's claim is no offence."""

log = structlog.get_logger(__name__)


# --- decisions: pure ------------------------------------------------------------------


def choose_candidate(
    adverts: Iterable[Advert],
    *,
    own: PeerId,
    leased_from: Sequence[PeerId],
    linked: Collection[PeerId],
    proven: Callable[[Advert], bool],
    ready: Callable[[PeerId], bool],
    jitter: float,
) -> PeerId | None:
    """Whom this node challenges of its own accord, if anybody.

    Providers that claim a rate which nobody it trusts has seen shown: those that it
    leased from first, then links, then others; among equals by ``jitter`` in [0, 1).
    """
    candidates = [
        PeerId(advert.peer)
        for advert in adverts
        if advert.peer != own
        and advert.providing
        and knows(advert.protocol, Challenge)
        and challengeable(advert)
        and not proven(advert)
        and ready(PeerId(advert.peer))
    ]
    if not candidates:
        return None
    kinds = [leased_from, linked, candidates]
    best = next(
        found for kind in kinds if (found := sorted(p for p in candidates if p in kind))
    )
    return best[int(jitter * len(best))]


def is_challengeable(claim: ClassRate | Claim) -> bool:
    """Whether a claim is about the class and precision that chains are made of."""
    shown = (NumericClass.EXACT.value, PRECISION_SHOWN)
    return (claim.numeric_class, claim.precision) == shown


def challengeable(advert: Advert, device: str | None = None) -> tuple[str, ClassRate] | None:
    """A claim in an advert that a challenge can put to the test, and its device.

    Args:
        advert: Of the prover.
        device: Which of its devices, perhaps one that stands in a line with others; the
            first that can be asked where it is None.
    """
    line = None if device is None else line_of(advert.devices, device)
    for offer in advert.devices if device is None else filter(None, (line,)):
        for rate in offer.rates:
            if is_challengeable(rate):
                return device or offer.id, rate
    return None


def unproven(claims: Iterable[Claim]) -> str | None:
    """The first device with a claim that could be shown and that nobody who counts has seen."""
    return next((c.device for c in claims if is_challengeable(c) and not c.proven), None)


# --- effects ------------------------------------------------------------------------------


class Challenger:
    """Challenges peers. Made by `open_challenger`.

    Args:
        house: The modules of this node.
        membership: Knows the peers and their adverts.
        book: The proofs.
        idle: Whether this node has nothing else to do.
    """

    def __init__(
        self,
        house: House,
        membership: Membership,
        book: ProofBook,
        idle: Callable[[], bool],
    ) -> None:
        self._house = house
        self._membership = membership
        self._book = book
        self._idle = idle
        self._asking = trio.Lock()
        self._asked_at_s: dict[PeerId, float] = {}
        self._random = random.Random()  # noqa: S311 - spreads challenges, guards nothing

    async def challenge(self, peer: PeerId, device: str | None = None) -> ChallengeView:
        """Have a peer show a rate that it claims; one challenge at a time.

        Raises:
            PeerError: It is not known, or claims nothing that can be shown.
            VersionError: ``peer_too_old`` for challenges.
            NetworkError: It cannot be reached, or went away.
            ComputeError: This node cannot compute the rows that it draws.
        """
        entry = self._membership.table.get(peer)
        if entry is None:
            raise PeerError(
                f"no node {peer[:64]} is known", code="no_such_peer", hint="see `shoal peers`"
            )
        if peer == self._house.peer_id:
            raise PeerError(
                "a node cannot vouch for itself",
                code="own_claim",
                hint="name another one; `shoal peers` lists them",
            )
        claim = challengeable(entry.advert, device)
        if claim is None:
            raise PeerError(
                f"{peer} claims no rate that can be shown",
                code="no_claim",
                hint="a node measures itself some seconds after its kernels are compiled, and "
                "later where it is busy; its owner can have it done now by "
                "“shoal devices --measure”",
            )
        if self._house.worker.busy:
            raise ComputeError(
                "units run here, so the rows that are drawn could not be computed now",
                code="worker_busy",
                hint="ask again when they have ended; `shoal status` shows how many jobs run",
            )
        async with self._asking:
            now_s = trio.current_time()
            self._asked_at_s = {
                known: at_s
                for known, at_s in self._asked_at_s.items()
                if at_s + RETRY_AFTER_S > now_s
            } | {peer: now_s}
            return await self._challenge(peer, *claim)

    async def _challenge(self, peer: PeerId, device: str, claim: ClassRate) -> ChallengeView:
        assert claim.precision is not None
        await self._house.reach(peer)
        work = work_for(claim.rate)
        side = VerifierSide(verifier=self._house.peer_id, prover=peer)
        side.round_trip_s = await self._round_trip_s(peer)
        asked = Challenge(
            nonce=secrets.token_hex(16),
            device=device,
            numeric_class=claim.numeric_class,
            precision=claim.precision,
            rate=claim.rate,
            rows=work.rows,
            size=work.size,
            steps=work.steps,
        )
        view = ChallengeView(
            peer=peer,
            device=device,
            numeric_class=claim.numeric_class,
            precision=claim.precision,
            outcome="failed",
            claimed=claim.rate,
            shown=0.0,
            multiply_adds=work.multiply_adds,
            rows_checked=0,
            elapsed_s=0.0,
            link_delay_s=delay_taken_off_s(asked, side.round_trip_s),
        )
        started_s = trio.current_time()
        try:
            answer = await self._converse(side, asked)
        except VerificationError as error:
            log.warning("a claim was not shown", peer=peer, code=error.code, error=str(error))
            if error.code in FALSE:
                self._house.broke(peer, Offence.FALSE_CLAIM, error.message)
            view = msgspec.structs.replace(view, code=error.code, message=error.message)
        else:
            if isinstance(answer, Refusal):
                view = msgspec.structs.replace(
                    view, outcome="refused", code=answer.reason.value, message=answer.detail
                )
            else:
                assert side.draw is not None
                view = msgspec.structs.replace(
                    view,
                    outcome="shown",
                    shown=side.shown,
                    rows_checked=len(side.draw.places),
                    proof=answer,
                )
        return msgspec.structs.replace(view, elapsed_s=trio.current_time() - started_s)

    async def _converse(self, side: VerifierSide, asked: Challenge) -> Refusal | str:
        """The challenge, start to end; gives the proof's id, or the prover's refusal."""
        answer = await self._ask(side, asked, time_allowed_s(asked), Committed | Refusal)
        if isinstance(answer, Refusal):
            return answer
        places = draw_places(work_of(asked), secrets.randbelow)
        draw = Draw(nonce=asked.nonce, places=places)
        answer = await self._ask(side, draw, OPENING_LIMIT_S, Opened | Refusal)
        if isinstance(answer, Refusal):
            raise VerificationError(
                f"it did not open the rows that were drawn: {answer.detail or answer.reason}",
                code="not_opened",
            )
        request = frames.Recompute(
            root=side.root,
            size=asked.size,
            precision=asked.precision,
            rows=tuple((row.seed, row.row) for row in side.rows),
        )
        done = await self._house.worker.measure(request, frames.Recomputed, RECOMPUTE_LIMIT_S)
        leaves = [
            done.leaves[at : at + DIGEST_SIZE_BYTES]
            for at in range(0, len(done.leaves), DIGEST_SIZE_BYTES)
        ]
        said = side.judge(leaves, wall_ms())
        envelope = self._house.identity.sign(Statement.CAPABILITY, encode(said))
        offer = ProofOffer(nonce=asked.nonce, proof=envelope)
        side.send(offer, trio.current_time())
        await take_up(self._house.journal, self._book, checked(envelope))
        try:
            await self._house.control.request(side.prover, offer, TELL_LIMIT_S)
        except ShoalError as error:  # it counts here all the same
            log.info("a proof was not handed over", peer=side.prover, error=str(error))
        return said.commitment.hex()

    async def _ask(
        self, side: VerifierSide, message: Challenge | Draw, time_s: float, kinds: Any
    ) -> Any:
        """Say something and take the answer; silence is an answer too late."""
        side.send(message, trio.current_time())
        try:
            answer = fitting(
                await self._house.control.request(
                    side.prover, message, time_s + side.round_trip_s + 1.0
                ),
                kinds,
            )
        except NetworkError as error:
            if error.code != "no_answer":
                raise
            raise VerificationError(error.message, code="too_slow") from None
        side.receive(answer, trio.current_time())
        return answer

    async def _round_trip_s(self, peer: PeerId) -> float:
        pings = [await self._house.network.ping(peer, PING_LIMIT_S) for _ in range(PINGS)]
        return min(pings)

    # --- of its own accord ------------------------------------------------------------

    async def keep_asking(self) -> None:
        """Challenge unproven providers, seldom and when idle, for ever."""
        while True:
            await trio.sleep(AUTO_INTERVAL_S * (0.5 + self._random.random()))
            if not self._idle() or self._house.worker.busy:
                continue
            try:
                await self._ask_somebody()
            except ShoalError as error:
                log.info("no challenge was made", code=error.code, error=str(error))

    async def _ask_somebody(self) -> None:
        peer = choose_candidate(
            [entry.advert for entry in self._membership.table],
            own=self._house.peer_id,
            leased_from=await leased_from(self._house.journal),
            linked=self._membership.links,
            proven=partial(_is_proven, self._book),
            ready=self._is_ready,
            jitter=self._random.random(),
        )
        entry = self._membership.table.get(peer) if peer is not None else None
        if peer is not None and entry is not None:
            device = unproven(self._book.claims(entry.advert, wall_ms()))
            view = await self.challenge(peer, device)
            log.info("a provider was challenged", peer=peer, outcome=view.outcome)

    def _is_ready(self, peer: PeerId) -> bool:
        asked_at_s = self._asked_at_s.get(peer)
        return asked_at_s is None or asked_at_s + RETRY_AFTER_S <= trio.current_time()


def _is_proven(book: ProofBook, advert: Advert) -> bool:
    return unproven(book.claims(advert, wall_ms())) is None


@asynccontextmanager
async def open_challenger(challenger: Challenger) -> AsyncIterator[Challenger]:
    """Challenge providers now and then for as long as the block runs."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(challenger.keep_asking)
        yield challenger
        nursery.cancel_scope.cancel()
