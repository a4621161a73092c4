"""Where stages end: the same for everybody, bounded, and with what is alive at each end."""

from itertools import pairwise

import numpy as np
import pytest
from onnx import parser

from shoal.compute.errors import ProgramError
from shoal.compute.exact.leaves import (
    STAGE_ALIVE_LIMIT,
    STAGES_LIMIT,
    OperatorLeaf,
    StageLeaf,
    decode_operator_leaf,
    decode_stage_leaf,
    leaf_bytes,
)
from shoal.compute.exact.plan import make_plan
from shoal.compute.exact.reading import read
from shoal.compute.exact.reference import ReferenceKernels
from shoal.compute.exact.spec import X20
from shoal.compute.exact.stages import NODES_LEAST, StageRecorder, stages_of
from shoal.compute.exact.tracing import tensor_id

ID = "ab" * 32


def model_of(body, ins="float[2] x", outs="float y"):
    header = '<ir_version: 9, opset_import: ["" : 20]>'
    return parser.parse_model(f"{header} g ({ins}) => ({outs}) {{ {body} }}")


def graph_of(body, **ports):
    return read(model_of(body, **ports), X20, ())


def chain(count):
    """So many nodes, one value alive between any two."""
    values = ["x", *(f"v{n}" for n in range(count - 1)), "y"]
    return " ".join(f"{b} = Neg({a})" for a, b in pairwise(values))


def test_a_chain_is_cut_as_soon_as_a_stage_is_long_enough():
    stages = stages_of(graph_of(chain(100)))
    assert stages.ends == (NODES_LEAST, 2 * NODES_LEAST, 100)
    assert stages.alive == (("v31",), ("v63",), ("y",))
    assert [stages.span(n) for n in range(3)] == [range(32), range(32, 64), range(64, 100)]


def test_a_short_graph_is_one_stage_that_ends_with_its_outputs():
    stages = stages_of(graph_of(chain(2 * NODES_LEAST)))
    assert (stages.ends, stages.alive) == ((64,), (("y",),))


def test_a_graph_without_nodes_has_no_stages():
    assert stages_of(graph_of("", outs="float[2] x")).ends == ()


def test_a_stage_ends_where_the_fewest_are_alive():
    body = chain(33).replace("y = ", "a = ")
    body += " b = Neg(a) c = Neg(a) d = Add(b, c) " + chain(100).replace("(x)", "(d)").replace(
        "v", "w"
    )
    body = body.replace("Neg(v31)", "Add(v31, v5)")  # v5 lives until then
    stages = stages_of(graph_of(body))
    assert stages.ends[0] == 33
    assert stages.alive[0] == ("a",)


def test_values_that_many_stages_share_are_in_the_state_of_each():
    body = chain(150).replace("y = Neg(v148)", "y = Add(v148, v0)")
    stages = stages_of(graph_of(body))
    assert [names[0] for names in stages.alive[:-1]] == ["v0"] * (len(stages.ends) - 1)
    assert stages.alive[-1] == ("y",)


def test_where_too_many_are_alive_no_stage_ends():
    wide = STAGE_ALIVE_LIMIT + 40
    begin = " ".join(f"a{n} = Neg(x)" for n in range(wide))
    body = f"{begin} y = Sum({', '.join(f'a{n}' for n in range(wide))}) z = Neg(y)"
    stages = stages_of(graph_of(body, outs="float z"))
    assert len(stages.ends) > 1
    assert all(len(names) <= STAGE_ALIVE_LIMIT for names in stages.alive)
    kept = f"{begin} {chain(100)} z = Sum({', '.join(f'a{n}' for n in range(wide))})"
    whole = stages_of(graph_of(kept, outs="float y, float z"))
    assert whole.ends[-1] == wide + 101
    assert all(len(names) <= STAGE_ALIVE_LIMIT for names in whole.alive)


def test_the_longest_graph_has_no_more_stages_than_the_limit():
    assert len(stages_of(graph_of(chain(40_000))).ends) <= STAGES_LIMIT


@pytest.mark.parametrize("fold", [False, True])
def test_a_recorder_notes_each_state_as_the_reference_has_it(fold):
    body = chain(100)
    if fold:  # k1 depends on constants alone, and lives to the end
        made = "k0 = Constant<value_floats = [1.0, 2.0]>() k1 = Neg(k0) "
        body = made + body.replace("y = Neg(v98)", "y = Add(v98, k1)")
    model = model_of(body)
    graph = read(model, X20, ())
    stages = stages_of(graph)
    plan = make_plan(model, {}, X20, (), ReferenceKernels())
    folded = {n: tensor_id(a) for n, a in plan.constants.items()}
    recorder = StageRecorder(stages, folded)
    x = np.asarray([1, 2], np.float32)
    outputs = plan.run({"x": x}, reached=recorder.reached)
    assert [leaf.index for leaf in recorder.leaves] == list(range(len(stages.ends)))
    assert recorder.leaves[-1].state == (tensor_id(outputs["y"]),)
    assert [len(leaf.state) for leaf in recorder.leaves] == [len(a) for a in stages.alive]
    assert (len(recorder.leaves[0].state) == 2) == fold


OPERATOR = OperatorLeaf(3, "Add", 20, (ID, None), (ID,))


@pytest.mark.parametrize(
    ("data", "decode"),
    [
        (b"", decode_operator_leaf),
        (b"\x81\xa5index\x00", decode_operator_leaf),
        (leaf_bytes(OPERATOR) + b"\x00", decode_operator_leaf),
        (leaf_bytes(OPERATOR), decode_stage_leaf),
        (leaf_bytes(StageLeaf(0, (ID,))), decode_operator_leaf),
        (leaf_bytes(OperatorLeaf(0, "Add", 20, (), (ID,), "nan")), decode_operator_leaf),
        (leaf_bytes(OperatorLeaf(0, "Add", 20, (), (), "time_limit")), decode_operator_leaf),
        (leaf_bytes(OperatorLeaf(0, "Add", 20, ("AB" * 32,), (ID,))), decode_operator_leaf),
        (leaf_bytes(OperatorLeaf(-1, "Add", 20, (ID,), (ID,))), decode_operator_leaf),
        (leaf_bytes(OperatorLeaf(0, "Add", 20, (ID,) * 901, ())), decode_operator_leaf),
        (leaf_bytes(StageLeaf(0, (ID,) * 257)), decode_stage_leaf),
        (b"\x82\xa5state\x90\xa5index\x00", decode_stage_leaf),  # its fields change places
        (b"\x91" * 5000, decode_stage_leaf),
    ],
)
def test_bytes_that_are_no_leaf_are_refused_by_name(data, decode):
    with pytest.raises(ProgramError) as refused:
        decode(data)
    assert refused.value.code == "bad_leaf"


def test_leaves_have_the_bytes_that_the_specification_gives():
    leaf = OperatorLeaf(3, "Add", 20, ("0" * 64, None), ("1" * 64,))
    text = (
        "86 a5 696e646578 03 a8 6f70657261746f72 a3 416464 a7 76657273696f6e 14"
        " a6 696e70757473 92 d940 {zeros} c0 a7 6f757470757473 91 d940 {ones} a5 6572726f72 c0"
    )
    wanted = bytes.fromhex(text.format(zeros="30" * 64, ones="31" * 64))
    assert leaf_bytes(leaf) == wanted
    assert decode_operator_leaf(wanted) == leaf
    stage = StageLeaf(1, ("0" * 64,))
    assert leaf_bytes(stage) == bytes.fromhex(
        "82 a5 696e646578 01 a5 7374617465 91 d940" + "30" * 64
    )
