"""ONNX Runtime's providers of cards: what they are asked for, and what is made of them.

Decisions are tested as values. The executor itself runs on the CPU here as if that were a
card's provider, and beside one that takes no nodes, which is what a card's would be without
its library; `tests/gpu` shows the same on a card.
"""

from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
import pytest
from onnx import parser
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from shoal.compute import frames
from shoal.compute.convert import convert
from shoal.compute.devices.cards import Card
from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.executors import probing, providers, table
from shoal.compute.executors.base import Evidence, NumericClass, Probe
from shoal.compute.executors.card_faults import FAILED, LOST
from shoal.compute.executors.onnxruntime import OnnxRuntime, _load_failure, _translated
from shoal.compute.executors.providers import CPU_NAME, DISABLE_CPU, Provider, Stray
from shoal.compute.executors.table import Entry
from shoal.compute.loading import load

NVIDIA = Card("gpu0", "cuda", "sm_90", 80 << 30)
AMD = Card("gpu1", "hip", "gfx942", 192 << 30)
LENT = 7 << 30
CUDA = providers.of_card(NVIDIA, LENT)
MIGRAPHX = providers.of_card(AMD, LENT)

IDLE_NAME = "AzureExecutionProvider"
"""Part of the usual CPU build; takes only custom operators that call a remote service."""

HAS_IDLE = pytest.mark.skipif(
    IDLE_NAME not in ort.get_available_providers(),
    reason="this build of ONNX Runtime has no second provider that takes no nodes",
)
IDLE_CARD = Provider(IDLE_NAME, "onnxruntime", session={DISABLE_CPU: "1"}, card="gpu0")

AS_IF_ON_CARD = Provider(CPU_NAME, "onnxruntime", card="gpu0", memory_bytes=LENT)
"""The CPU, of which all is asked that is asked of a card's provider."""


def loaded(body, head="g (float[2, 3] x) => (float[2, 3] y)"):
    text = f'<ir_version: 8, opset_import: ["" : 18]> {head} {{ {body} }}'
    program = convert(parser.parse_model(text).SerializeToString())
    return load(program.program_id, program.blobs)


# --- what is asked for -----------------------------------------------------------------


def test_a_card_of_nvidia_is_asked_for_without_tf32_and_with_what_it_is_lent():
    assert CUDA.name == "CUDAExecutionProvider"
    assert CUDA.options["use_tf32"] == "0"
    assert CUDA.options["device_id"] == "0"  # a worker sees its own card alone
    assert LENT < int(CUDA.options["gpu_mem_limit"]) < 1.01 * LENT
    assert CUDA.options["arena_extend_strategy"] == "kSameAsRequested"
    assert CUDA.options["cudnn_conv_algo_search"] != "EXHAUSTIVE"  # which decides by trials


def test_a_card_of_amd_is_asked_for_without_half_precision():
    assert MIGRAPHX.name == "MIGraphXExecutionProvider"
    reduced = {"migraphx_fp16_enable", "migraphx_int8_enable"}
    assert {MIGRAPHX.options[name] for name in reduced} == {"0"}
    assert MIGRAPHX.options["device_id"] == "0"


@pytest.mark.parametrize("provider", [CUDA, MIGRAPHX], ids=lambda each: each.name)
def test_on_a_card_the_cpu_is_switched_off_when_a_session_opens(provider):
    assert provider.session[DISABLE_CPU] == "1"
    assert provider.card
    assert not providers.CPU.session  # together with an explicit CPU it is an error


def test_a_build_without_a_card_s_provider_says_which_has_it():
    with pytest.raises(ComputeError) as error:
        providers.check_build(MIGRAPHX, "1.32.0", [CPU_NAME])
    assert error.value.code == providers.MISSING
    assert "pip uninstall onnxruntime" in error.value.hint
    assert "pip install 'onnxruntime-migraphx'" in error.value.hint
    providers.check_build(MIGRAPHX, "1.32.0", [CPU_NAME, MIGRAPHX.name])


