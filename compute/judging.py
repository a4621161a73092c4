"""Judging fraud proofs by the reference alone: whoever has a proof and its blobs can do it.

Part of *verify*. Nothing is asked of anybody, and no clock, thread count or device takes
part: `judge` is a function of its arguments and of the version of the specification that it
knows. It convicts only for what no honest node can have signed:

* Outputs, and errors of the class exact, are the same on every node, so what the reference
  gives is what an honest node gave. Errors that depend on a machine (its limits of time and
  memory, a worker that died, a library that failed, an operator that a version does not
  know) convict nobody, and neither does one error where the reference meets another: either
  way there is no result.
* A program that this version does not take, a receipt of another version of the
  specification, or a trace of a newer protocol leaves it undecided, as missing blobs do.
* An award of another class, or two receipts about different inputs, acquit.

The worker judges what peers say (`shoal.compute.worker`); `shoal proof verify` calls this
directly. The daemon imports this module for `missing`, so that onnx and numpy are imported
where they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

from shoal.compute.errors import ProgramError
from shoal.compute.exact.spec import SPEC_VERSION
from shoal.compute.manifest import decode
from shoal.crypto.content import BlobId, blob_id_of
from shoal.crypto.errors import VerificationError
from shoal.protocol.verification import fraud_proof
from shoal.protocol.verification.fraud_proof import (
    DETERMINISTIC,
    Case,
    FraudProof,
    Outcome,
    Verdict,
    contradicted,
    examine,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from shoal.crypto.content import Buffer

__all__ = ["Outcome", "Verdict", "judge", "missing"]


def judge(proof: bytes, blobs: Mapping[BlobId, Buffer]) -> Verdict:
    """Judge a fraud proof. Never raises.

    Args:
        proof: The proof's bytes, from anybody.
        blobs: The blobs that it needs, by id; whether they are those is checked here.

    Returns:
        ``convicted`` where the proof shows that the accused signed what is false;
        ``acquitted`` where it does not, or is no proof at all; ``undecided`` where that
        cannot be told here.
    """
    try:
        case = examine(fraud_proof.decode(proof))
    except VerificationError as error:
        later = error.code == "version_unsupported"
        return Verdict(
            Outcome.UNDECIDED if later else Outcome.ACQUITTED, None, _sentence(error.message)
        )
    except Exception as error:  # noqa: BLE001  # whatever a proof made a library do, it judges
        return Verdict(Outcome.UNDECIDED, None, f"it cannot be read here: {error!r:.200}")
    try:
        _try(case, blobs)
    except _Found as found:
        return Verdict(found.outcome, case.accused, _sentence(found.sentence))
    except ProgramError as error:
        sentence = f"this version does not take the program: {error.message}"
    except MemoryError:
        sentence = "there is not enough memory here to judge it"
    except Exception as error:  # noqa: BLE001  # as above
        sentence = f"it cannot be judged here: {error!r:.200}"
    else:
        return Verdict(Outcome.ACQUITTED, case.accused, "what it shows is right")
    return Verdict(Outcome.UNDECIDED, case.accused, _sentence(sentence))


def missing(proof: FraudProof, held: Mapping[BlobId, Buffer]) -> tuple[BlobId, ...]:
    """The blobs that judging a proof needs and that are not ``held``.

    A manifest may name more of them, so ask again when these are held, until there is none.

    Raises:
        ProgramError: The program of the proof is no program.
    """
    wanted = [BlobId(blob_id) for blob_id in proof.blobs]
    if proof.kind == "unit" and wanted[0] in held:
        wanted += decode(bytes(held[wanted[0]])).blob_ids
    return tuple(blob_id for blob_id in dict.fromkeys(wanted) if blob_id not in held)


class _Found(Exception):  # noqa: N818  # no error: the way out of a trial
    """The end of a trial."""

    def __init__(self, outcome: Outcome, sentence: str) -> None:
        self.outcome, self.sentence = outcome, sentence


def convict(sentence: str) -> NoReturn:
    """End the trial: no honest node signs this."""
    raise _Found(Outcome.CONVICTED, sentence)


def acquit(sentence: str) -> NoReturn:
    """End the trial: this proves nothing against the accused."""
    raise _Found(Outcome.ACQUITTED, sentence)


def leave_open(sentence: str) -> NoReturn:
    """End the trial: here it cannot be told."""
    raise _Found(Outcome.UNDECIDED, sentence)


def _try(case: Case, blobs: Mapping[BlobId, Buffer]) -> None:
    """Try a case; ends by an exception, or says by returning that all of it is right."""
    receipt = case.receipt
    if receipt.numeric_class != "exact":
        acquit(f"in the class {receipt.numeric_class} two honest results may differ")
    if receipt.exact_spec != SPEC_VERSION:
        leave_open(
            f"the receipt is of version {receipt.exact_spec!r:.40} of the exact class, and "
            f"{SPEC_VERSION!r} is known here"
        )
    _TRIALS[case.proof.kind](case, blobs)


def _try_equivocation(case: Case, _: Mapping[BlobId, Buffer]) -> None:
    if contradicted(case):
        convict(f"it signed two results of unit {case.receipt.unit!r} under one award")
    acquit("its two receipts do not contradict each other")


def _try_unit(case: Case, blobs: Mapping[BlobId, Buffer]) -> None:
    receipt = case.receipt
    inputs = {name: BlobId(blob_id) for name, blob_id in receipt.inputs}
    program = BlobId(receipt.program)
    check_named(case, [program, *inputs.values()])
    manifest = decode(bytes(held(blobs, [program])[program]))
    needed = held(blobs, [program, *manifest.blob_ids, *inputs.values()])
    found = _reference_result(program, needed, inputs)
    said = receipt.error.code if receipt.error else None
    if isinstance(found, str):
        compare_errors(found, said, "the unit")
    elif said is not None:
        if said not in DETERMINISTIC:
            acquit(f"the error {said} may be met on one node and not on another")
        convict(f"the unit gives outputs, and the receipt the error {said}")
    else:
        outputs = dict(receipt.outputs or ())
        wrong = [n for n in sorted({*found, *outputs}) if outputs.get(n) != found.get(n)]
        if wrong:
            convict(f"the unit's {', '.join(wrong):.200} is another than the receipt's")


def _reference_result(
    program: BlobId, blobs: Mapping[BlobId, Buffer], inputs: Mapping[str, BlobId]
) -> dict[str, BlobId] | str:
    """The ids of a unit's outputs by the reference, or the code of its error.

    Raises:
        ProgramError: This version does not take the program, or not with these inputs.
    """
    from shoal.compute.exact.kernels import ExactError
    from shoal.compute.exact.plan import make_plan
    from shoal.compute.exact.reference import ReferenceKernels
    from shoal.compute.exact.spec import PRECISIONS
    from shoal.compute.loading import load
    from shoal.compute.manifest import check_inputs
    from shoal.compute.tensor import from_blob, spec_of_array, to_blob

    loaded = load(program, blobs)
    if loaded.manifest.precision is None:
        leave_open("the program names no precision, so it is none of the class exact")
    arrays = {name: from_blob(blobs[blob_id]) for name, blob_id in inputs.items()}
    check_inputs(loaded.manifest, {n: spec_of_array(array) for n, array in arrays.items()})
    try:
        plan = make_plan(
            loaded.model,
            loaded.weights,
            PRECISIONS[loaded.manifest.precision],
            loaded.manifest.scale_axes,
            ReferenceKernels(),
        )
        results = plan.run(arrays)
    except ExactError as error:
        code: str = error.code
        return code
    return {name: blob_id_of(to_blob(array)) for name, array in results.items()}


# --- what the trials share ----------------------------------------------------------------


def held(blobs: Mapping[BlobId, Buffer], blob_ids: Iterable[BlobId]) -> dict[BlobId, Buffer]:
    """These blobs, each checked against its id; a trial without one of them ends here."""
    found = {}
    for blob_id in dict.fromkeys(blob_ids):
        blob = blobs.get(blob_id)
        if blob is None:
            leave_open(f"the blob {blob_id} is missing")
        if blob_id_of(blob) != blob_id:
            leave_open(f"what was given as the blob {blob_id} is another one")
        found[blob_id] = blob
    return found


def check_named(case: Case, blob_ids: Iterable[BlobId]) -> None:
    """Check that a proof names just these blobs, in this order, each once."""
    if case.proof.blobs != tuple(dict.fromkeys(blob_ids)):
        acquit("the proof does not name the blobs that it needs, or names others")


def compare_errors(found: str, said: str | None, what: str) -> None:
    """Hold an error of the reference against what was said: an error, or outputs (None)."""
    if said is not None:  # either way there is no result, and nobody was told a false one
        acquit(f"{what} ends in the error {found}, and the accused said {said}")
    if found not in DETERMINISTIC:
        leave_open(f"{what} ends in {found} here, which may be otherwise on another node")
    convict(f"{what} ends in the error {found}, and the accused gives outputs")


def _try_trace(case: Case, blobs: Mapping[BlobId, Buffer]) -> None:
    from shoal.compute import judging_traces

    judging_traces.trials[case.proof.kind](case, blobs)


_TRIALS: Final[dict[str, Callable[[Case, Mapping[BlobId, Buffer]], None]]] = {
    "equivocation": _try_equivocation,
    "operator": _try_trace,
    "wiring": _try_trace,
    "unit": _try_unit,
}


def _sentence(text: str) -> str:
    """One printable line: it may quote what a peer made up."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:500])
