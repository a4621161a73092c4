"""Claimed rates and challenges as the local API shows them: values alone."""

from __future__ import annotations

from typing import Literal

import msgspec

from shoal.crypto.peer_id import PeerId


class Claim(msgspec.Struct, frozen=True):
    """One claimed rate, and who has seen it shown.

    Attributes:
        device: The device's id.
        numeric_class: ``exact``, ``fp32`` or ``low``.
        precision: Of the class exact, such as ``x20``.
        rate: Multiply-adds per second.
        proven: Whether a verifier whose word counts here has seen it.
        verifiers: All who have, by valid proofs.
    """

    device: str
    numeric_class: str
    precision: str | None
    rate: float
    proven: bool = False
    verifiers: tuple[PeerId, ...] = ()


class NoRate(msgspec.Struct, frozen=True):
    """A class of a device that has no rate, and why."""

    numeric_class: str
    why: str


class DeviceFigures(msgspec.Struct, frozen=True):
    """What was measured of one device beside the rates that are claimed.

    Attributes:
        device: Its id.
        memory_rate: Bytes per second that a copy there reads and writes; 0: not measured.
        measured_at: Seconds since the epoch; None before.
        problem: Why the last try to measure it gave nothing; "" as in `CapabilityView`.
        without: Its classes that have no rate.
        memory_problem: Why its memory was not measured, where the rest was.
        beside: Why the figures may be too low: what else went on meanwhile; "" otherwise.
        busy_since: Since when something keeps it from being measured, in seconds since the
            epoch; None where nothing does, or it need not be.
        busy_with: What that is.
        measuring: Whether it is measured just now.
        asked: Whether its owner has asked for that, and it has not ended since.
    """

    device: str
    memory_rate: float
    measured_at: float | None
    problem: str = ""
    without: tuple[NoRate, ...] = ()
    memory_problem: str = ""
    beside: str = ""
    busy_since: float | None = None
    busy_with: str = ""
    measuring: bool = False
    asked: bool = False


class CapabilityView(msgspec.Struct, frozen=True):
    """What this node claims of itself, and which of it others have seen.

    ``proven`` says here that any other node has seen it shown: whether that counts is
    for each of the others to say. Rates are per second; 0 is not measured. What is not
    in ``claims`` or ``devices`` is about the CPU.

    Attributes:
        problem: Why the last try to measure gave nothing; "" where it gave something, or
            none was made.
        devices: What was measured of each device.
    """

    claims: tuple[Claim, ...]
    memory_rate: float
    disk_rate: float
    measured_at: float | None
    problem: str = ""
    devices: tuple[DeviceFigures, ...] = ()


class ChallengeView(msgspec.Struct, frozen=True):
    """How a challenge ended.

    Attributes:
        outcome: ``shown``; ``refused`` by the prover, for the reason in ``code``; or
            ``failed``, and ``code`` says how.
        claimed: Multiply-adds per second.
        shown: Likewise; 0 where nothing was shown.
        multiply_adds: How much work it was.
        rows_checked: Computed again by this node.
        proof: The id of the prover's commitment, which the signed proof names.
    """

    peer: PeerId
    device: str
    numeric_class: str
    precision: str
    outcome: Literal["shown", "refused", "failed"]
    claimed: float
    shown: float
    multiply_adds: int
    rows_checked: int
    elapsed_s: float
    link_delay_s: float
    code: str = ""
    message: str = ""
    proof: str = ""
