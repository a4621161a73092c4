"""The class exact on a CPU: the same bits as every other node, or a named error.

The arithmetic is a backend's (`shoal.compute.exact.kernels`); this module joins it with
a program. Its canary's output has one id everywhere and for ever: a backend that gives
another one is not used.
"""

from __future__ import annotations

import threading
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np
from onnx import ModelProto, parser

from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.exact.kernels import ExactError
from shoal.compute.exact.plan import Plan, Values, make_plan
from shoal.compute.exact.spec import PRECISIONS, SPEC_VERSION, X20
from shoal.compute.exact.stages import StageRecorder, Stages, stage_leaves, stages_of
from shoal.compute.exact.tracing import OperatorTensors, Traceable, tensors_of, trace
from shoal.compute.executors.base import Evidence, NumericClass, Probe
from shoal.compute.tensor import to_blob
from shoal.crypto.content import BlobId, blob_id_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shoal.compute.exact.kernels import Kernels
    from shoal.compute.exact.leaves import OperatorLeaf, StageLeaf
    from shoal.compute.loading import LoadedProgram

CANARY_ID: Final = BlobId("909e7d9854d87b3cf5cb47421e7ec283b14f14190e76e196726f1f3a3215a2d8")
"""The id of the canary's output under version 1 of the specification."""


class Prepared:
    """A plan, the program whose weights it may share, and what tracing it takes."""

    def __init__(self, plan: Plan, program: LoadedProgram) -> None:
        self.plan = plan
        self.program = program
        self.folded_ids: Mapping[str, BlobId] | None = None

    @cached_property
    def traceable(self) -> Traceable:
        """The program as it is traced; made when that is first asked for."""
        return Traceable(self.program)

    @cached_property
    def stages(self) -> Stages:
        """How its graph is cut."""
        return stages_of(self.traceable.graph)


