"""ONNX Runtime on the CPU or on a card, class fp32.

ONNX Runtime falls back to another provider in silence: where its build has none of
the name that was asked for, where opening or running a session fails, where a provider's
library does not load, and for each node that a provider does not take. Here the provider
(`shoal.compute.executors.providers`) is named and must be in the build, all fallbacks are
disabled, a session with any other provider is refused, and the nodes of the canary, and on
a card of every program, must have been placed on it. (The option
``session.disable_cpu_ep_fallback`` is for cards: together with an explicit CPU
provider it is an error.)

On a card, weights are a session's initializers and stay there as long as the program is
held. A run takes its inputs there once and brings its outputs back once, which is what
binding them by hand (``IOBinding``) would do; that pays only for outputs that stay there.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path
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
from shoal.compute.executors import providers
from shoal.compute.executors.base import Evidence, NumericClass, Probe
from shoal.compute.executors.card_faults import LOST, fault_of
from shoal.compute.executors.providers import Provider, Stray
from shoal.compute.graph import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shoal.compute.loading import LoadedProgram

_LOG_FATAL_ONLY: Final = 4

_CANARY_OUTPUT: Final = [[5.0, 14.0], [14.0, 50.0]]
"""Written down, not computed: a CPU or BLAS at fault would be wrong here as well."""

_ORT_ERRORS: Final = tuple(
    getattr(ort_errors, name)
    for name in (
        "DeviceReset",
        "EPFail",
        "EngineError",
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "ModelLoadCanceled",
        "NotImplemented",
        "RuntimeException",
    )
    if hasattr(ort_errors, name)  # not every version has each of them
)

_CPU_IS_DISABLED: Final = "fallback to CPU EP has been explicitly disabled"

_OUT_OF_MEMORY: Final = re.compile(
    r"bad_?\s?alloc|[Ff]ailed to allocate memory|"
    # Of an arena that is as large as it may be.
    r"Available memory of \d+ is smaller than requested bytes"
)
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


class OnnxRuntime:
    """The executor ``onnxruntime`` of one device.

    Args:
        provider: Which one computes.
        threads: How many threads one operator on a CPU may use.
    """

    def __init__(self, provider: Provider = providers.CPU, *, threads: int) -> None:
        self._provider = provider
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
            (y,) = session.run(None, {"x": x}, self._new_run_options())
        except _ORT_ERRORS as error:
            raise ComputeError(
                f"ONNX Runtime does not work here: {_clean(error)}", code="probe_failed"
            ) from None
        except ComputeError as error:
            if error.code == "unsupported_operator":  # every provider has those of the canary
                raise ComputeError(error.message, code="wrong_provider") from None
            raise
        if y.tolist() != _CANARY_OUTPUT:
            raise ComputeError("ONNX Runtime gave a wrong product", code="probe_failed")
        return Probe(
            runtime=f"onnxruntime {ort.__version__} {self._provider.name}",
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
            failure = _translated(error, "the program cannot be prepared", self._provider)
        else:
            return Prepared(session, program)
        # Out here it has no context, by whose text, a stranger's in part, it would be judged.
        raise failure

    def run(self, handle: Prepared, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the session once. See `Executor.run`."""
        names = [port.name for port in handle.program.manifest.outputs]
        try:
            arrays = handle.session.run(names, dict(inputs), self._new_run_options())
        except (*_ORT_ERRORS, MemoryError) as error:
            failure = _translated(error, "the program failed", self._provider)
        else:
            return {name: np.asarray(each) for name, each in zip(names, arrays, strict=True)}
        raise failure

    def terminate(self) -> None:
        """End what is going on, from another thread. See `Executor.terminate`."""
        self._run_options.terminate = True
        self._session_options.set_load_cancellation_flag(True)

    def _new_run_options(self) -> ort.RunOptions:
        self._run_options = ort.RunOptions()
        self._run_options.log_severity_level = _LOG_FATAL_ONLY
        for key, value in self._provider.run.items():
            self._run_options.add_run_config_entry(key, value)
        return self._run_options

    def _session(
        self,
        model: ModelProto,
        weights: Mapping[str, np.ndarray],
        *,
        record_placement: bool = False,
    ) -> ort.InferenceSession:
        """Open a session of which every node, where that is recorded, is the provider's."""
        provider = self._provider
        providers.check_build(provider, ort.__version__, ort.get_available_providers())
        record = record_placement or bool(provider.card)
        try:
            session = self._opened(model, weights, record=record)
        except ort_errors.Fail as error:
            if _CPU_IS_DISABLED not in str(error):
                raise
            # The error names no node, and comes where the provider did not load, too.
            if why := _load_failure(provider):
                raise providers.not_loaded(provider, why) from None
            # This session is opened to see which nodes, and is never run.
            seen = self._opened(model, weights, record=True, but=providers.DISABLE_CPU)
            self._check(seen, placement=True)
            raise
        self._check(session, placement=record)
        return session

    def _check(self, session: ort.InferenceSession, *, placement: bool) -> None:
        providers.check_session(
            self._provider, session.get_providers(), session.get_provider_options()
        )
        if placement:
            providers.check_placement(self._provider, _strays(session, self._provider))

    def _opened(
        self,
        model: ModelProto,
        weights: Mapping[str, np.ndarray],
        *,
        record: bool,
        but: str = "",
    ) -> ort.InferenceSession:
        """Open a session of the provider, without the entry ``but`` of its configuration."""
        options = ort.SessionOptions()
        if self._threads_are_shared:
            options.use_per_session_threads = False
        else:
            options.intra_op_num_threads = self._threads
            options.inter_op_num_threads = 1
        options.log_severity_level = _LOG_FATAL_ONLY
        options.use_deterministic_compute = bool(self._provider.card)
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
        options.add_external_initializers(list(weights), values)
        entries = dict(self._provider.session)
        if record:
            entries[providers.RECORD_PLACEMENT] = "1"
        for key in entries.keys() - {but}:
            options.add_session_config_entry(key, entries[key])
        self._session_options = options
        named = (self._provider.name, dict(self._provider.options))
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=[named], enable_fallback=0
        )
        session.disable_fallback()
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


