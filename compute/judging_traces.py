"""Trials of what an accused committed to in a trace: one operator, or the wiring.

Part of *verify*; called by `shoal.compute.judging`, which has the rules. Of the program its
manifest and graph are read, and no weights: a leaf names tensors by id, and only what one
operator takes is looked at. An operator is wrong by what its own leaf says it took, so a
trial of one asks nothing about the others; a trial of the wiring asks about ids alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from shoal.compute.errors import ProgramError
from shoal.compute.exact.judging_operators import Operators, run_operator
from shoal.compute.exact.leaves import OperatorLeaf, decode_operator_leaf, decode_stage_leaf
from shoal.compute.judging import (
    acquit,
    check_named,
    compare_errors,
    convict,
    held,
    leave_open,
)
from shoal.compute.manifest import decode
from shoal.crypto.content import BlobId
from shoal.protocol.verification.fraud_proof import DETERMINISTIC

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shoal.crypto.content import Buffer
    from shoal.protocol.statements import TraceRoot
    from shoal.protocol.verification.fraud_proof import Case, Opening


def _program(case: Case, blobs: Mapping[BlobId, Buffer]) -> Operators:
    program = BlobId(case.receipt.program)
    manifest = bytes(held(blobs, [program])[program])
    graph = BlobId(decode(manifest).graph)
    return Operators(manifest, held(blobs, [graph])[graph])


def _span(program: Operators, stage: int | None) -> range:
    """The places of the nodes of a stage, or of all."""
    if stage is None:
        return range(len(program.graph.nodes))
    count = len(program.stages.ends)
    if stage >= count:
        convict(f"it has a stage {stage}, and the program {count} of them")
    span: range = program.stages.span(stage)
    return span


def _operator_leaf(data: bytes) -> OperatorLeaf:
    try:
        return decode_operator_leaf(data)
    except ProgramError as error:  # the receipt itself can still be held against a whole run
        leave_open(error.message)


def _misfit(leaf: OperatorLeaf, place: int, program: Operators) -> str | None:
    """How a leaf is not one of the node at ``place``."""
    wiring = program.wiring(place)
    said = (leaf.index, leaf.operator, leaf.version)
    if said != (place, wiring.operator, wiring.version):
        return (
            f"its operator {leaf.index} ({leaf.operator}, opset {leaf.version}) stands where "
            f"the program has {place} ({wiring.operator}, opset {wiring.version})"
        )
    if [i is None for i in leaf.inputs] != [source is None for source in wiring.inputs]:
        return f"its operator {place} takes other inputs than the program's"
    if leaf.error is None and tuple(i is not None for i in leaf.outputs) != wiring.outputs:
        return f"its operator {place} gives other outputs than the program's"
    return None


# --- one operator -------------------------------------------------------------------------


def _try_operator(case: Case, blobs: Mapping[BlobId, Buffer]) -> None:
    program, leaf, name = _disputed(case, blobs)
    inputs = _inputs(leaf)
    check_named(case, [BlobId(case.receipt.program), BlobId(program.manifest.graph), *inputs])
    found = run_operator(program, leaf.index, _given(leaf, held(blobs, inputs)))
    if found.error is not None:
        compare_errors(found.error, leaf.error, name)
    elif leaf.error is not None:
        if leaf.error not in DETERMINISTIC:
            acquit(f"the error {leaf.error} may be met on one node and not on another")
        convict(f"{name} gives outputs, and it committed to the error {leaf.error}")
    elif found.outputs != leaf.outputs:
        convict(f"{name} gives other outputs than it committed to")


def _disputed(
    case: Case, blobs: Mapping[BlobId, Buffer]
) -> tuple[Operators, OperatorLeaf, str]:
    """The program, the one leaf of the proof, which is to be one of its node, and its name."""
    assert case.root is not None
    program = _program(case, blobs)
    (opening,) = case.proof.leaves
    leaf = _operator_leaf(opening.leaf)
    span = _span(program, case.root.stage)
    if opening.index >= len(span) or _misfit(leaf, span[opening.index], program):
        leave_open("the leaf is not one of this operator, which a proof of its wiring can show")
    node = program.wiring(leaf.index).node
    return program, leaf, f"operator {leaf.index} ({leaf.operator} {node!r:.80})"


def _inputs(leaf: OperatorLeaf) -> list[BlobId]:
    return [BlobId(blob_id) for blob_id in leaf.inputs if blob_id is not None]


def _given(leaf: OperatorLeaf, blobs: Mapping[BlobId, Buffer]) -> list[Buffer | None]:
    return [None if blob_id is None else blobs[BlobId(blob_id)] for blob_id in leaf.inputs]


# --- the wiring ---------------------------------------------------------------------------


def _try_wiring(case: Case, blobs: Mapping[BlobId, Buffer]) -> None:
    program = _program(case, blobs)
    check_named(case, [BlobId(case.receipt.program), BlobId(program.manifest.graph)])
    trial = _Wiring(case, program)
    trial.try_stages()
    if case.root is not None:
        trial.try_operators()


@dataclass(slots=True)
class _Wiring:
    """What the openings of one proof say of where ids come from and go to."""

    case: Case
    program: Operators
    _states: dict[int, dict[str, str]] = field(default_factory=dict)
    """By stage, the ids of what is alive at its end."""

    def try_stages(self) -> None:
        """The stages: as many as the program's, with its values, one after the other."""
        stages, receipt = self.program.stages, self.case.receipt
        count = len(stages.ends)
        if receipt.trace is not None and (
            receipt.stages > count or (receipt.outputs is not None and receipt.stages < count)
        ):
            convict(f"its receipt has {receipt.stages} stages, and the program {count}")
        for opening in self.case.proof.stages:
            try:
                leaf = decode_stage_leaf(opening.leaf)
            except ProgramError as error:
                leave_open(error.message)
            names = stages.alive[opening.index]
            if leaf.index != opening.index or len(leaf.state) != len(names):
                convict(f"its stage {opening.index} is none of the program's")
            self._states[opening.index] = dict(zip(names, leaf.state, strict=True))
        for stage, state in self._states.items():
            before = self._states.get(stage - 1, {})
            for name in state.keys() & before.keys():
                if state[name] != before[name]:
                    convict(
                        f"{name!r:.80} changes within its stage {stage}, which gives it not"
                    )
            self._try_outputs(state)

    def try_operators(self) -> None:
        """The operators: the program's, each fed by what was given before it."""
        root = self.case.root
        assert root is not None
        span = _span(self.program, root.stage)
        if root.leaves > len(span):
            convict(f"its trace has {root.leaves} operators, and the program {len(span)} there")
        leaves = {span[o.index]: self._leaf(o, span, root) for o in self.case.proof.leaves}
        made = self._made(leaves)
        before = self._states.get(root.stage - 1, {}) if root.stage else {}
        for place, leaf in leaves.items():
            self._try_inputs(place, leaf, before | made)
        self._try_outputs(made)
        end = self._states.get(root.stage, {}) if root.stage is not None else {}
        for name in end.keys() & made.keys():
            if end[name] != made[name]:
                convict(f"its stage {root.stage} ends with another {name!r:.80} than was made")

    def _leaf(self, opening: Opening, span: range, root: TraceRoot) -> OperatorLeaf:
        """An opened leaf, which is to be its node's, and the last only where it may be."""
        leaf, place = _operator_leaf(opening.leaf), span[opening.index]
        if misfit := _misfit(leaf, place, self.program):
            convict(misfit)
        last = opening.index == root.leaves - 1
        if leaf.error is not None and not last:
            convict(f"its trace goes on after the error of operator {place}")
        if leaf.error is None and last and root.leaves < len(span):
            convict(f"its trace ends at operator {place}, which did not err")
        return leaf

    def _try_inputs(self, place: int, leaf: OperatorLeaf, made: Mapping[str, str]) -> None:
        """What one operator takes, against what is known of where that comes from."""
        given = dict(self.case.receipt.inputs)
        for source, got in zip(self.program.wiring(place).inputs, leaf.inputs, strict=True):
            if source is None:
                continue
            match source.kind:
                case "node":
                    want = made.get(source.name)
                case "constant":
                    want = source.blob_id
                case "input":
                    want = given.get(source.name)
            if want is not None and got != want:
                convict(f"its operator {place} takes another {source.name!r:.80} than it had")

    def _made(self, leaves: Mapping[int, OperatorLeaf]) -> dict[str, str]:
        """What the opened operators say they gave, by name."""
        return {
            name: blob_id
            for place, leaf in leaves.items()
            if leaf.error is None
            for name, blob_id in zip(
                self.program.node(place).outputs, leaf.outputs, strict=True
            )
            if blob_id is not None
        }

    def _try_outputs(self, made: Mapping[str, str]) -> None:
        """What the program's outputs are said to be, against the receipt's."""
        outputs = dict(self.case.receipt.outputs or ())
        for name in self.program.graph.outputs:
            if name in made and name in outputs and made[name] != outputs[name]:
                convict(f"its trace gives another {name!r:.80} than its receipt")


trials: Final[dict[str, Callable[[Case, Mapping[BlobId, Buffer]], None]]] = {
    "operator": _try_operator,
    "wiring": _try_wiring,
}
"""By kind of proof."""
