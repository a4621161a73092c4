"""Canaries with every fallback off: a provider that is not there is never claimed.

The ONNX Runtime of the tests has a second provider, which takes no node of its own: what
it is given runs on the CPU in silence. That makes the real fallback testable anywhere.
"""

import os
import subprocess
import sys
import warnings
from dataclasses import replace

import msgspec
import onnxruntime as ort
import pytest

from shoal.compute.devices.abilities import Canaries, takes_units, with_abilities
from shoal.compute.devices.inventory import Device, Inventory, Lack
from shoal.compute.errors import ComputeError
from shoal.compute.executors import onnxruntime as executor
from shoal.compute.executors.base import Evidence, NumericClass, Probe
from shoal.compute.executors.onnxruntime import OnnxRuntime
from shoal.compute.executors.providers import DISABLE_CPU, Provider
from shoal.node.capability_views import CapabilityView, DeviceFigures, NoRate
from shoal.node.cli import devices
from shoal.node.offer import Capacity

IDLE_PROVIDER = "AzureExecutionProvider"
"""Part of the usual CPU build; takes only custom operators that call a remote service."""

pytestmark = pytest.mark.skipif(
    IDLE_PROVIDER not in ort.get_available_providers(),
    reason="this build of ONNX Runtime has no second provider that takes no nodes",
)

TELLS_PLACEMENT = pytest.mark.skipif(
    not hasattr(ort.InferenceSession, "get_provider_graph_assignment_info"),
    reason="this ONNX Runtime does not tell where it places nodes",
)

CPU = Device(id="cpu", kind="cpu", name="A", memory_bytes=1, memory_free_bytes=1)


def probe(evidence=Evidence.EXECUTED, runtime="onnxruntime 1.0", of=NumericClass.FP32):
    return Probe(runtime, of, evidence)


IDLE = Provider(IDLE_PROVIDER, "onnxruntime")
IDLE_CARD = Provider(IDLE_PROVIDER, "onnxruntime", session={DISABLE_CPU: "1"}, card="gpu0")
"""As if it were a card's: it takes no node, and the CPU may not."""


def refused(provider):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # ONNX Runtime says by a warning that it falls back
        with pytest.raises(ComputeError) as error:
            OnnxRuntime(provider, threads=1).probe()
    return error.value


def test_onnx_runtime_itself_falls_back_in_silence():
    session = ort.InferenceSession(
        executor._canary().SerializeToString(), providers=[IDLE_PROVIDER]
    )
    assert session.get_providers() == [IDLE_PROVIDER, "CPUExecutionProvider"]
    assert session.run(None, {"x": [[1.0], [2.0]]})[0].tolist() == [[1.0, 2.0], [2.0, 4.0]]


def test_a_build_without_the_provider_is_refused_and_says_what_it_has():
    error = refused(Provider("NoExecutionProvider", "onnxruntime"))
    assert error.code == "wrong_provider"
    assert "has no NoExecutionProvider: it has" in error.message
    assert "CPUExecutionProvider" in error.message


def test_a_provider_that_leaves_its_nodes_to_the_cpu_is_refused():
    error = refused(IDLE)
    assert error.code == "wrong_provider"
    assert f"not {IDLE_PROVIDER}" in error.message


@TELLS_PLACEMENT
def test_a_node_that_was_placed_elsewhere_is_seen_even_if_the_session_looks_right(monkeypatch):
    monkeypatch.setattr(ort.InferenceSession, "get_providers", lambda _self: [IDLE_PROVIDER])
    error = refused(IDLE)
    assert error.code == "wrong_provider"
    assert "MatMul on CPUExecutionProvider" in error.message


@TELLS_PLACEMENT
def test_a_card_whose_provider_leaves_the_canary_to_the_cpu_is_refused_with_its_nodes():
    error = refused(IDLE_CARD)
    assert error.code == "wrong_provider"
    assert error.message == (
        f"ONNX Runtime placed nodes elsewhere than on {IDLE_PROVIDER}: "
        "Transpose on CPUExecutionProvider, MatMul on CPUExecutionProvider"
    )


