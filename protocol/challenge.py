"""A capability challenge between a verifier and a prover, as two state machines.

A node's advert claims a rate; a challenge has it shown. Both sides put each message
through ``send`` or ``receive``; what is in neither table raises. Time is an argument.
What is multiplied is in `compute.challenge_work`, who asks and when in
`node.challenger`, and what a proof is worth in `node.proofs`.

A challenge names a nonce, a device, the claim, and how much work it is: ``steps``
products of ``rows`` x ``size`` by ``size`` x ``size`` numbers, about one second of it at
the claimed rate. All numbers are multiples of 2^-20 in [-1, 1), from Philox4x32-10. The
right operand is drawn from the nonce, both peers, and the terms of the challenge, and
stays the same. The left operand of step i is drawn from seed i. The BLAKE3 digests of
the product's rows are the leaves of a Merkle tree, and seed i + 1 is the digest of seed
i and that tree's root. So no step can begin before the last one's product is there, and
no work is of use in another challenge.

The prover signs all the roots in a `Commitment`. The verifier measures from its request
to that answer, takes off the link's delay, and wants no more than 3 times the claimed
time: a device of a quarter of the claim is too slow. Only then it draws 64 rows among
all steps, the prover opens them with Merkle paths, and the verifier computes these rows
by itself and compares their digests. That is 64 rows of work in place of thousands. The
rows themselves are never sent.

The link's delay is the shortest of a few pings just before, and no more than half a
second or half the claimed time: a prover that answers pings late gains less than what
divides it from the quarter.

Whoever shows the claim is given a `CapabilityProof`, signed by the verifier.

Prior art: proof of sequential work for the chain (Mahmoody, Moran, Vadhan 2013), commit
and open for the sample (Merkle 1987); rows drawn by the prover's own hash would need one
round less, and could be ground for: a prover that skips a tenth of the rows would find a
draw that misses them within a thousand tries of a few microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

from shoal.crypto.content import DIGEST_SIZE_BYTES, BlobId
from shoal.crypto.errors import VerificationError
from shoal.crypto.merkle import check_path, path_of
from shoal.crypto.peer_id import PeerId
from shoal.protocol.challenge_messages import Challenge, Committed, Draw, Opened, ProofOffer
from shoal.protocol.challenge_terms import (
    DRAW_LIMIT_S,
    OPENING_LIMIT_S,
    PROOF_LIMIT_S,
    SLACK,
    delay_taken_off_s,
    root_seed,
    seeds_of,
    time_allowed_s,
    work_of,
)
from shoal.protocol.errors import LocalProtocolError, RemoteProtocolError
from shoal.protocol.negotiation import Way
from shoal.protocol.negotiation_messages import Refusal
from shoal.protocol.statements import (
    CapabilityProof,
    Commitment,
    open_commitment,
    open_proof,
    statement_id,
)
from shoal.protocol.versions import OWN

if TYPE_CHECKING:
    from collections.abc import Sequence

# --- the two machines -----------------------------------------------------------------


class State(StrEnum):
    """Where a challenge stands; both roles pass through the same states."""

    IDLE = "idle"
    CHALLENGED = "challenged"
    COMMITTED = "committed"
    DRAWN = "drawn"
    OPENED = "opened"
    ENDED = "ended"


Message: TypeAlias = Challenge | Committed | Draw | Opened | ProofOffer | Refusal
Table: TypeAlias = dict[tuple[State, Way, type[Message]], State]

VERIFIER: Table = {
    (State.IDLE, Way.SENT, Challenge): State.CHALLENGED,
    (State.CHALLENGED, Way.GOT, Committed): State.COMMITTED,
    (State.CHALLENGED, Way.GOT, Refusal): State.ENDED,
    (State.COMMITTED, Way.SENT, Draw): State.DRAWN,
    (State.DRAWN, Way.GOT, Opened): State.OPENED,
    (State.DRAWN, Way.GOT, Refusal): State.ENDED,
    (State.OPENED, Way.SENT, ProofOffer): State.ENDED,
}

PROVER: Table = {
    (State.IDLE, Way.GOT, Challenge): State.CHALLENGED,
    (State.CHALLENGED, Way.SENT, Committed): State.COMMITTED,
    (State.CHALLENGED, Way.SENT, Refusal): State.ENDED,
    (State.COMMITTED, Way.GOT, Draw): State.DRAWN,
    (State.DRAWN, Way.SENT, Opened): State.OPENED,
    (State.DRAWN, Way.SENT, Refusal): State.ENDED,
    (State.OPENED, Way.GOT, ProofOffer): State.ENDED,
}


@dataclass(frozen=True, slots=True)
class Row:
    """A row that the verifier is to compute: row ``row`` of the step with ``seed``."""

    seed: bytes
    row: int


@dataclass(slots=True)
class _Side:
    """What both roles keep; the tables decide, this applies them."""

    verifier: PeerId
    prover: PeerId
    state: State = State.IDLE
    ends_at_s: float | None = None
    """When silence ends it; None while nothing is waited for here."""
    challenge: Challenge | None = None
    draw: Draw | None = None
    commitment: Commitment | None = None
    commitment_id: BlobId | None = None

    @property
    def root(self) -> bytes:
        """The seed of everything that is drawn in this challenge."""
        assert self.challenge is not None
        return root_seed(self.challenge, self.verifier, self.prover)

    def expire(self, now_s: float) -> bool:
        """End it if its time is over; says whether it has ended."""
        if self.ends_at_s is not None and now_s >= self.ends_at_s:
            self.state, self.ends_at_s = State.ENDED, None
        return self.state is State.ENDED

    def _next(self, table: Table, way: Way, message: Message) -> State:
        """The state after ``message``; raises, and changes nothing, where it may not be."""
        wrong = LocalProtocolError if way is Way.SENT else RemoteProtocolError
        after = table.get((self.state, way, type(message)))
        if after is None:
            raise wrong(
                f"{type(message).__name__} while the challenge is {self.state}",
                code="out_of_turn",
            )
        nonce = message.call if isinstance(message, Refusal) else message.nonce
        if self.challenge is not None and nonce != self.challenge.nonce:
            raise wrong("a message about another challenge", code="wrong_challenge")
        return after

    def _check_commitment(self, envelope: bytes) -> None:
        """Take a commitment, if it is the prover's and about this challenge.

        Raises:
            VerificationError: ``commitment_mismatch``, naming the first field that
                differs, or what `open_commitment` says.
        """
        assert self.challenge is not None
        commitment, asked = open_commitment(envelope), self.challenge
        wanted: tuple[tuple[str, object, object], ...] = (
            ("nonce", commitment.nonce, asked.nonce),
            ("prover", commitment.prover, self.prover),
            ("verifier", commitment.verifier, self.verifier),
            ("device", commitment.device, asked.device),
            ("numeric class", commitment.numeric_class, asked.numeric_class),
            ("precision", commitment.precision, asked.precision),
            ("rate", commitment.rate, asked.rate),
            ("rows", commitment.rows, asked.rows),
            ("size", commitment.size, asked.size),
            ("steps", commitment.steps, asked.steps),
            ("number of roots", len(commitment.roots), asked.steps),
        )
        for name, got, want in wanted:
            if got != want:
                raise VerificationError(
                    f"the commitment's {name} is {got!r}, and {want!r} was asked for"[:600],
                    code="commitment_mismatch",
                )
        self.commitment, self.commitment_id = commitment, statement_id(envelope)


@dataclass(slots=True)
class VerifierSide(_Side):
    """The verifier's machine.

    Args:
        round_trip_s: The shortest of some pings just before; set before the challenge.
    """

    round_trip_s: float = 0.0
    shown: float = 0.0
    """Multiply-adds per second that the prover has shown, once it has committed."""
    rows: tuple[Row, ...] = ()
    """Those to compute for `judge`, once the prover has opened them."""
    _asked_at_s: float = 0.0
    _paths: tuple[bytes, ...] = ()
    _judged: bool = False

    def send(self, message: Challenge | Draw | ProofOffer, now_s: float) -> None:
        """Note what is sent.

        Raises:
            LocalProtocolError: It may not be sent now.
        """
        after = self._next(VERIFIER, Way.SENT, message)
        match message:
            case Challenge():
                self.challenge, self._asked_at_s = message, now_s
                self.ends_at_s = now_s + time_allowed_s(message) + self._delay_s()
            case Draw():
                _check_places(message, self.challenge, LocalProtocolError)
                self.draw = message
                self.ends_at_s = now_s + OPENING_LIMIT_S + self.round_trip_s
            case ProofOffer():
                if not self._judged:
                    raise LocalProtocolError(
                        "a proof before the rows were compared", code="out_of_turn"
                    )
                self.ends_at_s = None
        self.state = after

    def receive(self, message: Committed | Opened | Refusal, now_s: float) -> None:
        """Take an answer.

        Raises:
            RemoteProtocolError: It is out of turn.
            VerificationError: ``too_slow``, or what is wrong with it: the claim is not
                shown, and the challenge is over.
        """
        after = self._next(VERIFIER, Way.GOT, message)
        self.state = State.ENDED  # unless all of it is right
        late = self.ends_at_s is not None and now_s > self.ends_at_s
        self.ends_at_s = None
        match message:
            case Committed():
                self._take_commitment(message, now_s, late=late)
            case Opened():
                if late:
                    raise VerificationError("the rows were opened too late", code="too_slow")
                self._take_paths(message)
        self.state = after

    def judge(self, leaves: Sequence[bytes], issued_at_ms: int) -> CapabilityProof:
        """Compare the digests of the rows that the verifier computed by itself.

        Args:
            leaves: Of `rows`, in their order.
            issued_at_ms: The wall clock, for the proof.

        Raises:
            VerificationError: ``wrong_rows``: at least one is not what was committed to.
        """
        assert self.state is State.OPENED
        assert self.challenge is not None
        assert self.draw is not None
        assert self.commitment is not None
        assert self.commitment_id is not None
        asked = self.challenge
        for (step, row), leaf, path in zip(self.draw.places, leaves, self._paths, strict=True):
            try:
                check_path(self.commitment.roots[step], leaf, row, asked.rows, path)
            except VerificationError:
                self.state = State.ENDED
                raise VerificationError(
                    f"row {row} of step {step} is not the one that was committed to",
                    code="wrong_rows",
                ) from None
        self._judged = True
        return CapabilityProof(
            protocol=OWN,
            prover=self.prover,
            device=asked.device,
            numeric_class=asked.numeric_class,
            precision=asked.precision,
            rate=asked.rate,
            shown=self.shown,
            commitment=bytes.fromhex(self.commitment_id),
            issued_at_ms=issued_at_ms,
        )

    def _delay_s(self) -> float:
        assert self.challenge is not None
        return delay_taken_off_s(self.challenge, self.round_trip_s)

    def _take_commitment(self, message: Committed, now_s: float, *, late: bool) -> None:
        assert self.challenge is not None
        took_s = max(now_s - self._asked_at_s - self._delay_s(), 1e-6)
        work = work_of(self.challenge)
        if late:
            raise VerificationError(
                f"{work.multiply_adds / 1e9:.2f} G multiply-adds took {took_s:.2f} s, and "
                f"{time_allowed_s(self.challenge):.2f} s is {SLACK:g} times the claimed time",
                code="too_slow",
            )
        self._check_commitment(message.commitment)
        self.shown = min(work.multiply_adds / took_s, 1e18)

    def _take_paths(self, message: Opened) -> None:
        assert self.draw is not None
        assert self.commitment is not None
        if len(message.paths) != len(self.draw.places):
            raise VerificationError(
                f"{len(self.draw.places)} rows were drawn and {len(message.paths)} opened",
                code="wrong_rows",
            )
        self._paths = message.paths
        seeds = seeds_of(self.root, self.commitment.roots)
        self.rows = tuple(Row(seeds[step], row) for step, row in self.draw.places)


@dataclass(slots=True)
class ProverSide(_Side):
    """The prover's machine."""

    proof: CapabilityProof | None = None
    leaves: tuple[bytes, ...] = ()
    """Of each step its rows' digests, joined; kept for as long as rows may be drawn."""

    def receive(self, message: Challenge | Draw | ProofOffer, now_s: float) -> None:
        """Take what the verifier says.

        Raises:
            RemoteProtocolError: It is out of turn, or over the terms.
            VerificationError: The proof is not the verifier's, or not about this challenge.
        """
        after = self._next(PROVER, Way.GOT, message)
        match message:
            case Challenge():
                self.challenge = message
            case Draw():
                if self.expire(now_s):
                    raise RemoteProtocolError("the draw came too late", code="expired")
                _check_places(message, self.challenge, RemoteProtocolError)
                self.draw = message
            case ProofOffer():
                self.proof = self._checked(message)
        self.ends_at_s = None
        self.state = after

    def send(self, message: Committed | Opened | Refusal, now_s: float) -> None:
        """Note what is answered.

        Raises:
            LocalProtocolError: It may not be sent now.
            VerificationError: The commitment is about something else.
        """
        after = self._next(PROVER, Way.SENT, message)
        match message:
            case Committed():
                self._check_commitment(message.commitment)
                self.ends_at_s = now_s + DRAW_LIMIT_S
            case Opened():
                self.leaves = ()
                self.ends_at_s = now_s + PROOF_LIMIT_S
        self.state = after

    def commitment_to(self, roots: tuple[bytes, ...], elapsed_s: float) -> Commitment:
        """What is to be signed about products with these roots, made in ``elapsed_s``."""
        assert self.challenge is not None
        asked = self.challenge
        return Commitment(
            protocol=OWN,
            nonce=asked.nonce,
            prover=self.prover,
            verifier=self.verifier,
            device=asked.device,
            numeric_class=asked.numeric_class,
            precision=asked.precision,
            rate=asked.rate,
            rows=asked.rows,
            size=asked.size,
            steps=asked.steps,
            roots=roots,
            elapsed_s=elapsed_s,
        )

    def open(self) -> Opened:
        """The paths of the rows drawn, to be sent; milliseconds of hashing."""
        assert self.draw is not None
        steps = {step: _cut(self.leaves[step]) for step, _ in self.draw.places}
        return Opened(
            nonce=self.draw.nonce,
            paths=tuple(path_of(steps[step], row) for step, row in self.draw.places),
        )

    def _checked(self, message: ProofOffer) -> CapabilityProof:
        assert self.challenge is not None
        proof, verifier = open_proof(message.proof)
        assert self.commitment_id is not None
        asked = self.challenge
        wanted: tuple[tuple[str, object, object], ...] = (
            ("verifier", verifier, self.verifier),
            ("prover", proof.prover, self.prover),
            ("device", proof.device, asked.device),
            ("numeric class", proof.numeric_class, asked.numeric_class),
            ("precision", proof.precision, asked.precision),
            ("rate", proof.rate, asked.rate),
            ("commitment", proof.commitment.hex(), self.commitment_id),
        )
        for name, got, want in wanted:
            if got != want:
                raise VerificationError(
                    f"the proof's {name} is {got!r}, and {want!r} was shown"[:600],
                    code="proof_mismatch",
                )
        return proof


def _cut(joined: bytes) -> list[bytes]:
    return [
        joined[at : at + DIGEST_SIZE_BYTES] for at in range(0, len(joined), DIGEST_SIZE_BYTES)
    ]


def _check_places(
    draw: Draw,
    challenge: Challenge | None,
    wrong: type[LocalProtocolError | RemoteProtocolError],
) -> None:
    assert challenge is not None
    for step, row in draw.places:
        if step >= challenge.steps or row >= challenge.rows:
            raise wrong(f"there is no row {row} of step {step}", code="no_such_row")
