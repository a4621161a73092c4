"""Every validity rule, each broken by one small model."""

import onnx
import pytest
from onnx import TensorProto, helper, parser

from shoal.compute.errors import ProgramError
from shoal.compute.graph import parse
from shoal.compute.program import NODE_COUNT_LIMIT, check


def model(body, *, opset=18, more_opsets=""):
    return parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}{more_opsets}]>\n'
        f"g (float[n, 3] x) => (float[n, 3] y) {{ {body} }}"
    )


def refusal(candidate):
    with pytest.raises(ProgramError) as refused:
        check(candidate)
    return refused.value


def test_a_plain_model_is_a_program():
    check(model("y = Relu(x)"))


@pytest.mark.parametrize("opset", [13, 15, 18, 23])
def test_opsets_13_to_23_are_accepted(opset):
    check(model("y = Relu(x)", opset=opset))


@pytest.mark.parametrize("opset", [1, 12, 24, 1 << 40])
def test_any_other_opset_is_refused(opset):
    error = refusal(model("y = Relu(x)", opset=opset))
    assert error.code == "unsupported_opset"
    assert str(opset) in error.message
    assert "make_opsetid('', 18)" in error.hint


def test_a_model_that_declares_no_standard_opset_is_refused():
    candidate = model("y = Relu(x)")
    del candidate.opset_import[:]
    assert refusal(candidate).code == "unsupported_opset"


def test_an_operator_of_a_custom_domain_is_refused_with_its_node():
    candidate = model("t = Relu(x) y = evil.example.Run(t)", more_opsets=', "evil.example" : 1')
    candidate.graph.node[1].name = "second"
    error = refusal(candidate)
    assert error.code == "custom_domain"
    assert (error.node, error.operator) == ("second", "Run")
    assert "'second' (Run)" in error.message
    assert "evil.example" in error.message


def test_declaring_the_ml_domain_without_using_it_is_harmless():
    check(model("y = Relu(x)", more_opsets=', "ai.onnx.ml" : 2'))


def test_ml_operators_are_accepted_from_a_list():
    check(model("y = ai.onnx.ml.Scaler(x)", more_opsets=', "ai.onnx.ml" : 2'))
    error = refusal(model("y = ai.onnx.ml.ZipMap(x)", more_opsets=', "ai.onnx.ml" : 2'))
    assert (error.code, error.operator) == ("operator_not_allowed", "ZipMap")


@pytest.mark.parametrize(
    "operator", ["ImageDecoder", "StringNormalizer", "SequenceEmpty", "Nope"]
)
def test_an_operator_outside_the_list_is_refused(operator):
    error = refusal(model(f"y = {operator}(x)"))
    assert (error.code, error.operator) == ("operator_not_allowed", operator)


@pytest.mark.parametrize(
    ("operator", "near"),
    [("RELU", "Relu"), ("MatMull", "MatMul"), ("Softmx", "Softmax"), ("GeLU", "Gelu")],
)
def test_an_operator_that_is_misspelt_is_answered_with_the_ones_that_are_near(operator, near):
    hint = refusal(model(f"y = {operator}(x)")).hint
    assert hint.startswith(f"is {near}")
    assert "docs/PROGRAMS.md" in hint


@pytest.mark.parametrize("operator", ["Nope", "ImageDecoder", "Odd{name}"])
def test_an_operator_like_no_other_is_answered_with_the_page_that_lists_them(operator):
    candidate = model("y = Relu(x)")
    candidate.graph.node[0].op_type = operator
    error = refusal(candidate)
    assert operator in error.message
    assert error.hint.startswith("docs/PROGRAMS.md lists them")


@pytest.mark.parametrize("body", ["y = RandomNormalLike(x)", "y = Dropout(x, r, t)"])
def test_an_operator_that_draws_random_numbers_is_refused(body):
    assert refusal(model(body)).code == "random_operator"


def test_dropout_outside_of_training_is_accepted():
    check(model("y = Dropout(x)"))


@pytest.mark.parametrize("location", ["../../etc/passwd", "/etc/passwd", "weights.bin"])
def test_external_data_is_refused_by_its_file_name(location):
    candidate = model("y = Add(x, w)")
    tensor = candidate.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[3])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    error = refusal(candidate)
    assert error.code == "external_data"
    assert location in error.message


def test_external_data_hidden_in_a_subgraph_s_constant_is_refused():
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3])
    tensor.external_data.add(key="location", value="../../etc/passwd")
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["z"], value=tensor, name="hidden")],
        "inner",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [3])],
    )
    candidate = model("y = Relu(x)")
    candidate.graph.node.append(
        helper.make_node("If", ["c"], ["u"], then_branch=inner, else_branch=inner)
    )
    error = refusal(candidate)
    assert (error.code, error.node) == ("external_data", "hidden")


