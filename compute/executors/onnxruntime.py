"""ONNX Runtime on the CPU, class fp32.

ONNX Runtime falls back to another provider in silence: where its build has none of
the name that was asked for, where opening or running a session fails, and for each
node that a provider does not take. Here the provider is named and must be in the
build, both fallbacks are disabled, a session with any other provider is refused, and
the canary's nodes must have been placed on it. (The option
``session.disable_cpu_ep_fallback`` is for accelerators: together with an explicit CPU
provider it is an error.)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto
from onnx.helper import (
    make_graph,
    make_model,
    make_node,
    make_opsetid,
    make_tensor_value_info,
)
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.executors.base import Evidence, NumericClass, Probe
from shoal.compute.graph import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shoal.compute.loading import LoadedProgram

_PROVIDER: Final = "CPUExecutionProvider"
_LOG_FATAL_ONLY: Final = 4

_CANARY_OUTPUT: Final = [[5.0, 14.0], [14.0, 50.0]]
"""Written down, not computed: a CPU or BLAS at fault would be wrong here as well."""

_ORT_ERRORS: Final = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)

_RECORD_PLACEMENT: Final = "session.record_ep_graph_assignment_info"

_OUT_OF_MEMORY: Final = re.compile(r"bad_?\s?alloc|[Ff]ailed to allocate memory")
_FAILED_NODE: Final = re.compile(
    r"while running (?P<operator>\w+) node\. Name:'(?P<node>[^']*)' "
    r"Status Message: (?P<why>.*)",
    re.DOTALL,
)
_NOISE: Final = re.compile(
    r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : |/?\S*onnxruntime_src/\S* ?"
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A session and what it refers to: the weights' memory belongs to the program."""

    session: ort.InferenceSession
    program: LoadedProgram


