"""Who ran what, and whether it adds up: pure checks of a job that has ended.

Every receipt is checked again as a stranger would check it, from its bytes
alone, and then against what was sent and what was delivered. What does not hold
becomes a sentence in ``problems``; the demo has failed where there is one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.crypto.errors import VerificationError
from shoal.protocol.statements import open_receipt, statement_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from shoal.crypto.peer_id import PeerId
    from shoal.node.demo.spread import Delivered, Spread
    from shoal.protocol.statements import Receipt

UNITS_PER_NODE_WANTED = 4
"""With fewer, a job may be over before every node had its turn."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one node has run.

    Attributes:
        role: In words: requester, provider, and what became of it.
        seconds: Time in which it had at least one unit at work, by its own clock.
    """

    peer: PeerId
    role: str
    killed: bool
    files: int
    units: int
    receipts_verified: int
    seconds: float


def shares_of(
    spread: Spread, peers: Sequence[PeerId], files: int
) -> tuple[tuple[Share, ...], tuple[str, ...]]:
    """Count what each node has run, and say what does not add up.

    Args:
        spread: The job.
        peers: All nodes; the first is the requester.
        files: How many reached the model.
    """
    requester = peers[0]
    problems: list[str] = []
    receipts: dict[int, Receipt] = {}
    for delivered in spread.units:
        try:
            receipts[delivered.unit.index] = check(delivered, spread, requester)
        except VerificationError as error:
            problems.append(f"unit {delivered.unit.index}: {error.message}")
    shares = tuple(_share(peer, requester, spread, receipts) for peer in peers)
    return shares, (*problems, *_sums(spread, shares, files))


def check(delivered: Delivered, spread: Spread, requester: PeerId) -> Receipt:
    """Verify one receipt offline, and that it is about what was sent and delivered.

    Raises:
        VerificationError: It is not; the sentence names what differs.
    """
    unit = delivered.unit
    receipt = open_receipt(delivered.envelope)
    wanted: tuple[tuple[str, object, object], ...] = (
        ("id", statement_id(delivered.envelope), unit.receipt),
        ("unit", receipt.unit, f"{spread.job.id}/{unit.index}"),
        ("program", receipt.program, spread.job.program),
        ("provider", receipt.provider, unit.provider),
        ("requester", receipt.requester, requester),
        ("inputs", dict(receipt.inputs), delivered.inputs),
        ("outputs", dict(receipt.outputs or ()), delivered.output_ids),
    )
    for what, got, want in wanted:
        if got != want:
            raise VerificationError(
                f"its receipt's {what} is {got}, and {want} was expected",
                code="receipt_mismatch",
            )
    for name, array in delivered.outputs.items():
        if len(array) != delivered.rows:
            raise VerificationError(
                f"its output {name} has {len(array)} rows for {delivered.rows} files",
                code="wrong_rows",
            )
    return receipt


def busy_s(spans_ms: Iterable[tuple[int, int]]) -> float:
    """How long at least one of some spans of time was open, in seconds."""
    total_ms, open_until_ms = 0, 0
    for start_ms, end_ms in sorted(spans_ms):
        total_ms += max(0, end_ms - max(start_ms, open_until_ms))
        open_until_ms = max(open_until_ms, end_ms)
    return total_ms / 1000


def _share(
    peer: PeerId, requester: PeerId, spread: Spread, receipts: Mapping[int, Receipt]
) -> Share:
    ran = [delivered for delivered in spread.units if delivered.unit.provider == peer]
    verified = [receipts[each.unit.index] for each in ran if each.unit.index in receipts]
    role = "requester and provider" if peer == requester else "provider"
    killed = spread.killed if spread.killed and spread.killed.peer == peer else None
    if killed is not None:
        role += ", killed half-way" if killed.half_way else ", killed at the end"
    return Share(
        peer=peer,
        role=role,
        killed=killed is not None,
        files=sum(delivered.rows for delivered in ran),
        units=len(ran),
        receipts_verified=len(verified),
        seconds=busy_s((each.started_at_ms, each.ended_at_ms) for each in verified),
    )


def _sums(spread: Spread, shares: Sequence[Share], files: int) -> Iterator[str]:
    """What does not add up, in sentences."""
    total = spread.job.units_total
    if [delivered.unit.index for delivered in spread.units] != list(range(total)):
        yield f"not each of the {total} units came back exactly once"
    if sum(share.files for share in shares) != files:
        yield f"the files of all nodes do not sum to the {files} that reached the model"
    if Counter(spread.receipt_ids) != Counter(each.unit.receipt for each in spread.units):
        yield "the requester does not hold exactly one receipt for each unit"
    if total >= UNITS_PER_NODE_WANTED * len(shares):
        if spread.killed is None or not spread.killed.half_way:
            yield "the job was over before a provider could be killed"
        for share in shares:
            if not share.units:
                yield f"{share.peer} ran no unit"
