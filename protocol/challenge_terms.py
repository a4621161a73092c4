"""The terms of a capability challenge: how much work, in what time, from which seeds.

Pure numbers and hashes, shared by the two machines (`protocol.challenge`), which say
what a challenge is, and by those who compute it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3

from shoal.crypto.errors import VerificationError
from shoal.protocol.challenge_messages import Challenge
from shoal.protocol.limits import (
    CHALLENGE_PLACES_LIMIT,
    CHALLENGE_ROWS_LIMIT,
    CHALLENGE_SIZE_LIMIT,
    CHALLENGE_STEPS_LIMIT,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shoal.crypto.peer_id import PeerId

# --- how much work ----------------------------------------------------------------

CLAIMED_TIME_S = 1.0
"""What a challenge takes at the claimed rate: long beside a link's delay, short beside
what the operator would notice."""

SLACK = 3.0
"""Times the claimed time that a prover may take: a quarter of the rate needs 4."""

LINK_DELAY_LIMIT_S = 0.5
"""Taken off for the link at most: halfway round the world twice, by satellite once."""

RATE_SHOWN_MIN = 1e8
"""Multiply-adds per second; below, drawing the right operand is too much of the work."""

OPENING_LIMIT_S = 3.0
"""For opening the rows drawn, beyond the link's delay: milliseconds of hashing."""

DRAW_LIMIT_S = 10.0
"""How long a prover keeps the digests of its products for the verifier's draw."""

PROOF_LIMIT_S = 30.0
"""How long a prover waits for the proof after it has opened the rows."""

_ROWS_MIN = 2048
_LEAVES_WANTED = 32_768
"""Rows in all: 64 of them and drawing the right operand are then about 1 % of the work."""
_SIZE_STEP = 128


@dataclass(frozen=True, slots=True)
class Work:
    """How much a challenge asks for: ``steps`` products (rows, size) x (size, size)."""

    rows: int
    size: int
    steps: int

    @property
    def multiply_adds(self) -> int:
        """Of all products together."""
        return self.rows * self.size * self.size * self.steps

    def claimed_s(self, rate: float) -> float:
        """How long it takes at ``rate`` multiply-adds per second."""
        return self.multiply_adds / rate


def work_for(rate: float, time_s: float = CLAIMED_TIME_S) -> Work:
    """The work that takes about ``time_s`` at ``rate``, within the protocol's limits.

    As wide as keeps `_LEAVES_WANTED` rows, so that the verifier has little to do and
    the prover multiplies more than it draws and hashes; then as many steps as fill
    the time. A rate beyond the limits gets the largest work there is.

    Raises:
        VerificationError: ``rate_too_low`` to be shown.
    """
    if rate < RATE_SHOWN_MIN:
        raise VerificationError(
            f"a rate of {rate:.3g} multiply-adds per second is too low to be shown: "
            f"{RATE_SHOWN_MIN:g} is the least",
            code="rate_too_low",
        )
    wanted = rate * time_s
    size = int((wanted / _LEAVES_WANTED) ** 0.5) // _SIZE_STEP * _SIZE_STEP
    size = min(max(size, _SIZE_STEP), CHALLENGE_SIZE_LIMIT)
    leaves = wanted / (size * size)
    rows = _ROWS_MIN
    while rows < CHALLENGE_ROWS_LIMIT and leaves > rows * CHALLENGE_STEPS_LIMIT:
        rows *= 2
    steps = min(max(round(leaves / rows), 1), CHALLENGE_STEPS_LIMIT)
    return Work(rows=rows, size=size, steps=steps)


def work_of(challenge: Challenge) -> Work:
    """The work that a challenge asks for."""
    return Work(challenge.rows, challenge.size, challenge.steps)


def time_allowed_s(challenge: Challenge) -> float:
    """How long the prover may take, the link's delay not counted."""
    return SLACK * work_of(challenge).claimed_s(challenge.rate)


def delay_taken_off_s(challenge: Challenge, round_trip_s: float) -> float:
    """How much of the measured time the link may account for."""
    claimed_s = work_of(challenge).claimed_s(challenge.rate)
    return max(0.0, min(round_trip_s, LINK_DELAY_LIMIT_S, claimed_s / 2))


def draw_places(work: Work, below: Callable[[int], int]) -> tuple[tuple[int, int], ...]:
    """Rows to be opened; ``below(n)`` draws evenly from 0..n-1 what nobody can foresee."""
    return tuple((below(work.steps), below(work.rows)) for _ in range(CHALLENGE_PLACES_LIMIT))


# --- seeds --------------------------------------------------------------------------


def root_seed(challenge: Challenge, verifier: PeerId, prover: PeerId) -> bytes:
    """What the right operand is drawn from, and the first left one after it: 32 bytes."""
    terms = (
        challenge.nonce,
        verifier,
        prover,
        challenge.device,
        challenge.numeric_class,
        challenge.precision,
        f"{challenge.rows} {challenge.size} {challenge.steps}",
    )
    digest = blake3(b"shoal-challenge-v1")
    for term in terms:
        encoded = term.encode()
        digest.update(len(encoded).to_bytes(4, "little") + encoded)
    return digest.digest()


def first_seed(root: bytes) -> bytes:
    """The seed of step 0."""
    return blake3(b"shoal-challenge-step" + root).digest()


def next_seed(seed: bytes, products_root: bytes) -> bytes:
    """The seed of the next step, which only the product of this one gives."""
    return blake3(b"shoal-challenge-step" + seed + products_root).digest()


def seeds_of(root: bytes, roots: Sequence[bytes]) -> list[bytes]:
    """The seed of each step, by the roots that were committed to."""
    seeds = [first_seed(root)]
    for products_root in roots[:-1]:
        seeds.append(next_seed(seeds[-1], products_root))
    return seeds