# --- what was got ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "named"),
    [
        (CUDA, [CPU_NAME]),
        (CUDA, []),
        (CUDA, [CPU_NAME, CUDA.name]),
        (CUDA, ["TensorrtExecutionProvider", CUDA.name, CPU_NAME]),
        (providers.CPU, [IDLE_NAME, CPU_NAME]),
        (providers.CPU, [CPU_NAME, CPU_NAME]),
    ],
)
def test_a_session_of_other_providers_is_refused(provider, named):
    with pytest.raises(ComputeError) as error:
        providers.check_session(provider, named, {})
    assert error.value.code == "wrong_provider"
    assert f"not {provider.name}" in error.value.message


def test_the_cpu_that_is_always_added_is_no_other_provider():
    providers.check_session(CUDA, [CUDA.name, CPU_NAME], {CPU_NAME: {}, CUDA.name: {}})
    providers.check_session(providers.CPU, [CPU_NAME], {CPU_NAME: {}})


def test_an_option_that_was_not_taken_is_refused():
    told = dict(CUDA.options) | {"enable_cuda_graph": "0"}
    providers.check_session(CUDA, [CUDA.name, CPU_NAME], {CUDA.name: told})
    told["use_tf32"] = "1"
    with pytest.raises(ComputeError, match="use_tf32=1 where 0 was asked for") as error:
        providers.check_session(CUDA, [CUDA.name, CPU_NAME], {CUDA.name: told})
    assert error.value.code == "wrong_provider"


@dataclass
class Part:
    ep_name: str
    nodes: list

    def get_nodes(self):
        return self.nodes


@dataclass
class Node:
    op_type: str
    name: str = ""


def test_nodes_of_another_provider_are_named_and_the_program_is_refused_at_this_card():
    parts = [
        Part(CUDA.name, [Node("MatMul"), Node("Exp")]),
        Part(CPU_NAME, [Node("Shape", "/a/Shape"), Node("Gather")]),
        Part(CPU_NAME, [Node("Concat"), Node("Loop")]),
    ]
    found = providers.strays(CUDA, parts)
    assert found[0] == Stray("/a/Shape", "Shape", CPU_NAME)
    assert [each.operator for each in found] == ["Shape", "Gather", "Concat", "Loop"]
    with pytest.raises(ComputeError) as error:  # no program error: another node may run it
        providers.check_placement(CUDA, found)
    refused = error.value
    assert (refused.code, refused.node, refused.operator) == (
        *("unsupported_operator", "/a/Shape", "Shape"),
    )
    assert f"Shape '/a/Shape' on {CPU_NAME}, Gather on" in refused.message
    assert refused.message.endswith("and 1 more")
    assert "on a CPU" in refused.hint
    providers.check_placement(CUDA, providers.strays(CUDA, parts[:1]))


def test_a_card_of_which_nobody_can_tell_what_it_runs_is_refused():
    with pytest.raises(ComputeError) as error:
        providers.check_placement(CUDA, None)
    assert error.value.code == "wrong_provider"
    providers.check_placement(providers.CPU, None)


# --- the same executor, on the CPU as if it were a card --------------------------------


@pytest.fixture
def executor():
    return OnnxRuntime(AS_IF_ON_CARD, threads=1)


def test_a_program_whose_nodes_are_all_the_provider_s_runs(executor):
    probe = executor.probe()
    assert probe.evidence is Evidence.EXECUTED
    assert probe.runtime == f"onnxruntime {ort.__version__} {CPU_NAME}"
    handle = executor.prepare(loaded("y = Exp(x)"))
    x = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_allclose(executor.run(handle, {"x": x})["y"], np.exp(x), rtol=1e-6)


@HAS_IDLE
@pytest.mark.parametrize("disabled", [{DISABLE_CPU: "1"}, {}], ids=["at load", "by placement"])
def test_a_program_with_a_node_that_the_provider_does_not_take_is_refused_by_name(disabled):
    provider = Provider(IDLE_NAME, "onnxruntime", session=disabled, card="gpu0")
    program = loaded("y = Exp(x)")
    program.model.graph.node[0].name = "raise"
    with pytest.raises(ComputeError) as error:
        OnnxRuntime(provider, threads=1).prepare(program)
    refused = error.value
    assert (refused.code, refused.node, refused.operator) == (
        *("unsupported_operator", "raise", "Exp"),
    )


