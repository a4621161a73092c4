"""The executor of the exact class: its canary, and programs as they travel."""

import threading

import numpy as np
import pytest
from onnx import parser

from shoal.compute.convert import convert
from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.exact.kernels import ExactError
from shoal.compute.exact.reference import ReferenceKernels
from shoal.compute.executors.base import Evidence, NumericClass
from shoal.compute.executors.exact import Exact
from shoal.compute.loading import load

MODEL = """<ir_version: 8, opset_import: ["" : 18]>
g (float[n, 300] x) => (float[n, 2] y) { xw = MatMul(x, w) t = Tanh(xw) y = Add(t, b) }"""


def loaded(precision="x20"):
    """A program of which one weight travels beside the graph and one within it."""
    random = np.random.default_rng(2)
    model = parser.parse_model(MODEL)
    for name, shape in (("w", (300, 2)), ("b", (2,))):
        values = random.normal(size=shape).astype(np.float32)
        tensor = model.graph.initializer.add(name=name, data_type=1, dims=shape)
        tensor.raw_data = values.tobytes()
    program = convert(model.SerializeToString(), precision)
    return load(program.program_id, program.blobs)


def executor(kernels=None):
    return Exact(kernels or ReferenceKernels(), "reference")


def rows(count=3):
    return np.random.default_rng(4).normal(size=(count, 300)).astype(np.float32)


def test_the_canary_has_the_id_that_it_has_everywhere():
    probe = executor().probe()
    assert probe.numeric_class is NumericClass.EXACT
    assert probe.evidence is Evidence.EXECUTED
    assert probe.runtime == "exact 1 reference"


@pytest.mark.parametrize("kernel", ["product", "softmax_rows", "reduce_rows", "unary"])
def test_a_backend_that_is_off_by_one_bit_does_not_pass_the_canary(kernel):
    class Off(ReferenceKernels):
        pass

    def off(*args, **options):
        right = getattr(ReferenceKernels, kernel)(*args, **options)
        return np.nextafter(right, np.float32(np.inf))

    setattr(Off, kernel, staticmethod(off))
    with pytest.raises(ComputeError) as refused:
        executor(Off()).probe()
    assert refused.value.code == "probe_failed"


def test_a_program_runs_and_each_row_is_its_own():
    run = executor()
    handle = run.prepare(loaded())
    x = rows()
    whole = run.run(handle, {"x": x})["y"]
    for i in range(len(x)):
        assert run.run(handle, {"x": x[i : i + 1]})["y"].tobytes() == whole[i].tobytes()


def test_the_precision_of_the_manifest_is_the_one_that_is_used():
    run = executor()
    results = {
        precision: run.run(run.prepare(loaded(precision)), {"x": rows()})["y"].tobytes()
        for precision in ("x20", "x16", "x8")
    }
    assert len(set(results.values())) == 3


def test_a_program_without_a_precision_is_refused():
    with pytest.raises(ProgramError) as refused:
        executor().prepare(loaded(None))
    assert refused.value.code == "no_precision"


def test_an_error_inside_is_the_programs_and_names_its_node():
    run = executor()
    handle = run.prepare(loaded())
    with pytest.raises(ProgramError) as refused:
        run.run(handle, {"x": np.full((1, 300), 1e38, np.float32)})
    assert isinstance(refused.value, ExactError)
    assert (refused.value.code, refused.value.node) == ("infinity", "xw")


def test_a_run_that_is_ended_from_another_thread_stops_before_its_next_node():
    reached, ended = threading.Event(), threading.Event()

    class Waiting(ReferenceKernels):
        def product(self, *args):
            reached.set()
            assert ended.wait(10)
            return ReferenceKernels.product(*args)

    run = executor(Waiting())
    handle = run.prepare(loaded())

    def end():
        reached.wait(10)
        run.terminate()
        ended.set()

    thread = threading.Thread(target=end)
    thread.start()
    with pytest.raises(ComputeError) as refused:
        run.run(handle, {"x": rows()})
    thread.join()
    assert refused.value.code == "terminated"
    run.run(handle, {"x": rows()})  # and the next one runs