def test_a_card_is_not_offered_by_a_version_that_does_not_tell_where_it_places_nodes(
    monkeypatch,
):
    name = "get_provider_graph_assignment_info"
    for each in ort.InferenceSession.__mro__:
        if name in vars(each):
            monkeypatch.delattr(each, name)
    error = refused(replace(IDLE_CARD, session={}))
    assert error.code == "wrong_provider"
    assert "does not tell" in error.message


def test_a_session_that_only_opens_with_the_cpu_is_never_given():
    """Also where nothing says which nodes: the second session is to be looked at alone."""
    opened = []

    class Looks(OnnxRuntime):
        def _check(self, session, *, placement):
            opened.append(session)

    with pytest.raises(ComputeError, match="has been explicitly disabled"):
        Looks(IDLE_CARD, threads=1).probe()
    assert len(opened) == 1


def test_every_session_is_opened_for_the_named_provider_alone_with_fallbacks_off(monkeypatch):
    opened = []

    class Watched(ort.InferenceSession):
        def __init__(self, *args, **options):
            opened.append(options)
            super().__init__(*args, **options)

        def disable_fallback(self):
            opened[-1]["disabled"] = True
            super().disable_fallback()

    monkeypatch.setattr(ort, "InferenceSession", Watched)
    OnnxRuntime(threads=1).probe()
    assert opened == [
        {"providers": [("CPUExecutionProvider", {})], "enable_fallback": 0, "disabled": True}
    ]


def test_a_wrong_product_is_refused(monkeypatch):
    right = executor._canary

    def sum_instead():
        model = right()
        model.graph.node[1].op_type = "Add"
        model.graph.node[1].input[1] = "x"  # twice x in place of the product
        return model

    monkeypatch.setattr(executor, "_canary", sum_instead)
    with pytest.raises(ComputeError) as error:
        OnnxRuntime(threads=1).probe()
    assert error.value.code == "probe_failed"
    assert "wrong product" in error.value.message


def test_a_worker_whose_canary_fails_offers_nothing_of_that_class():
    # In a process of its own: a worker that starts locks its process in.
    script = (
        "import os\n"
        "from shoal.compute import frames\n"
        "from shoal.compute.errors import ComputeError\n"
        "from shoal.compute.executors import onnxruntime, providers\n"
        "from shoal.compute.worker import Worker\n"
        f"idle = providers.Provider({IDLE_PROVIDER!r}, 'onnxruntime')\n"
        "onnxruntime.OnnxRuntime.__init__.__defaults__ = (idle,)\n"
        "start = frames.Start(threads=1, cache_bytes=1, memory_bytes=1, exact=False)\n"
        "try: Worker(start).start()\n"
        "except ComputeError as error: print(error.code, error.message, flush=True)\n"
        "os._exit(0)"
    )
    said = subprocess.check_output([sys.executable, "-c", script], text=True)
    code, _, message = said.partition(" ")
    assert code == "no_executor"
    assert IDLE_PROVIDER in message


def test_kernels_that_would_run_as_plain_python_are_not_used():
    script = (
        "from shoal.compute.errors import ComputeError\n"
        "from shoal.compute.executors.table import _exact_by_numba as load\n"
        "from shoal.compute.frames import Start\n"
        "start = Start(threads=1, cache_bytes=1, memory_bytes=1, exact=True)\n"
        "try: load(start)\n"
        "except ComputeError as error: print(error.message)"
    )
    said = subprocess.check_output(
        [sys.executable, "-c", script], env=os.environ | {"NUMBA_DISABLE_JIT": "1"}, text=True
    )
    assert said == "numba's compiler is switched off\n"


@pytest.mark.parametrize("evidence", list(Evidence), ids=lambda evidence: evidence.value)
def test_evidence_is_said_as_the_canary_showed_it_and_only_silicon_takes_units(evidence):
    shown = probe(evidence)
    (cpu,) = with_abilities(Inventory((CPU,)), {"cpu": Canaries((shown,), ())}).devices
    assert [ability.evidence for ability in cpu.abilities] == [evidence.value]
    assert takes_units(shown) is (evidence is Evidence.EXECUTED)
    assert cpu.executors == (("onnxruntime",) if evidence is Evidence.EXECUTED else ())