@HAS_IDLE
def test_nodes_within_branches_are_looked_at_too():
    branches = (
        "y = If (c) <then_branch = a () => (float[2] p) { p = Exp (x) }, "
        "else_branch = b () => (float[2] q) { q = Sin (x) }>"
    )
    program = loaded(branches, "g (bool c, float[2] x) => (float[2] y)")
    with pytest.raises(ComputeError) as error:
        OnnxRuntime(IDLE_CARD, threads=1).prepare(program)
    assert all(f"{each} " in error.value.message for each in ("Exp", "Sin", "If"))


def test_preparing_that_is_cancelled_ends_by_that_name(monkeypatch, executor):
    class Cancelled(ort.InferenceSession):
        def __init__(self, *args, **options):
            executor.terminate()
            super().__init__(*args, **options)

    program = loaded("y = Exp(x)")
    monkeypatch.setattr(ort, "InferenceSession", Cancelled)
    with pytest.raises(ComputeError) as error:
        executor.prepare(program)
    assert error.value.code == "terminated"


def test_a_run_that_fails_is_not_judged_by_the_names_that_are_in_its_program(executor):
    """What a worker hears of it is judged by its words, and a node's name is a stranger's."""
    program = loaded("y = Gather(x, i)", "g (float[n] x, int64[k] i) => (float[k] y)")
    program.model.graph.node[0].name = "CUDA error: uncorrectable ECC error encountered"
    handle = executor.prepare(program)
    with pytest.raises(ProgramError) as error:
        executor.run(handle, {"x": np.ones(2, np.float32), "i": np.array([7])})
    assert error.value.code == "operator_failed"
    assert error.value.__context__ is None


# --- faults ----------------------------------------------------------------------------

RUNNING = "Non-zero status code returned while running {} node. Name:'n' Status Message: {}"
FULL = (
    "/onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* onnxruntime::BFCArena::"
    "AllocateRawInternal(size_t, bool, onnxruntime::Stream*) Available memory of 0 is smaller "
    "than requested bytes of 135383040"
)
CALL = "{} failure {} ; GPU=0 ; hostname=h ; file=/onnxruntime_src/{} ; line=1 ; expr=f()"


def failure(library, said):
    """A failed call of a library, as ONNX Runtime tells of it."""
    return CALL.format(library, said, "onnxruntime/core/providers/x.cc")


@pytest.mark.parametrize(
    ("provider", "said", "code"),
    [
        (CUDA, FULL, "memory_limit"),
        (CUDA, "Failed to allocate memory for requested buffer of size 9", "memory_limit"),
        (CUDA, failure("CUDA", "2: out of memory"), "memory_limit"),
        (CUDA, failure("CUBLAS", "3: CUBLAS_STATUS_ALLOC_FAILED"), "memory_limit"),
        (MIGRAPHX, failure("HIP", "2: out of memory"), "memory_limit"),
        (CUDA, failure("CUDA", "700: an illegal memory access was encountered"), FAILED),
        (CUDA, failure("CUDNN", "5000: CUDNN_STATUS_EXECUTION_FAILED"), FAILED),
        (MIGRAPHX, failure("HIP", "719: unspecified launch failure"), FAILED),
        (MIGRAPHX, failure("HIP", "1: invalid argument"), FAILED),
        (CUDA, failure("CUDA", "46: CUDA-capable device(s) is/are busy or unavailable"), LOST),
        (CUDA, failure("CUDA", "214: uncorrectable ECC error encountered"), LOST),
        (MIGRAPHX, failure("HIP", "100: no ROCm-capable device is detected"), LOST),
    ],
)
def test_a_card_s_failure_in_onnx_runtime_s_words_is_named_by_what_it_means(
    provider, said, code
):
    for error in (ort_errors.Fail(said), ort_errors.Fail(RUNNING.format("MatMul", said))):
        found = _translated(error, "the program failed", provider)
        assert isinstance(found, ComputeError)
        assert found.code == code
    assert (found.node, found.operator) == ("n", "MatMul")
    if code != "memory_limit":
        assert provider.card in found.message


def test_the_same_words_on_a_cpu_are_the_program_s_failure():
    said = RUNNING.format("Gather", failure("CUDA", "700: an illegal memory access"))
    assert isinstance(
        _translated(ort_errors.Fail(said), "it failed", providers.CPU), ProgramError
    )


def test_what_is_no_fault_of_a_card_is_its_program_s():
    said = RUNNING.format("Gather", "indices element out of data bounds, idx=7 must be within")
    found = _translated(ort_errors.InvalidArgument(said), "the program failed", CUDA)
    assert isinstance(found, ProgramError)
    assert (found.code, found.node, found.operator) == ("operator_failed", "n", "Gather")


