"""Converted models compute the same, and equal models get equal ids."""

from pathlib import Path

import magika
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper, parser

from shoal.compute.convert import convert, convert_file
from shoal.compute.errors import ProgramError
from shoal.compute.executors.base import Evidence, NumericClass
from shoal.compute.executors.onnxruntime import OnnxRuntime
from shoal.compute.loading import load
from shoal.compute.manifest import decode
from shoal.compute.tensor import from_blob, to_blob
from shoal.crypto.content import blob_id_of

MAGIKA = next(Path(magika.__file__).parent.glob("models/*/model.onnx"))
WEIGHT = np.random.default_rng(7).normal(size=(300, 300)).astype(np.float32)


def linear(body="y = MatMul(x, w)", opset=18, weight=WEIGHT):
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> '
        f"g (float[n, 300] x) => (float[n, 300] y) {{ {body} }}"
    )
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return model


def run(program, inputs):
    executor = OnnxRuntime(threads=1)
    return executor.run(executor.prepare(load(program.program_id, program.blobs)), inputs)


def test_magika_converts_to_a_program_that_gives_its_own_results():
    data = MAGIKA.read_bytes()
    program = convert(data)
    (port,) = program.manifest.inputs
    assert (port.name, port.dtype, port.shape[1]) == ("bytes", "int32", 2048)
    assert [(p.name, p.dtype, p.shape[1]) for p in program.manifest.outputs] == [
        ("target_label", "float32", 214)
    ]
    x = np.random.default_rng(0).integers(0, 256, (3, 2048), dtype=np.int32)
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"bytes": x})
    np.testing.assert_array_equal(run(program, {"bytes": x})["target_label"], expected)


def test_a_graph_below_opset_18_is_converted_and_none_of_its_weights_stay_in_it():
    program = convert(
        linear(
            "t = ReduceMax<axes=[1], keepdims=1>(x) y = Add(t, w)", opset=13, weight=WEIGHT[:1]
        ).SerializeToString()
    )
    graph = onnx.ModelProto.FromString(program.blobs[program.manifest.graph])
    assert [(o.domain, o.version) for o in graph.opset_import] == [("", 18)]
    assert [value.name for value in graph.graph.input] == ["x", "w"]
    assert "w" not in {tensor.name for tensor in graph.graph.initializer}
    x = np.random.default_rng(1).normal(size=(4, 300)).astype(np.float32)
    np.testing.assert_array_equal(
        run(program, {"x": x})["y"], x.max(1, keepdims=True) + WEIGHT[:1]
    )


def test_a_program_consists_of_its_manifest_its_graph_and_one_blob_per_weight():
    program = convert(linear().SerializeToString())
    assert all(blob_id_of(blob) == blob_id for blob_id, blob in program.blobs.items())
    assert decode(program.blobs[program.program_id]) == program.manifest
    assert set(program.blobs) == {program.program_id, *program.manifest.blob_ids}
    (weight,) = program.manifest.tensors
    np.testing.assert_array_equal(from_blob(program.blobs[weight.blob_id]), WEIGHT)


@pytest.mark.parametrize("opset", [13, 17, 18, 23])
def test_an_output_keeps_the_dimensions_it_declares_though_inference_knows_more(opset):
    model = linear(opset=opset)
    model.graph.output[0].CopyFrom(
        onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, ["A", "B"])
    )
    program = convert(model.SerializeToString())
    assert [port.shape for port in program.manifest.outputs] == [("A", "B")]
    x = np.ones((2, 300), np.float32)
    np.testing.assert_allclose(run(program, {"x": x})["y"], x @ WEIGHT, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("opset", [13, 18])
def test_a_weight_that_no_node_takes_does_not_travel(opset):
    model = linear(opset=opset)
    expected = convert(model.SerializeToString())
    model.graph.initializer.append(numpy_helper.from_array(WEIGHT + 1, "unused"))
    model.graph.initializer.append(numpy_helper.from_array(WEIGHT[0, :2], "small"))
    program = convert(model.SerializeToString())
    assert program == expected
    run(program, {"x": np.ones((1, 300), np.float32)})


def test_a_weight_that_only_a_subgraph_takes_stays():
    branch = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["t"])],
        "branch",
        [],
        [onnx.helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
    )
    model = linear("y = Identity(x)")
    model.graph.input.append(onnx.helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    model.graph.node[0].CopyFrom(
        onnx.helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    )
    program = convert(model.SerializeToString())
    assert [weight.name for weight in program.manifest.tensors] == ["w"]
    x = np.ones((2, 300), np.float32)
    result = run(program, {"x": x, "c": np.array(True)})["y"]
    np.testing.assert_allclose(result, x @ WEIGHT, rtol=1e-4, atol=1e-4)


def test_what_a_worker_would_refuse_is_refused_before_it_has_an_id():
    model = linear()
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1 << 41
    with pytest.raises(ProgramError) as refused:
        convert(model.SerializeToString())
    assert refused.value.code == "bad_manifest"


def test_equal_weights_are_one_blob():
    model = linear("t = MatMul(x, w) y = MatMul(t, v)")
    model.graph.initializer.append(numpy_helper.from_array(WEIGHT, "v"))
    program = convert(model.SerializeToString())
    assert len(program.manifest.tensors) == 2
    assert len(program.blobs) == 3


def test_what_does_not_change_the_computation_does_not_change_the_id():
    plain = linear()
    expected = convert(plain.SerializeToString()).program_id
    adorned = linear()
    adorned.producer_name, adorned.producer_version, adorned.doc_string = "tool", "9", "hello"
    adorned.model_version, adorned.ir_version = 3, 9
    adorned.metadata_props.add(key="author", value="me")
    adorned.graph.name, adorned.graph.doc_string = "main_graph", "made by a tool"
    adorned.graph.node[0].doc_string = "at /home/me/model.py:3"
    adorned.graph.input[0].doc_string = "the input"
    adorned.graph.value_info.add(name="y2")
    adorned.opset_import[0].domain = "ai.onnx"
    adorned.opset_import.add(domain="com.example.unused", version=1)
    assert convert(adorned.SerializeToString()).program_id == expected
    as_input = linear()
    as_input.graph.input.append(
        onnx.helper.make_tensor_value_info("w", TensorProto.FLOAT, [300, 300])
    )
    assert convert(as_input.SerializeToString()).program_id == expected


def test_a_weight_written_as_a_constant_is_the_same_program_as_an_initializer():
    initializer = linear()
    constant = linear()
    tensor = constant.graph.initializer.pop()
    constant.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=tensor))
    assert (
        convert(constant.SerializeToString()).program_id
        == convert(initializer.SerializeToString()).program_id
    )


