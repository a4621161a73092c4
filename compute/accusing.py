"""From the end of a dispute to a fraud proof: which kind it is, and what it has to open.

Part of *verify*, at the challenger. Ids are compared and no graph is read, so that the daemon
can do it: where two traces differ first, all before is the same, and what the challenger's
own leaf says is right. Which node gave a value is told by its id; where several could have,
all of them are opened, and the judge looks at the one that did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.compute.errors import ProgramError
from shoal.compute.exact.leaves import (
    OperatorLeaf,
    decode_operator_leaf,
    decode_stage_leaf,
)
from shoal.crypto.content import BlobId
from shoal.protocol.limits import OPENINGS_LIMIT
from shoal.protocol.statements import open_receipt
from shoal.protocol.verification.dispute import Challenger, Ending
from shoal.protocol.verification.fraud_proof import VERSION, FraudProof, Kind, Opening

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from shoal.compute.manifest import Manifest
    from shoal.protocol.statements import Receipt


def unit_proof(award: bytes, receipt: bytes) -> FraudProof:
    """Says that a receipt is false as a whole: the unit is to be run to see it."""
    said = open_receipt(receipt)
    inputs = (blob_id for _, blob_id in said.inputs)
    return _proof("unit", award, receipt, blobs=(said.program, *inputs))


def equivocation_proof(award: bytes, receipt: bytes, other: bytes) -> FraudProof:
    """Says that two receipts of one provider contradict each other."""
    return _proof("equivocation", award, receipt, other=other)


def trace_proof(
    award: bytes,
    receipt: bytes,
    challenger: Challenger,
    manifest: Manifest,
    outputs: Mapping[str, BlobId],
) -> FraudProof | None:
    """What the end of a dispute proves, or None where the whole unit has to be run for it.

    Args:
        award: The award's envelope.
        receipt: The disputed receipt's.
        challenger: Whose dispute has ended.
        manifest: Of the program.
        outputs: Ids of the outputs that are right, by name.
    """
    finding, said = challenger.finding, open_receipt(receipt)
    assert finding is not None
    if finding.ending not in {Ending.LEAF, Ending.TRACE}:
        return None
    try:
        if finding.ending is Ending.TRACE:
            parts = _whole_trace(challenger, said, outputs)
        elif finding.first is None:
            parts = _stage(challenger)
        else:
            parts = _operator(challenger)
    except ProgramError:  # a leaf that is none
        return None
    if parts is None:
        return None
    kind, leaves, stages, reads = parts
    return _proof(
        kind,
        award,
        receipt,
        root=challenger.root,
        leaves=leaves,
        stages=stages,
        blobs=(said.program, manifest.graph, *reads),
    )


_Parts = tuple[Kind, "Sequence[Opening]", "Sequence[Opening]", "Sequence[str]"]


def _operator(challenger: Challenger) -> _Parts | None:
    """The first operator that differs: it is wrong itself, or not the one that it must be."""
    finding, own = challenger.finding, challenger.own_operators
    assert finding is not None
    assert finding.first is not None
    assert finding.leaf is not None
    assert own is not None
    first = finding.first
    if first >= len(own):  # its trace goes on where the unit ended, with an error or the graph
        return ("wiring", [challenger.open_operator(len(own) - 1)], [], ())
    theirs, right = decode_operator_leaf(finding.leaf), decode_operator_leaf(own[first])
    opened = challenger.open_operator(first, finding.leaf)
    about = ("index", "operator", "version", "inputs")
    errs = theirs.error is not None or right.error is not None
    given = errs or len(theirs.outputs) == len(right.outputs)
    if given and all(getattr(theirs, name) == getattr(right, name) for name in about):
        reads = [blob_id for blob_id in theirs.inputs if blob_id is not None]
        return ("operator", [opened], [], reads)
    wanted = {
        mine
        for mine, its in zip(right.inputs, theirs.inputs, strict=False)
        if mine is not None and mine != its
    }
    leaves = [opened, *_givers(challenger, wanted, first)]
    stages = [challenger.open_stage(finding.stage - 1)] if finding.stage else []
    return ("wiring", leaves, stages, ())


def _stage(challenger: Challenger) -> _Parts | None:
    """A stage whose operators are right and whose end is not what they give."""
    finding = challenger.finding
    assert finding is not None
    assert finding.stage is not None
    assert finding.leaf is not None
    stage, own = finding.stage, challenger.own_stages
    search, operators = challenger.operator_search, challenger.own_operators
    assert search is not None
    assert operators is not None
    if search.count < len(operators):
        return ("wiring", [challenger.open_operator(search.count - 1)], [], ())
    stages = [challenger.open_stage(stage, finding.leaf)]
    if stage:
        stages.insert(0, challenger.open_stage(stage - 1))
    wanted: set[str] = set()
    if stage < len(own):
        right, theirs = decode_stage_leaf(own[stage]), decode_stage_leaf(finding.leaf)
        wanted = {a for a, b in zip(right.state, theirs.state, strict=False) if a != b}
    return ("wiring", _givers(challenger, wanted), stages, ())


def _whole_trace(
    challenger: Challenger, said: Receipt, outputs: Mapping[str, BlobId]
) -> _Parts | None:
    """A trace that is right, as far as it goes, beside a receipt that is not."""
    if said.outputs is None:
        return None
    if challenger.stage_search is not None:
        return ("wiring", [], [challenger.open_stage(challenger.stages - 1)], ())
    own, search = challenger.own_operators, challenger.operator_search
    assert own is not None
    assert search is not None
    if search.count < len(own):
        return ("wiring", [challenger.open_operator(search.count - 1)], [], ())
    given = dict(said.outputs)
    wanted = {right for name, right in outputs.items() if given.get(name) != right}
    leaves = _givers(challenger, wanted)
    return ("wiring", leaves, [], ()) if leaves else None


def _givers(
    challenger: Challenger, wanted: Iterable[str], before: int | None = None
) -> list[Opening]:
    """Openings of one's own leaves, equal to theirs, that give these ids: the nearest."""
    own, ids = challenger.own_operators, set(wanted)
    assert own is not None
    count = len(own) if before is None else before
    found = [place for place in range(count) if not ids.isdisjoint(_leaf(own[place]).outputs)]
    return [challenger.open_operator(place) for place in found[1 - OPENINGS_LIMIT :]]


def _leaf(data: bytes) -> OperatorLeaf:
    return decode_operator_leaf(data)


def _proof(
    kind: Kind,
    award: bytes,
    receipt: bytes,
    *,
    other: bytes | None = None,
    root: bytes | None = None,
    leaves: Iterable[Opening] = (),
    stages: Iterable[Opening] = (),
    blobs: Iterable[str] = (),
) -> FraudProof:
    return FraudProof(
        version=VERSION,
        kind=kind,
        award=award,
        receipt=receipt,
        other=other,
        root=root,
        leaves=tuple(leaves),
        stages=tuple(stages),
        blobs=tuple(dict.fromkeys(blobs)),
    )