def _load_failure(provider: Provider) -> str:
    """Why a provider's library does not load; ONNX Runtime tells its log alone."""
    library = Path(ort.__file__).parent / "capi" / provider.library
    if not library.is_file():
        return ""
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)
    return ""


def _strays(session: ort.InferenceSession, provider: Provider) -> list[Stray] | None:
    """Nodes that another provider runs; None where this version does not tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    return providers.strays(provider, session.get_provider_graph_assignment_info())


def _canary() -> ModelProto:
    """The product of a float32 matrix of any shape with its transpose."""
    graph = make_graph(
        [make_node("Transpose", ["x"], ["t"]), make_node("MatMul", ["x", "t"], ["y"])],
        "canary",
        [make_tensor_value_info("x", TensorProto.FLOAT, ["n", "k"])],
        [make_tensor_value_info("y", TensorProto.FLOAT, ["n", "n"])],
    )
    return make_model(graph, opset_imports=[make_opsetid("", 18)], ir_version=8)


def _translated(
    error: Exception, what: str, provider: Provider = providers.CPU
) -> ComputeError | ProgramError:
    """Say what ONNX Runtime said, in the family it belongs to.

    What a node failed by is judged without its name, which is a stranger's.
    """
    text = str(error)
    failed = _FAILED_NODE.search(text)
    node, operator = (failed["node"], failed["operator"]) if failed else ("", "")
    place = f" at node {printable(node)!r} ({operator})" if failed else ""
    said = failed["why"] if failed else text
    fault = _fault(error, said, provider)
    if fault is not None and fault.code != "memory_limit":
        fault.node, fault.operator = printable(node), operator
        return fault
    if fault is not None or isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(said):
        return ComputeError(
            f"{what}{place}: it needs more memory than its limit allows",
            code="memory_limit",
            hint="ask for more memory, or split the inputs into smaller batches",
            node=printable(node),
            operator=operator,
        )
    if "terminate flag" in text or "canceled" in text.lower():
        return ComputeError(f"{what}: it was ended", code="terminated")
    why = printable(_NOISE.sub("", said).strip(), 300)
    return ProgramError(
        f"{what}{place}: {why}",
        code="operator_failed" if failed else "unsupported_program",
        node=printable(node),
        operator=operator,
    )


def _fault(error: Exception, said: str, provider: Provider) -> ComputeError | None:
    """What a failure means for the card where it is one of the card's."""
    if not provider.card:
        return None
    if type(error).__name__ == "DeviceReset":
        return ComputeError(
            f"the card {provider.card} is gone: {printable(_NOISE.sub('', said), 200)}",
            code=LOST,
            hint="another node may run it",
        )
    heard = RuntimeError(printable(_NOISE.sub("", said), 1000))
    return fault_of(heard, provider.card, provider.memory_bytes)


def _clean(error: Exception) -> str:
    return printable(_NOISE.sub("", str(error)), 300)
