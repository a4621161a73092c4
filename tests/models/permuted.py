"""A model whose products sum in another order: the same mathematics, other bits in floats.

Along K, a constant right-hand factor is permuted once, and what it meets is gathered
in the same order; two activations are both read backwards, whatever their size.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper


def with_k_permuted(data, seed=7):
    """The ONNX bytes of a model with K permuted in every MatMul, Gemm and Conv."""
    model = onnx.ModelProto.FromString(data)
    random = np.random.default_rng(seed)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type in {"MatMul", "Gemm", "Conv"}:
            before = _permute if node.input[1] in constants else _reverse
            nodes += before(model.graph, node, constants, random)
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    for tensor in [t for t in model.graph.initializer if t.name not in read]:
        model.graph.initializer.remove(tensor)
    return model.SerializeToString()


def _permute(graph, node, constants, random):
    """Permute a constant right-hand factor along K; gather the other one alike."""
    weight = numpy_helper.to_array(constants[node.input[1]])
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    groups = 1
    if node.op_type == "Conv":  # along the channels, in each group alike
        weight_axis, axis, groups = 1, 1, attributes.get("group", 1)
    elif node.op_type == "Gemm":
        weight_axis = 1 if attributes.get("transB") else 0
        axis = 0 if attributes.get("transA") else 1
    else:
        weight_axis, axis = max(weight.ndim - 2, 0), -1
    order = random.permutation(weight.shape[weight_axis])
    starts = np.arange(groups)[:, None] * len(order)
    name = f"{node.output[0]}_permuted"
    for suffix, value in (
        ("_weight", np.ascontiguousarray(np.take(weight, order, weight_axis))),
        ("_order", (starts + order).reshape(-1).astype(np.int64)),
    ):
        graph.initializer.append(numpy_helper.from_array(value, name + suffix))
    gather = helper.make_node("Gather", [node.input[0], f"{name}_order"], [name], axis=axis)
    node.input[:] = [name, f"{name}_weight", *node.input[2:]]
    return [gather]


def _reverse(graph, node, _constants, _random):
    """Read both factors of a MatMul backwards along K."""
    assert node.op_type == "MatMul"
    slices = []
    for index, axis in enumerate((-1, -2)):
        name = f"{node.output[0]}_reversed_{index}"
        bounds = {"starts": -1, "ends": -(2**62), "axes": axis, "steps": -1}
        for key, value in bounds.items():
            graph.initializer.append(
                numpy_helper.from_array(np.array([value], np.int64), f"{name}_{key}")
            )
        operands = [node.input[index], *(f"{name}_{key}" for key in bounds)]
        slices.append(helper.make_node("Slice", operands, [name]))
        node.input[index] = name
    return slices