def test_subgraphs_nested_too_deep_are_refused():
    graph = model("y = Relu(x)").graph
    for level in range(5):
        node = helper.make_node(
            "If", ["c"], [f"o{level}"], name=f"if{level}", then_branch=graph
        )
        graph = helper.make_graph([node], "g", [], [onnx.ValueInfoProto(name="o")])
    candidate = model("y = Relu(x)")
    candidate.graph.node.extend(graph.node)
    assert refusal(candidate).code == "subgraph_too_deep"


def test_a_model_with_too_many_nodes_is_refused():
    candidate = model("y = Relu(x)")
    candidate.graph.node.extend([onnx.NodeProto(op_type="Relu")] * NODE_COUNT_LIMIT)
    assert refusal(candidate).code == "too_many_nodes"


def test_local_functions_training_info_and_sparse_tensors_are_refused():
    with_function = model("y = Relu(x)")
    with_function.functions.add(name="mine", domain="local")
    assert refusal(with_function).code == "local_functions"

    with_training = model("y = Relu(x)")
    with_training.training_info.add()
    assert refusal(with_training).code == "training_info"

    with_sparse = model("y = Relu(x)")
    with_sparse.graph.sparse_initializer.add()
    assert refusal(with_sparse).code == "sparse_tensor"

    in_constant = model("y = Relu(x)")
    in_constant.graph.node.append(
        helper.make_node("Constant", [], ["s"], sparse_value=onnx.SparseTensorProto())
    )
    assert refusal(in_constant).code == "sparse_tensor"


@pytest.mark.parametrize(
    ("tensor", "code"),
    [
        (TensorProto(name="w", data_type=TensorProto.STRING, dims=[1]), "unsupported_dtype"),
        (TensorProto(name="w", data_type=99), "unsupported_dtype"),
        (TensorProto(name="w", data_type=1, dims=[1 << 40, 1 << 40]), "tensor_too_large"),
        (TensorProto(name="w", data_type=1, dims=[-1]), "tensor_too_large"),
        (TensorProto(name="w", data_type=1, dims=[1] * 17), "tensor_too_large"),
        (TensorProto(name="w", data_type=1, dims=[1 << 30]), "tensor_size_mismatch"),
        (
            TensorProto(name="w", data_type=1, dims=[2], raw_data=b"1234"),
            "tensor_size_mismatch",
        ),
        (TensorProto(name="w", data_type=1, dims=[2], float_data=[1]), "tensor_size_mismatch"),
        (TensorProto(name="", data_type=1, dims=[0]), "bad_name"),
        (TensorProto(name="w" * 513, data_type=1, dims=[0]), "bad_name"),
    ],
)
def test_an_initializer_that_is_no_tensor_of_ours_is_refused(tensor, code):
    candidate = model("y = Relu(x)")
    candidate.graph.initializer.append(tensor)
    assert refusal(candidate).code == code


@pytest.mark.parametrize("body", ["y = Relu(x) y = Abs(x)", "x = Relu(x) y = Abs(x)"])
def test_a_name_that_stands_for_two_values_is_refused(body):
    assert refusal(model(body)).code == "duplicate_name"


def test_two_initializers_or_inputs_of_one_name_are_refused():
    twice = model("y = Relu(x)")
    twice.graph.initializer.extend([TensorProto(name="w", data_type=1, dims=[0])] * 2)
    assert refusal(twice).code == "duplicate_name"
    inputs = model("y = Relu(x)")
    inputs.graph.input.append(inputs.graph.input[0])
    assert refusal(inputs).code == "duplicate_name"


def test_inputs_and_outputs_that_are_not_tensors_of_ours_are_refused():
    untyped = model("y = Relu(x)")
    untyped.graph.output[0].ClearField("type")
    assert refusal(untyped).code == "not_a_tensor"
    text = model("y = Relu(x)")
    text.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    assert refusal(text).code == "unsupported_dtype"


def test_zero_bytes_are_refused_by_name():
    with pytest.raises(ProgramError) as refused:
        parse(b"")
    assert refused.value.code == "empty_model"


@pytest.mark.parametrize("data", [b"\xff" * 100, b"hello", b"\x08", b"\x0a\xff"])
def test_bytes_that_are_no_protobuf_are_refused_by_name(data):
    with pytest.raises(ProgramError) as refused:
        parse(data)
    assert refused.value.code == "malformed_model"
    assert refused.value.message.startswith("this is not an ONNX model")
    assert "onnx.save" in refused.value.hint


def test_protobuf_that_is_no_model_is_refused():
    assert refusal(parse(b"\x08\x08")).code == "empty_model"


def test_a_name_made_to_confuse_a_terminal_is_cleaned_in_the_sentence():
    candidate = model("y = Relu(x)")
    candidate.graph.node[0].op_type = "\x1b[2J" + "A" * 10_000
    error = refusal(candidate)
    assert "\x1b" not in str(error)
    assert len(str(error)) < 500