class Exact:
    """The executor ``exact``.

    Args:
        kernels: The backend.
        name: What it is called in receipts, where it is advisory.
        warm_up: Starts the backend's threads, where it has any.
    """

    def __init__(
        self, kernels: Kernels, name: str, warm_up: Callable[[], None] | None = None
    ) -> None:
        self._kernels = kernels
        self._name = name
        self._warm_up = warm_up
        self._ended = threading.Event()

    def start_threads(self) -> None:
        """Start the backend's threads. See `Executor.start_threads`."""
        if self._warm_up is not None:
            self._warm_up()

    @property
    def kernels(self) -> Kernels:
        """The backend."""
        return self._kernels

    def probe(self) -> Probe:
        """Run a small program whose output's id is known. See `Executor.probe`."""
        # Integers over a power of two: the same float32 on any machine.
        x = ((np.arange(96, dtype=np.float32) * 37 % 101) - 50).reshape(4, 24) / 32
        try:
            plan = make_plan(_canary(), {}, X20, (), self._kernels)
            found = blob_id_of(to_blob(plan.run({"x": x})["y"]))
        except ExactError as error:
            raise ComputeError(
                f"the exact class does not work here: {error.message}", code="probe_failed"
            ) from None
        if found != CANARY_ID:
            raise ComputeError(
                f"{self._name} gave the canary output {found[:16]}…, not {CANARY_ID[:16]}…",
                code="probe_failed",
                hint="its bits differ from every other node's, so it must not be used",
            )
        return Probe(
            runtime=f"exact {SPEC_VERSION} {self._name}",
            numeric_class=NumericClass.EXACT,
            evidence=Evidence.EXECUTED,
        )

    def prepare(self, program: LoadedProgram) -> Prepared:
        """Make a plan, with constants quantised. See `Executor.prepare`."""
        self._ended.clear()
        manifest = program.manifest
        if manifest.precision is None:
            raise ProgramError(
                "the program names no precision, so it is not one of the class exact",
                code="no_precision",
                hint="submit the model with a precision: x20, x16 or x8",
            )
        plan = make_plan(
            program.model,
            program.weights,
            PRECISIONS[manifest.precision],
            manifest.scale_axes,
            self._kernels,
            self._check,
        )
        return Prepared(plan, program)

    def run(self, handle: Prepared, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the plan once. See `Executor.run`."""
        self._ended.clear()
        results: dict[str, np.ndarray] = handle.plan.run(inputs, self._check)
        return results

    def run_in_stages(
        self, handle: Prepared, inputs: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], list[StageLeaf]]:
        """Run the plan once, as `run`, and give the leaves of its stages too.

        None, where a value between two stages is no tensor that travels.
        """
        self._ended.clear()
        recorder = StageRecorder(handle.stages, self._folded_ids(handle))
        reached = recorder.reached

        def record(place: int, values: Values) -> None:
            nonlocal reached
            try:
                reached(place, values)
            except ExactError:
                raise
            except ProgramError:  # the unit is right all the same
                recorder.leaves.clear()
                reached = _not_recorded

        return handle.plan.run(inputs, self._check, record), recorder.leaves

    def trace(
        self, handle: Prepared, inputs: Mapping[str, np.ndarray], stage: int | None
    ) -> tuple[tuple[OperatorLeaf, ...], list[StageLeaf]]:
        """Run a prepared program once for its operators' leaves.

        Args:
            handle: What `prepare` gave.
            inputs: As for `run`.
            stage: Of which stage; None for all.

        Returns:
            The leaves, the last of which may hold an error; and where they are of all
            stages, those of the stages that they reach the end of.

        Raises:
            ProgramError: ``no_such_stage``, or as `shoal.compute.exact.tracing.trace`.
            ComputeError: As for `run`.
        """
        self._ended.clear()
        stages, graph = handle.stages, handle.traceable.graph
        if stage is not None and not 0 <= stage < len(stages.ends):
            raise ProgramError(
                f"there is no stage {stage} among {len(stages.ends)}", code="no_such_stage"
            )
        span = None if stage is None else stages.span(stage)
        leaves = trace(handle.traceable, inputs, self._kernels, span, self._check)
        return leaves, stage_leaves(stages, leaves, graph) if stage is None else []

    def tensors_of(
        self, handle: Prepared, inputs: Mapping[str, np.ndarray], index: int
    ) -> OperatorTensors:
        """Run a prepared program up to one node; see `exact.tracing.tensors_of`."""
        self._ended.clear()
        return tensors_of(handle.traceable, inputs, self._kernels, index, self._check)

    def _folded_ids(self, handle: Prepared) -> Mapping[str, BlobId]:
        """The ids of what stages hold of constants alone: found once."""
        if handle.folded_ids is None:
            names = {name for alive in handle.stages.alive for name in alive}
            handle.folded_ids = handle.traceable.folded_ids(names, self._kernels, self._check)
        return handle.folded_ids

    def terminate(self) -> None:
        """End what is going on before its next node. See `Executor.terminate`."""
        self._ended.set()

    def _check(self) -> None:
        if self._ended.is_set():
            raise ComputeError("the program was ended", code="terminated")


def _not_recorded(_: int, __: Values) -> None:
    """In place of a recorder that gave up."""


def _canary() -> ModelProto:
    """Self-attention and a gate: both scale axes, sums, exponentials, a division."""
    model: ModelProto = parser.parse_model(
        """
        <ir_version: 9, opset_import: ["" : 20]>
        canary (float[4, 24] x) => (float y)
        <int64[1] last = {1}>
        {
            xt = Transpose <perm = [1, 0]> (x)
            scores = MatMul (x, xt)
            p = Softmax (scores)
            mixed = MatMul (p, x)
            g = Gelu (mixed)
            mean = ReduceMean (g, last)
            centred = Sub (g, mean)
            bounded = Tanh (centred)
            weight = Exp (g)
            gated = Div (bounded, weight)
            y = Concat <axis = 1> (gated, p)
        }
        """
    )
    return model