@pytest.mark.skipif(not hasattr(ort_errors, "DeviceReset"), reason="of newer versions")
def test_a_device_that_was_reset_is_lost():
    found = _translated(ort_errors.DeviceReset("[ONNXRuntimeError] : 13"), "it failed", CUDA)
    assert (found.code, "gpu0" in found.message) == (LOST, True)


# --- which of two executors ------------------------------------------------------------


class Named:
    """An executor whose canary is right, or is not."""

    def __init__(self, name, fails=False):
        self._name, self._fails = name, fails

    def start_threads(self):
        pass

    def probe(self):
        if self._fails:
            raise ComputeError("its canary is wrong", code="probe_failed", hint="look")
        return Probe(f"{self._name} 1.0", NumericClass.FP32, Evidence.EXECUTED)


def entry(name, *, fails=False, absent=False, by_torch=False):
    def load_it(_):
        if absent:
            raise ComputeError("no build has it", code=providers.MISSING, hint="install it")
        return lambda: Named(name, fails)

    return Entry(name, NumericClass.FP32, (), load_it, by_torch=by_torch)


def shown(monkeypatch, *entries, reached=True):
    """Who has the class, and the codes of what is missing."""
    monkeypatch.setattr(probing, "entries", lambda _: entries)
    start = frames.Start(threads=1, cache_bytes=1, memory_bytes=1, exact=False, card=NVIDIA)
    on_card = probing.Executors(start)
    probes = on_card.probe(reached)
    return [each.runtime.split()[0] for each in probes], [e.code for e in on_card.lacks()]


def test_torch_has_a_card_s_fp32_where_both_are_there_and_the_other_says_why_not(monkeypatch):
    names = [each.name for each in table.ON_CARDS if each.numeric_class is NumericClass.FP32]
    assert names == ["torch", "onnxruntime"]
    both = shown(monkeypatch, entry("torch", by_torch=True), entry("onnxruntime"))
    assert both == (["torch"], ["not_used"])


@pytest.mark.parametrize(
    ("torch", "reached", "missing"),
    [
        (entry("torch", fails=True, by_torch=True), True, ["executor_failed"]),
        (entry("torch", by_torch=True), False, []),  # that it is not reached is told as such
        (entry("torch", absent=True, by_torch=True), True, []),
    ],
)
def test_onnx_runtime_has_it_where_torch_does_not_work(monkeypatch, torch, reached, missing):
    found = shown(monkeypatch, torch, entry("onnxruntime"), reached=reached)
    assert found == (["onnxruntime"], missing)


def test_a_build_without_the_provider_is_missed_only_where_nothing_else_has_the_class(
    monkeypatch,
):
    absent = entry("onnxruntime", absent=True)
    assert shown(monkeypatch, entry("torch"), absent) == (["torch"], [])
    both = shown(monkeypatch, entry("torch", fails=True), absent)
    assert both == ([], ["executor_failed", "provider_missing"])


def test_the_usual_build_says_what_a_card_would_take():
    (found,) = (each for each in table.ON_CARDS if each.name == "onnxruntime")
    if CUDA.name in ort.get_available_providers():
        pytest.skip("this build has the provider")
    start = frames.Start(threads=1, cache_bytes=1, memory_bytes=1, exact=False, card=NVIDIA)
    with pytest.raises(ComputeError) as error:
        found.load(start)
    assert error.value.code == providers.MISSING
    assert "onnxruntime-gpu" in error.value.hint


@pytest.mark.skipif(
    CUDA.name not in ort.get_available_providers(),
    reason="only ONNX Runtime's build for CUDA has this: pip install onnxruntime-gpu",
)
def test_a_provider_whose_library_does_not_load_is_refused_with_what_the_loader_says():
    """On a machine without CUDA's libraries; ONNX Runtime would go on with the CPU."""
    if not _load_failure(CUDA):
        pytest.skip("CUDA's libraries are here")
    with pytest.raises(ComputeError) as error:
        OnnxRuntime(CUDA, threads=1).probe()
    assert error.value.code == "wrong_provider"
    assert f"{CUDA.name} does not load: lib" in error.value.message
    assert error.value.hint
