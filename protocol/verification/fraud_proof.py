"""Fraud proofs: a file by which anyone convicts a provider of what it signed, alone.

A proof holds signed bytes as they came, and openings of what the accused committed to. It
names the blobs that are needed to check it and holds none of them. One proof has one
encoding: msgpack as in frames, every field written, in order, in the shortest form. Here is
what needs no computing: the form, the signatures, that the award names both, the receipt
the award and the trace the receipt, and that each opened leaf is under its root. What is
computed, and by what, is `shoal.compute.judging`'s.

| kind | says that | beside award and receipt |
|---|---|---|
| `equivocation` | the accused signed two results of one unit under one award | `other` |
| `operator` | one operator of its trace has not those outputs | `root`, one leaf |
| `wiring` | its trace is none of this program and these inputs, or not its receipt's | `root` and leaves, or leaves of stages |
| `unit` | the receipt's outputs, or its error, are not those of the program | |

A leaf's `version` and form, and where stages are cut, belong to the minor version of the
protocol that the trace's signer speaks: a trace of a newer one is not judged.
"""  # noqa: E501  # a table

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from shoal.crypto.content import BlobId, blob_id_of
from shoal.crypto.errors import VerificationError
from shoal.crypto.merkle import check_path, leaf_of
from shoal.crypto.peer_id import PeerId
from shoal.protocol import codec, limits
from shoal.protocol.errors import LocalProtocolError, RemoteProtocolError
from shoal.protocol.limits import EnvelopeBytes, HexId, LeafBytes, LeafCount, TreePath
from shoal.protocol.statements import (
    Award,
    Receipt,
    TraceRoot,
    open_award,
    open_receipt,
    open_trace_root,
    statement_id,
)
from shoal.protocol.versions import is_newer

if TYPE_CHECKING:
    from collections.abc import Sequence

Kind = Literal["equivocation", "operator", "wiring", "unit"]

VERSION: Literal[2] = 2
"""Of the form of a proof: one of another form says nothing, true or false."""

DETERMINISTIC = frozenset(
    {"nan", "infinity", "k_limit", "out_of_range", "shape_mismatch", "wrong_dtype", "too_large"}
)
"""Codes of errors that every node meets alike in the class exact. Limits of time and memory,
a worker that died, a library that failed and an operator that a version does not know are
not among them: a receipt of one of these can be right on one node and not on another."""


class Outcome(StrEnum):
    """What a judge says."""

    CONVICTED = "convicted"
    ACQUITTED = "acquitted"
    UNDECIDED = "undecided"


class Verdict(msgspec.Struct, frozen=True):
    """What a judge found, and a sentence for people.

    Attributes:
        accused: None where the proof does not even tell who that is.
    """

    outcome: Outcome
    accused: PeerId | None
    sentence: str


