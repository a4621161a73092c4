"""One operator judged alone: what no run gives it is refused by name, and never convicts."""

import numpy as np
import pytest
from onnx import parser

from shoal.compute.convert import convert
from shoal.compute.errors import ProgramError
from shoal.compute.exact.judging_operators import Operators, run_operator
from shoal.compute.exact.reference import ReferenceKernels
from shoal.compute.exact.tracing import Traceable, tensor_id, tensors_of, trace
from shoal.compute.loading import load
from shoal.compute.manifest import encode
from shoal.compute.tensor import to_blob

MODEL = """<ir_version: 9, opset_import: ["" : 20]>
g (float[3, 4] x, float[4, 2] w) => (float y) <float[2] b = {1, 2}>
{ p = MatMul(x, w) s = Add(p, b) y = Relu(s) }"""


def program_of(text=MODEL):
    return convert(parser.parse_model(text).SerializeToString(), "x20")


PROGRAM = program_of()
OPERATORS = Operators(PROGRAM.blobs[PROGRAM.program_id], PROGRAM.blobs[PROGRAM.manifest.graph])
X = np.arange(12, dtype=np.float32).reshape(3, 4)
W = np.ones((4, 2), np.float32)
A, B = to_blob(X), to_blob(W)


def code_of(call, *arguments):
    with pytest.raises(ProgramError) as refused:
        call(*arguments)
    return refused.value.code


def test_an_operator_gives_the_ids_of_its_outputs():
    ran = run_operator(OPERATORS, 0, [A, B])
    assert (ran.outputs, ran.error) == ((tensor_id(X @ W),), None)


def test_an_operator_that_errs_gives_its_code():
    huge = to_blob(np.full((3, 2), 3e38, np.float32))
    ran = run_operator(OPERATORS, 1, [huge, to_blob(np.full(2, 3e38, np.float32))])
    assert (ran.outputs, ran.error) == ((), "infinity")
    assert run_operator(OPERATORS, 0, [A, to_blob(np.ones((3, 2), np.float32))]).error == (
        "shape_mismatch"
    )


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ([A], "not_its_inputs"),
        ([A, B, B], "not_its_inputs"),
        ([A, None], "not_its_inputs"),
        ([A, to_blob(np.ones((4, 2), np.int64))], "not_its_inputs"),
        ([A, to_blob(np.full((4, 2), np.nan, np.float32))], "not_its_inputs"),
        ([A, to_blob(np.full((4, 2), np.inf, np.float32))], "not_its_inputs"),
        ([A, b""], "bad_tensor"),
        ([A, B[:-1]], "bad_tensor"),
        ([A, b"SHOALTEN" + bytes(56)], "bad_tensor"),
    ],
)
def test_inputs_that_no_run_gives_are_refused(inputs, code):
    assert code_of(run_operator, OPERATORS, 0, inputs) == code


@pytest.mark.parametrize("index", [-1, 3, 1 << 40])
def test_a_node_that_is_not_there_is_refused(index):
    assert code_of(run_operator, OPERATORS, index, [A, B]) == "no_such_node"
    assert code_of(OPERATORS.wiring, index) == "no_such_node"
    loaded = load(PROGRAM.program_id, PROGRAM.blobs)
    assert (
        code_of(tensors_of, Traceable(loaded), {"x": X, "w": W}, ReferenceKernels(), index)
        == "no_such_node"
    )


def test_the_wiring_says_where_each_input_comes_from():
    first, second, last = (OPERATORS.wiring(index) for index in range(3))
    assert [(w.kind, w.name) for w in first.inputs] == [("input", "x"), ("input", "w")]
    assert (second.operator, second.version, second.outputs) == ("Add", 20, (True,))
    made, constant = second.inputs
    assert (made.kind, made.index, made.position) == ("node", 0, 0)
    assert (constant.kind, constant.blob_id) == (
        "constant",
        tensor_id(np.asarray([1, 2], np.float32)),
    )
    assert last.inputs[0].index == 1


def test_a_manifest_and_a_graph_that_do_not_fit_are_refused():
    other = program_of(MODEL.replace("float[3, 4] x", "float[3, 4] z").replace("(x", "(z"))
    graph = other.blobs[other.manifest.graph]
    manifest = PROGRAM.blobs[PROGRAM.program_id]
    assert code_of(Operators, manifest, graph) == "manifest_mismatch"
    assert code_of(Operators, manifest, b"") == "empty_model"
    assert code_of(Operators, manifest, b"\xff" * 40) == "malformed_model"
    assert code_of(Operators, b"", graph) == "bad_manifest"
    plain = convert(parser.parse_model(MODEL).SerializeToString())
    assert code_of(Operators, encode(plain.manifest), graph) == "no_precision"


def test_what_errs_does_so_in_its_turn_and_a_trace_ends_where_the_run_does():
    program = program_of(
        '<ir_version: 9, opset_import: ["" : 20]> g (float[2] x) => (float y) '
        "<float[1] m = {-1}> { a = Sqrt(x) c = Log(m) y = Add(a, c) }"
    )
    traceable = Traceable(load(program.program_id, program.blobs))
    for value, count, operator in ((1, 2, "Log"), (-1, 1, "Sqrt")):
        x = {"x": np.full(2, value, np.float32)}
        leaves = trace(traceable, x, ReferenceKernels())
        assert (len(leaves), leaves[-1].operator, leaves[-1].error) == (count, operator, "nan")