class OnnxRuntimeCpu:
    """The executor ``onnxruntime`` of a CPU.

    Args:
        threads: How many threads one operator may use.
    """

    def __init__(self, *, threads: int) -> None:
        self._threads = threads
        self._threads_are_shared = False
        self._run_options = ort.RunOptions()
        self._session_options = ort.SessionOptions()

    def start_threads(self) -> None:
        """Start one pool for all programs of this process. See `Executor.start_threads`.

        ONNX Runtime can have one such pool in a process, and no session with threads
        of its own beside it.
        """
        ort.set_global_thread_pool_sizes(self._threads, 1)
        self._threads_are_shared = True

    def probe(self) -> Probe:
        """Run a small product whose result is known. See `Executor.probe`."""
        x = np.arange(6, dtype=np.float32).reshape(2, 3)
        try:
            session = self._session(_canary(), {}, record_placement=True)
            (y,) = session.run(None, {"x": x})
        except _ORT_ERRORS as error:
            raise ComputeError(
                f"ONNX Runtime does not work here: {_clean(error)}", code="probe_failed"
            ) from None
        if strays := _placed_elsewhere(session):
            raise ComputeError(
                f"ONNX Runtime placed nodes elsewhere than on {_PROVIDER}: {', '.join(strays)}",
                code="wrong_provider",
            )
        if y.tolist() != _CANARY_OUTPUT:
            raise ComputeError("ONNX Runtime gave a wrong product", code="probe_failed")
        return Probe(
            runtime=f"onnxruntime {ort.__version__} {_PROVIDER}",
            numeric_class=NumericClass.FP32,
            evidence=Evidence.EXECUTED,
        )

    def prepare(self, program: LoadedProgram) -> Prepared:
        """Open a session in which the weights are initializers. See `Executor.prepare`."""
        for port in (*program.manifest.inputs, *program.manifest.outputs):
            if port.dtype == "bfloat16":
                raise ProgramError(
                    f"{port.name!r} is bfloat16, which ONNX Runtime cannot take from Python",
                    code="unsupported_dtype",
                    hint="cast it to float32 inside the model",
                )
        try:
            session = self._session(_with_weight_slots(program), program.weights)
        except (*_ORT_ERRORS, MemoryError) as error:
            raise _translated(error, "the program cannot be prepared") from None
        return Prepared(session, program)

    def run(self, handle: Prepared, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the session once. See `Executor.run`."""
        names = [port.name for port in handle.program.manifest.outputs]
        self._run_options = ort.RunOptions()
        self._run_options.log_severity_level = _LOG_FATAL_ONLY
        try:
            arrays = handle.session.run(names, dict(inputs), self._run_options)
        except (*_ORT_ERRORS, MemoryError) as error:
            raise _translated(error, "the program failed") from None
        return {name: np.asarray(array) for name, array in zip(names, arrays, strict=True)}

    def terminate(self) -> None:
        """End what is going on, from another thread. See `Executor.terminate`."""
        self._run_options.terminate = True
        self._session_options.set_load_cancellation_flag(True)

    def _session(
        self,
        model: ModelProto,
        weights: Mapping[str, np.ndarray],
        *,
        record_placement: bool = False,
    ) -> ort.InferenceSession:
        if _PROVIDER not in ort.get_available_providers():
            raise ComputeError(
                f"this build of ONNX Runtime ({ort.__version__}) has no {_PROVIDER}: it has "
                f"{', '.join(ort.get_available_providers())}",
                code="wrong_provider",
                hint="install a build of ONNX Runtime that has it",
            )
        options = ort.SessionOptions()
        if self._threads_are_shared:
            options.use_per_session_threads = False
        else:
            options.intra_op_num_threads = self._threads
            options.inter_op_num_threads = 1
        options.log_severity_level = _LOG_FATAL_ONLY
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
        options.add_external_initializers(list(weights), values)
        if record_placement:
            options.add_session_config_entry(_RECORD_PLACEMENT, "1")
        self._session_options = options
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=[_PROVIDER], enable_fallback=0
        )
        session.disable_fallback()
        if session.get_providers() != [_PROVIDER]:
            raise ComputeError(
                f"ONNX Runtime chose {session.get_providers()}, not {_PROVIDER}",
                code="wrong_provider",
            )
        return session


def _with_weight_slots(program: LoadedProgram) -> ModelProto:
    """The model with each weight as an initializer whose data is handed over in memory.

    An initializer marked as external has no bytes in the protobuf; each of these is
    replaced by `add_external_initializers`, so no file is ever looked for. Nothing
    is copied, and weights may exceed protobuf's 2 GiB.
    """
    model = ModelProto()
    model.CopyFrom(program.model)
    for value in [v for v in model.graph.input if v.name in program.weights]:
        model.graph.input.remove(value)
        slot = model.graph.initializer.add(
            name=value.name,
            data_type=value.type.tensor_type.elem_type,
            dims=program.weights[value.name].shape,
            data_location=TensorProto.EXTERNAL,
        )
        slot.external_data.add(key="location", value="handed-over-in-memory")
    return model


def _placed_elsewhere(session: ort.InferenceSession) -> list[str]:
    """Nodes that another provider runs; empty where this version does not tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return []
    return [
        f"{node.op_type} on {part.ep_name}"
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != _PROVIDER
        for node in part.get_nodes()
    ]


def _canary() -> ModelProto:
    """The product of a float32 matrix of any shape with its transpose."""
    graph = make_graph(
        [make_node("Transpose", ["x"], ["t"]), make_node("MatMul", ["x", "t"], ["y"])],
        "canary",
        [make_tensor_value_info("x", TensorProto.FLOAT, ["n", "k"])],
        [make_tensor_value_info("y", TensorProto.FLOAT, ["n", "n"])],
    )
    return make_model(graph, opset_imports=[make_opsetid("", 18)], ir_version=8)


def _translated(error: Exception, what: str) -> ComputeError | ProgramError:
    """Say what ONNX Runtime said, in the family it belongs to."""
    text = str(error)
    failed = _FAILED_NODE.search(text)
    node, operator = (failed["node"], failed["operator"]) if failed else ("", "")
    place = f" at node {printable(node)!r} ({operator})" if failed else ""
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(text):
        return ComputeError(
            f"{what}{place}: it needs more memory than its limit allows",
            code="memory_limit",
            hint="ask for more memory, or split the inputs into smaller batches",
            node=printable(node),
            operator=operator,
        )
    if "terminate flag" in text or "canceled" in text.lower():
        return ComputeError(f"{what}: it was ended", code="terminated")
    why = printable(_NOISE.sub("", failed["why"] if failed else text).strip(), 300)
    return ProgramError(
        f"{what}{place}: {why}",
        code="operator_failed" if failed else "unsupported_program",
        node=printable(node),
        operator=operator,
    )


def _clean(error: Exception) -> str:
    return printable(_NOISE.sub("", str(error)), 300)