def test_before_any_canary_a_device_is_said_to_run_nothing():
    (cpu,) = with_abilities(Inventory((CPU,)), {}).devices
    assert (cpu.abilities, cpu.executors) == ((), ())
    assert [lack.code for lack in cpu.missing] == ["not_probed"]


CARD = Device(
    id="gpu0", kind="amd", name="B", memory_bytes=1, memory_free_bytes=1, target="gfx942"
)


def test_what_runs_on_a_card_is_what_its_own_canaries_showed():
    canaries = {
        "cpu": Canaries((probe(), probe(runtime="exact 1 numba", of=NumericClass.EXACT)), ()),
        "gpu0": Canaries((probe(runtime="exact 1 triton 3.7.0", of=NumericClass.EXACT),), ()),
    }
    cpu, gpu = with_abilities(Inventory((CPU, CARD)), canaries).devices
    assert cpu.executors == ("exact", "onnxruntime")
    assert gpu.executors == ("exact",)
    assert [(a.executor, a.numeric_class) for a in gpu.abilities] == [("exact", "exact")]
    assert gpu.note == ""  # what it claims is `node.capability`'s


def test_a_device_says_how_many_units_it_runs_at_once_where_it_runs_any(capsys):
    exact = probe(runtime="exact 1 triton 3.7.0", of=NumericClass.EXACT)
    compiles = probe(Evidence.COMPILE_ONLY, "exact 1 triton 3.7.0", NumericClass.EXACT)
    second = msgspec.structs.replace(CARD, id="gpu1")
    canaries = {
        "cpu": Canaries((probe(),), ()),
        "gpu0": Canaries((exact,), (), units_at_once=2),
        "gpu1": Canaries((compiles,), (), units_at_once=2),
    }
    found = with_abilities(Inventory((CPU, CARD, second)), canaries)
    assert [device.units_at_once for device in found.devices] == [1, 2, 0]
    devices._print(found, None, None)
    said = [line for line in capsys.readouterr().out.splitlines() if "at once" in line]
    assert said == ["gpu0: runs 2 units at once where its memory allows"]


def test_a_class_of_the_cpu_that_has_no_rate_says_why(capsys):
    slow = NoRate("exact", "slower than what can be shown")
    figures = DeviceFigures("cpu", 1e9, 1.0, without=(slow,))
    claimed = CapabilityView((), 1e9, 1e9, 1.0, devices=(figures,))
    devices._print(with_abilities(Inventory((CPU,)), {}), claimed, None)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("cpu: ")]
    assert "cpu: no rate of exact: slower than what can be shown" in said
    assert not any("memory moves" in line for line in said)  # that is told of the node


def test_a_card_for_which_kernels_only_compile_says_so_and_takes_no_units():
    shown = probe(Evidence.COMPILE_ONLY, "exact 1 triton 3.7.0 for gfx942", NumericClass.EXACT)
    unreached = Lack("card_unreachable", "torch is built without ROCm", "install it")
    (gpu,) = with_abilities(
        Inventory((CARD,)), {"gpu0": Canaries((shown,), (unreached,))}
    ).devices
    assert [ability.evidence for ability in gpu.abilities] == ["compile-only"]
    assert gpu.executors == ()
    assert gpu.missing == (unreached,)
    assert gpu.note == ""


def test_a_card_that_is_kept_from_programs_is_not_said_to_be_looked_at():
    hidden = Lack("hidden", "a variable hides it", "take it away")
    card = msgspec.structs.replace(CARD, missing=(hidden,))
    (gpu,) = with_abilities(Inventory((card,)), {}).devices
    assert gpu.missing == (hidden,)
    (gpu,) = with_abilities(Inventory((CARD,)), {}).devices
    assert [lack.code for lack in gpu.missing] == ["not_probed"]


def test_a_daemon_offers_no_class_that_was_only_emulated_or_compiled():
    capacity = Capacity()
    shown = [
        probe(Evidence.EMULATED, "simulator 1.0", NumericClass.LOW),
        probe(Evidence.COMPILE_ONLY, "compiler 1.0", NumericClass.EXACT),
        probe(),
    ]
    capacity.offer(shown, [])
    assert capacity.executors() == {"fp32": "onnxruntime"}
    assert capacity.compiled("cpu") == {"exact": "compiler"}
    assert capacity.canaries["cpu"].probes == tuple(shown)
