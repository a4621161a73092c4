"""The ledger as a file of what others have signed, which anyone can check with no daemon.

Lines of JSON. The first says whose ledger it is and when it was written; that is its
writer's own word. Each other one is a statement in its envelope, in base64:
``{"acknowledgement": …, "award": …}`` by a requester, with the award that it gave where
that was kept, or ``{"receipt": …}`` by a provider. What follows from them is counted here:
how many receipts of whom a requester has acknowledged, at which price; how many receipts
a provider has signed.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from shoal.crypto.errors import VerificationError
from shoal.crypto.peer_id import PeerId
from shoal.protocol.statements import (
    open_acknowledgement,
    open_award,
    open_receipt,
    statement_id,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from shoal.node.journal_ledger import KeptAcknowledgement

LINE_LIMIT_BYTES: Final = 1 << 20
"""Two of the largest envelopes in base64."""

ACKNOWLEDGEMENTS_LIMIT: Final = 1024
RECEIPTS_LIMIT: Final = 4096
"""What one export has at most, the newest: some 10 MB."""

COMPLAINTS_LIMIT: Final = 100


class Header(msgspec.Struct, frozen=True):
    """The first line."""

    shoal_ledger: int
    node: str
    made_at: float


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Any other line."""

    acknowledgement: str | None = None
    award: str | None = None
    receipt: str | None = None


class PairTotals(msgspec.Struct, frozen=True):
    """What was signed of the work of one provider for one requester.

    Attributes:
        acknowledged: Receipts that the requester has acknowledged.
        credits: Of those, as far as their awards are in the file.
        receipts: Receipts that the provider has signed, and that are in the file.
        seconds: That these ran, by the provider's clock.
    """

    requester: PeerId
    provider: PeerId
    acknowledged: int = 0
    credits: float = 0.0
    receipts: int = 0
    seconds: float = 0.0


class Complaint(msgspec.Struct, frozen=True):
    """What is wrong with a line, by its number from 1."""

    line: int
    message: str


class Checked(msgspec.Struct, frozen=True):
    """What a file comes to.

    Attributes:
        complaints: Of its bad lines, the first `COMPLAINTS_LIMIT`; they count for nothing.
        bad: How many there are.
    """

    node: str
    made_at: float
    pairs: tuple[PairTotals, ...]
    complaints: tuple[Complaint, ...]
    bad: int


@dataclass(slots=True)
class _Pair:
    prices: dict[str, float] = field(default_factory=dict)
    receipts: dict[str, float] = field(default_factory=dict)


def write_lines(
    node: PeerId,
    made_at: float,
    acknowledgements: Iterable[KeptAcknowledgement],
    receipts: Iterable[bytes],
) -> bytes:
    """The file, whole."""
    lines = [msgspec.json.encode(Header(1, node, made_at))]
    for each in acknowledgements:
        line = {"acknowledgement": b64encode(each.envelope).decode()}
        if each.award:
            line["award"] = b64encode(each.award).decode()
        lines.append(msgspec.json.encode(line))
    lines += [msgspec.json.encode({"receipt": b64encode(one).decode()}) for one in receipts]
    return b"\n".join(lines) + b"\n"


def check_lines(lines: Iterable[bytes]) -> Checked:
    """Check every statement of a file, and count what the good ones say.

    Raises:
        VerificationError: ``no_ledger``: its first line is not that of such a file.
    """
    numbered = enumerate(lines, 1)
    header = _header(next(numbered, (1, b""))[1])
    pairs: dict[tuple[PeerId, PeerId], _Pair] = {}
    complaints: list[Complaint] = []
    bad = 0
    for number, line in numbered:
        if not line.strip():
            continue
        try:
            _take(line, pairs)
        except VerificationError as error:
            bad += 1
            if len(complaints) < COMPLAINTS_LIMIT:
                complaints.append(Complaint(number, error.message))
    totals = [
        _totals(requester, provider, pair) for (requester, provider), pair in pairs.items()
    ]
    totals.sort(key=lambda one: (-one.acknowledged, -one.receipts, one.requester, one.provider))
    return Checked(header.node, header.made_at, tuple(totals), tuple(complaints), bad)


def lines_of(file: Iterator[bytes]) -> Iterator[bytes]:
    """Lines of an open file; one that is too long is given cut, and is a bad one then."""
    for line in file:
        yield line[:LINE_LIMIT_BYTES]


def _header(line: bytes) -> Header:
    try:
        header = msgspec.json.decode(line, type=Header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        header = None
    if header is None or header.shoal_ledger != 1:
        raise VerificationError(
            "this is no ledger that this version of shoal can read",
            code="no_ledger",
            hint="`shoal ledger --export FILE` writes one",
        )
    return header


def _take(line: bytes, pairs: dict[tuple[PeerId, PeerId], _Pair]) -> None:
    try:
        said = msgspec.json.decode(line, type=_Line)
        acknowledgement, award, receipt = (
            None if text is None else b64decode(text, validate=True)
            for text in (said.acknowledgement, said.award, said.receipt)
        )
    except (ValueError, RecursionError):  # msgspec's own are among them
        raise VerificationError("this line is not one of a ledger") from None
    if acknowledgement is not None and receipt is None:
        _take_acknowledgement(acknowledgement, award, pairs)
    elif receipt is not None and acknowledgement is None and award is None:
        opened = open_receipt(receipt)
        pair = pairs.setdefault((PeerId(opened.requester), PeerId(opened.provider)), _Pair())
        took_ms = max(0, opened.ended_at_ms - opened.started_at_ms)
        pair.receipts[statement_id(receipt)] = took_ms / 1000
    else:
        raise VerificationError("this line is neither an acknowledgement nor a receipt")


def _take_acknowledgement(
    envelope: bytes, award: bytes | None, pairs: dict[tuple[PeerId, PeerId], _Pair]
) -> None:
    said = open_acknowledgement(envelope)
    price = 0.0
    if award is not None:
        given = open_award(award)
        if statement_id(award) != said.award:
            raise VerificationError("the award is not the one that is acknowledged")
        if (given.requester, given.provider) != (said.requester, said.provider):
            raise VerificationError("the award is of other peers than the acknowledgement")
        price = given.price
    pair = pairs.setdefault((PeerId(said.requester), PeerId(said.provider)), _Pair())
    for receipt in said.receipts:
        pair.prices[receipt] = max(price, pair.prices.get(receipt, 0.0))


def _totals(requester: PeerId, provider: PeerId, pair: _Pair) -> PairTotals:
    return PairTotals(
        requester=requester,
        provider=provider,
        acknowledged=len(pair.prices),
        credits=sum(pair.prices.values()),
        receipts=len(pair.receipts),
        seconds=sum(pair.receipts.values()),
    )