def test_another_weight_is_another_program_with_the_same_graph():
    first = convert(linear().SerializeToString())
    second = convert(linear(weight=WEIGHT + 1).SerializeToString())
    assert first.program_id != second.program_id
    assert first.manifest.graph == second.manifest.graph


@pytest.mark.parametrize(
    "body", ["y = MatMul(x, nobody)", "y = Relu(x, w)", "y = Gemm<oops=1>(x, w)"]
)
def test_a_graph_that_is_not_valid_onnx_is_refused(body):
    with pytest.raises(ProgramError) as refused:
        convert(linear(body).SerializeToString())
    assert refused.value.code == "invalid_model"


def external(directory, location, **entries):
    model = linear()
    tensor = model.graph.initializer[0]
    (directory / "w.bin").write_bytes(b"skip" + tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "4", **entries}.items():
        tensor.external_data.add(key=key, value=value)
    path = directory / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_data_beside_the_user_s_own_model_is_read(tmp_path):
    program = convert_file(external(tmp_path, "w.bin"))
    assert program == convert(linear().SerializeToString())


@pytest.mark.parametrize(
    ("location", "entries"),
    [
        ("../../etc/passwd", {}),
        ("/etc/passwd", {}),
        ("link", {}),
        ("", {}),
        ("missing.bin", {}),
        ("w.bin", {"offset": "8"}),
        ("w.bin", {"offset": "-1"}),
        ("w.bin", {"offset": "x"}),
        ("w.bin", {"length": "5"}),
    ],
)
def test_data_elsewhere_or_too_short_is_refused(tmp_path, location, entries):
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(ProgramError) as refused:
        convert_file(external(tmp_path, location, **entries))
    assert refused.value.code == "external_data"


def test_a_program_whose_blobs_do_not_fit_its_manifest_is_refused():
    program = convert(linear().SerializeToString())
    (weight,) = program.manifest.tensors

    def code_with(changes):
        with pytest.raises(ProgramError) as refused:
            load(program.program_id, {**program.blobs, **changes})
        return refused.value.code

    other = to_blob(WEIGHT.astype(np.float64))
    assert code_with({weight.blob_id: other}) == "manifest_mismatch"
    assert code_with({weight.blob_id: b"junk"}) == "bad_tensor"
    assert code_with({program.manifest.graph: b""}) == "empty_model"
    assert code_with({program.program_id: b""}) == "bad_manifest"
    relu = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[n, 300] x) => (float[n, 300] y)'
        "{ y = evil.Relu(x) }"
    )
    assert code_with({program.manifest.graph: relu.SerializeToString()}) == "custom_domain"
    relu.graph.node[0].domain = ""
    assert code_with({program.manifest.graph: relu.SerializeToString()}) == "manifest_mismatch"
    with pytest.raises(ProgramError) as refused:
        load(program.program_id, {program.program_id: program.blobs[program.program_id]})
    assert refused.value.code == "missing_blob"


def test_the_canary_of_onnx_runtime_is_executed_on_the_cpu():
    probe = OnnxRuntime(threads=1).probe()
    assert probe.evidence is Evidence.EXECUTED
    assert probe.numeric_class is NumericClass.FP32
    assert probe.runtime == f"onnxruntime {ort.__version__} CPUExecutionProvider"


def test_an_operator_that_fails_is_named():
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>'
        "g (float[n] x, int64[k] i) => (float[k] y) { y = Gather(x, i) }"
    )
    program = convert(model.SerializeToString())
    with pytest.raises(ProgramError) as failed:
        run(program, {"x": np.zeros(3, np.float32), "i": np.array([9])})
    assert (failed.value.code, failed.value.node) == ("operator_failed", "y")
    assert failed.value.operator == "Gather"
    assert "idx=9" in failed.value.message


@pytest.mark.parametrize("opset", [15, 18])
def test_what_onnx_s_own_inference_misses_is_refused(opset):
    with pytest.raises(ProgramError) as refused:
        convert(linear("y = QLinearConv(x)", opset).SerializeToString())
    assert refused.value.code == "invalid_model"


def test_text_that_is_not_utf_8_is_refused_by_name():
    model = linear("h = MatMul(x, w) y = Softplus(h)").SerializeToString()
    with pytest.raises(ProgramError) as refused:
        convert(model.replace(b"Softplus", b"Softpl\xffs"))
    assert refused.value.code == "operator_not_allowed"
    assert refused.value.message.isprintable()
    with pytest.raises(ProgramError) as refused:
        convert(
            model.replace(b"\x0a\x01h", b"\x0a\x01\xff").replace(b"\x12\x01h", b"\x12\x01\xff")
        )
    assert refused.value.code == "invalid_model"