class Opening(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A leaf under a root. On the wire it is an array of its fields, in this order.

    Attributes:
        index: The leaf's place in its tree.
        leaf: As it was hashed.
        path: Its siblings, lowest first.
    """

    index: LeafCount
    leaf: LeafBytes
    path: TreePath


class FraudProof(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What convicts a provider, whoever reads it.

    Attributes:
        other: The second receipt of an equivocation.
        root: The accused's signed `TraceRoot`.
        leaves: Openings under it, the disputed one first, then those that it reads from.
        stages: Openings under the receipt's own `trace`, in order.
        blobs: Ids of what a check reads: the program's manifest first. Of a `unit` the blobs
            that the manifest names are read as well, and are not listed.
    """

    version: Literal[2]
    kind: Kind
    award: EnvelopeBytes
    receipt: EnvelopeBytes
    other: EnvelopeBytes | None
    root: EnvelopeBytes | None
    leaves: Annotated[tuple[Opening, ...], Meta(max_length=limits.OPENINGS_LIMIT)]
    stages: Annotated[tuple[Opening, ...], Meta(max_length=2)]
    blobs: Annotated[tuple[HexId, ...], Meta(max_length=limits.PROOF_BLOBS_LIMIT)]


@dataclass(frozen=True, slots=True)
class Case:
    """A proof whose signatures, names and paths are right."""

    proof: FraudProof
    accused: PeerId
    award: Award
    receipt: Receipt
    other: Receipt | None
    root: TraceRoot | None


def encode(proof: FraudProof) -> bytes:
    """The one encoding of a proof.

    Raises:
        LocalProtocolError: It is over `limits.FRAUD_PROOF_LIMIT_BYTES`, or a field is out of
            bounds.
    """
    return codec.encode(proof, limits.FRAUD_PROOF_LIMIT_BYTES)


def decode(data: bytes) -> FraudProof:
    """Read a proof; only its one encoding is accepted.

    Raises:
        VerificationError: ``bad_proof``: it is too large, malformed or written otherwise;
            ``version_unsupported``: it has the form of another version.
    """
    try:
        value = codec.unpack(data, limits.FRAUD_PROOF_LIMIT_BYTES)
        said = value.get("version") if isinstance(value, dict) else None
        if isinstance(said, int) and said != VERSION:
            raise VerificationError(
                f"this fraud proof has the form {said}, and {VERSION} is known here",
                code="version_unsupported",
            )
        proof: FraudProof = codec.fit(value, FraudProof)
        again = encode(proof)
    except (RemoteProtocolError, LocalProtocolError) as error:
        raise _bad(error.message) from None
    if again != data:
        raise _bad("it is not in its one encoding")
    return proof


def proof_id(data: bytes) -> BlobId:
    """The id of a proof: the content id of its bytes."""
    return blob_id_of(data)


def examine(proof: FraudProof) -> Case:
    """Check all of a proof that needs no computing.

    Raises:
        VerificationError: ``bad_proof`` and what is wrong, or as the statements' ``open_*``.
    """
    award, receipt = open_award(proof.award), open_receipt(proof.receipt)
    _check_names(proof, award, receipt)
    other = open_receipt(proof.other) if proof.other is not None else None
    root = open_trace_root(proof.root) if proof.root is not None else None
    _check_parts(proof)
    if root is not None:
        _check_root(proof, root, receipt)
    if proof.stages:
        if is_newer(receipt.protocol):
            raise _newer("receipt", receipt.protocol)
        if receipt.trace is None:
            raise _bad("it opens stages, and the receipt has none")
        _check_openings(proof.stages, bytes.fromhex(receipt.trace), receipt.stages)
        places = [opening.index for opening in proof.stages]
        if places != sorted(set(places)):
            raise _bad("its stages are not in order")
    return Case(proof, PeerId(receipt.provider), award, receipt, other, root)


def contradicted(case: Case) -> bool:
    """Whether the two receipts of an equivocation cannot both be true.

    Errors that another run need not meet contradict nothing; nor do two receipts whose
    inputs differ, for which their requester may be to blame.
    """
    one, two = case.receipt, case.other
    assert two is not None
    about = (
        "award", "unit", "program", "numeric_class", "precision", "inputs", "provider",
        "requester", "exact_spec",
    )  # fmt: skip
    if any(getattr(one, field) != getattr(two, field) for field in about):
        return False
    if one.numeric_class != "exact" or one.outputs == two.outputs:
        return False
    return all(
        receipt.error is None or receipt.error.code in DETERMINISTIC for receipt in (one, two)
    )


def _check_names(proof: FraudProof, award: Award, receipt: Receipt) -> None:
    said: tuple[tuple[str, object, object], ...] = (
        ("award", receipt.award, statement_id(proof.award)),
        ("provider", receipt.provider, award.provider),
        ("requester", receipt.requester, award.requester),
        ("program", receipt.program, award.program),
        ("numeric class", receipt.numeric_class, award.numeric_class),
        ("precision", receipt.precision, award.precision),
    )
    for name, got, want in said:
        if got != want:
            raise _bad(f"the receipt's {name} is not the award's")


_PARTS: dict[str, tuple[bool, bool, int]] = {
    # other, root, leaves
    "equivocation": (True, False, 0),
    "unit": (False, False, 0),
    "operator": (False, True, 1),
}


def _check_parts(proof: FraudProof) -> None:
    """That it has the parts of its kind, and no others."""
    if proof.kind == "wiring":
        fits = (
            proof.other is None
            and bool(proof.root or proof.stages)
            and (proof.root is not None or not proof.leaves)
        )
    else:
        parts = (proof.other is not None, proof.root is not None, len(proof.leaves))
        fits = parts == _PARTS[proof.kind] and not proof.stages
    if not fits:
        raise _bad(f"it has not the parts of the kind {proof.kind}")
    if (proof.kind == "equivocation") != (not proof.blobs):
        raise _bad("it names blobs that it does not need, or none")


def _check_root(proof: FraudProof, root: TraceRoot, receipt: Receipt) -> None:
    if root.receipt != statement_id(proof.receipt):
        raise _bad("the trace is of another receipt")
    if root.provider != receipt.provider:
        raise _bad("the trace is another provider's")
    if is_newer(root.protocol):
        raise _newer("trace", root.protocol)
    if (root.stage is None) != (receipt.trace is None):
        raise _bad("the trace is of a stage and the receipt has none, or the reverse")
    if root.stage is not None and root.stage >= receipt.stages:
        raise _bad("the trace is of a stage that the receipt has not")
    if root.leaves < 1:
        raise _bad("the trace is empty")
    _check_openings(proof.leaves, root.root, root.leaves)
    places = [opening.index for opening in proof.leaves]
    if len(set(places)) < len(places):
        raise _bad("a leaf is opened twice")


def _check_openings(openings: Sequence[Opening], root: bytes, count: int) -> None:
    for opening in openings:
        check_path(root, leaf_of(opening.leaf), opening.index, count, opening.path)


def _newer(what: str, version: tuple[int, int]) -> VerificationError:
    return VerificationError(
        f"the {what} is of protocol {version[0]}.{version[1]}, which is newer than this node's",
        code="version_unsupported",
    )


def _bad(message: str) -> VerificationError:
    return VerificationError(f"this is no valid fraud proof: {message}", code="bad_proof")
