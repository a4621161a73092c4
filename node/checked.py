"""What is in memory of results that wait to be checked, and what is written down of them.

Values only, for `node.checking` and those beside it: what each said of a unit, where its
check stands, and the unit's end that follows from it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import msgspec
import trio

from shoal.crypto.content import blob_id_of
from shoal.node.checks import Stage, UnitCheck, said_by
from shoal.node.records import Check, Ended, Failure, Unit, UnitState
from shoal.protocol.statements import Receipt, open_receipt

if TYPE_CHECKING:
    from shoal.crypto.peer_id import PeerId
    from shoal.node.records import JobId
    from shoal.node.running_jobs import Held, RunningJob
    from shoal.node.verifying import VerifierLease


class Deliveries(Protocol):
    """Where checked results go: `node.units_under_way`."""

    async def deliver_checked(self, running: RunningJob, ends: Sequence[Ended]) -> None:
        """Write them down."""

    def put_back(self, running: RunningJob, indices: Sequence[int]) -> None:
        """Have these units run again."""

    def doubt(self, job_id: JobId, index: int) -> None:
        """Have whoever runs this unit next be checked."""

    async def take_away(self, peer: PeerId, detail: str) -> None:
        """Have nothing more to do with a peer."""

    def let_go(self, lease: VerifierLease) -> None:
        """Release a lease with a verifier."""

    def wake(self) -> None:
        """Plan again."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """What somebody gave for a unit.

    Attributes:
        award, receipt: As signed: evidence, should it be false.
        end: The unit's end by it, where its outputs are here.
        pinned: The unit by whose name its outputs are pinned.
    """

    award: bytes
    receipt: bytes
    end: Ended | None = None
    pinned: Ended | None = None


@dataclass(slots=True, eq=False)
class Checked:
    """A result that waits.

    Attributes:
        held: The lease under which it came.
        opinions: What each gave, the provider's among them.
        looks_back: It was delivered before, and is only looked at again.
        tries: How often nobody was left to ask.
        own_only: It is this node alone that is asked; no policy asks for that.
        gone: Nobody waits for it any more: what is still said of it is not taken in.
    """

    machine: UnitCheck
    unit: Unit
    held: Held
    opinions: dict[PeerId, Opinion]
    size_bytes: int
    tries: int = 0
    since_s: float = field(default_factory=trio.current_time)
    looks_back: bool = False
    own_only: bool = False
    gone: bool = False

    @property
    def agreed(self) -> tuple[PeerId, ...]:
        """Whose own run came to the result that is delivered, beside whose result it is."""
        machine = self.machine
        return tuple(
            peer
            for peer in machine.opinions
            if peer != machine.right and peer not in machine.false
        )


@dataclass(slots=True)
class JobChecks:
    """What of one job waits.

    Attributes:
        waiting: By index of the unit.
        ready: Results that are held back though they are right as far as anybody knows, by
            index of the unit, with when that began.
        lines: For each verifier what it is to run.
        serving: Verifiers that have a task.
        releasing: Whether a task looks after those in ``ready``.
        rests: Until when a verifier is not asked, since it gave no answer.
    """

    running: RunningJob
    waiting: dict[int, Checked] = field(default_factory=dict)
    ready: dict[int, tuple[Checked, float]] = field(default_factory=dict)
    lines: dict[PeerId, deque[Checked]] = field(default_factory=dict)
    serving: set[PeerId] = field(default_factory=set)
    rests: dict[PeerId, float] = field(default_factory=dict)
    size_bytes: int = 0
    releasing: bool = False
    added: trio.Event = field(default_factory=trio.Event)


def right_end(checked: Checked) -> Ended | None:
    """What is to be written down; None where nobody's result can be used."""
    machine = checked.machine
    if machine.stage is Stage.UNCHECKED and len(set(machine.opinions.values())) > 1:
        return None
    opinion = checked.opinions[machine.right]
    end = opinion.end
    own = checked.opinions.get(machine.own)
    if end is None and own is not None and own.end is not None:
        end = own.end  # equal bits, which are here
    if end is None:
        return None
    unit = msgspec.structs.replace(
        end.unit, provider=machine.right, receipt=blob_id_of(opinion.receipt)
    )
    return msgspec.structs.replace(
        end, unit=unit, receipt=opinion.receipt, checks=_records(checked)
    )


def _records(checked: Checked) -> tuple[Check, ...]:
    """The checks as they are written down."""
    now = time.time()
    return tuple(
        Check(
            job=checked.unit.job,
            unit=checked.unit.index,
            level=level,
            verifier=peer,
            verdict=verdict,
            receipt=blob_id_of(opinion.receipt) if opinion else None,
            at=now,
        )
        for peer, level, verdict in checked.machine.verdicts
        for opinion in (checked.opinions.get(peer),)
    )


def end_by(
    unit: Unit, receipt: Receipt, envelope: bytes, outputs: Ended | None
) -> Ended | None:
    """The end that a unit has by a receipt; None where its outputs are not here."""
    who = {"provider": receipt.provider, "receipt": blob_id_of(envelope)}
    if receipt.error is not None:
        failure = Failure(receipt.error.code, receipt.error.message)
        ended = msgspec.structs.replace(
            unit, state=UnitState.FAILED, outputs=None, failure=failure, **who
        )
        return Ended(ended, envelope)
    if outputs is None:
        return None
    ended = msgspec.structs.replace(
        unit, state=UnitState.DONE, outputs=outputs.unit.outputs, failure=None, **who
    )
    return Ended(ended, envelope, outputs.tensors)


def said(end: Ended) -> object:
    """What the provider's receipt says, by the end that was made of it."""
    assert end.receipt is not None
    return said_by(open_receipt(end.receipt))
