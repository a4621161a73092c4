"""Elementwise operations that a card runs in chains: bits and refusals of each by itself."""

import numpy as np
import pytest
from onnx import helper

from shoal.compute.exact.gpu import card as card_module
from shoal.compute.exact.gpu import elementwise
from shoal.compute.exact.gpu.card import Card
from shoal.compute.exact.gpu.kernels import CardKernels
from shoal.compute.exact.kernels import ExactError
from shoal.compute.exact.plan import make_plan, placed, settled
from shoal.compute.exact.reference import ReferenceKernels
from shoal.compute.exact.spec import PRECISIONS
from shoal.compute.manifest import Port
from shoal.compute.warming import made_up_inputs

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in :RuntimeWarning")

REFERENCE = ReferenceKernels()
ONES = ("abs", "erf", "exp", "gelu", "log", "neg", "reciprocal", "relu", "sin", "sqrt", "tanh")
TWOS = ("add", "div", "fmod", "max", "min", "mul", "pow", "sub")
SHAPES = ((2, 3, 5), (3, 5), (5,), (2, 1, 1), (1, 3, 1), (2, 1, 5), (2, 3, 1), ())
SPECIAL = np.array(
    [0.0, -0.0, 1, -1, 2, 0.5, -np.inf, 2.0**-126, -(2.0**-126), 1.1e-38, 3e38, -3e38, 2e6],
    np.float32,
)


@pytest.fixture
def kernels(monkeypatch):
    monkeypatch.setattr(elementwise, "_CHAINS", dict(elementwise._CHAINS))
    return CardKernels(Card("cpu"))


@pytest.fixture
def launched(monkeypatch):
    """The steps of each chain that is launched."""
    found = []
    launch = Card.launch

    def counted(self, variant, grid, *arguments):
        found.append(variant.constants.get("STEPS", variant.name))
        launch(self, variant, grid, *arguments)

    monkeypatch.setattr(Card, "launch", counted)
    return found


def drawn_program(seed):
    """Inputs, and operations on them and on each other's results, as (name, places)."""
    rng = np.random.default_rng(seed)
    given = []
    for _ in range(int(rng.integers(1, 12))):
        shape = SHAPES[rng.integers(len(SHAPES))]
        x = (rng.normal(size=shape) * 2).astype(np.float32)
        if rng.random() < 0.15:
            x = rng.choice(SPECIAL, shape).astype(np.float32)
        elif rng.random() < 0.7:
            x = np.abs(x) + np.float32(0.1)
        given.append(np.asarray(x))
    steps = []
    for made in range(int(rng.integers(1, 30))):
        here = len(given) + made
        near = max(0, here - 6) if rng.random() < 0.7 else 0
        if rng.random() < 0.4:
            steps.append((str(rng.choice(ONES)), (int(rng.integers(near, here)),)))
        else:
            name = str(rng.choice(TWOS)) if rng.random() < 0.4 else "add"
            steps.append((name, tuple(int(p) for p in rng.integers((near, 0), here))))
    return given, steps


def run(kernels, program, *, looks=lambda _: False):
    """The bits of every value, or the error with its place."""
    given, steps = program
    values = []
    try:
        with settled(kernels):
            for place, x in enumerate(given):
                with placed(f"input {place}", "input", kernels):
                    values.append(kernels.admit(x))
            for place, (name, operands) in enumerate(steps):
                with placed(f"node {place}", name, kernels):
                    call = kernels.unary if len(operands) == 1 else kernels.binary
                    values.append(call(name, *(values[at] for at in operands)))
                    if looks(place):
                        np.asarray(values[-1])
    except ExactError as error:
        return error.code, error.message, error.node, error.operator
    return [(value.shape, np.asarray(value, order="C").tobytes()) for value in values]


@pytest.mark.parametrize("seed", range(24))
def test_chains_give_what_single_operations_give(seed, kernels):
    program = drawn_program(seed)
    expected = run(REFERENCE, program)
    assert run(kernels, program) == expected
    assert run(kernels, program, looks=lambda _: True) == expected
    looked = np.random.default_rng(seed).random(len(program[1])) < 0.2
    assert run(kernels, program, looks=lambda place: looked[place]) == expected


def test_among_the_drawn_programs_some_err_and_some_do_not():
    outcomes = [run(REFERENCE, drawn_program(seed)) for seed in range(24)]
    assert 6 < sum(isinstance(outcome, list) for outcome in outcomes) < 18


def test_a_bias_and_its_activation_are_one_kernel(kernels, launched):
    rng = np.random.default_rng(1)
    x, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((7, 5), (5,)))
    for backend in (kernels, REFERENCE):
        y = backend.binary("add", x, bias)
        erf = backend.unary("erf", backend.binary("div", y, np.float32(2**0.5)))
        half = backend.binary("mul", np.float32(0.5), backend.binary("add", erf, np.float32(1)))
        found = backend.binary("mul", y, half)
        if backend is kernels:
            given = np.asarray(found)
    assert given.tobytes() == found.tobytes()
    assert launched == ["add 0 1; div 5 2; erf 6; add 7 3; mul 4 8; mul 5 9"]


@pytest.mark.parametrize("count", [7, 8, 9, 20])
def test_a_chain_of_more_inputs_than_a_kernel_takes_is_cut(count, kernels, launched):
    rng = np.random.default_rng(2)
    inputs = rng.normal(size=(count, 33)).astype(np.float32)
    total, expected = inputs[0], inputs[0]
    for x in inputs[1:]:
        total, expected = kernels.binary("add", total, x), REFERENCE.binary("add", expected, x)
    assert np.asarray(total).tobytes() == expected.tobytes()
    assert len(launched) == -(-(count - 1) // (elementwise._INPUTS - 1))


def test_a_chain_that_rests_on_what_was_computed_meanwhile_is_cut_too(kernels):
    """Where a step that it would have run is read instead, beside what that rests on."""
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(8, 9)).astype(np.float32)
    results = []
    for backend in (kernels, REFERENCE):
        first, *others = map(backend.admit, inputs)
        waits = backend.unary("exp", first)
        total = backend.binary("add", waits, first)
        for x in others:
            total = backend.binary("add", total, x)
        np.asarray(waits)
        results.append(np.asarray(total).tobytes())
    assert results[0] == results[1]


def test_a_long_chain_is_cut(kernels, launched):
    x = np.linspace(-1, 1, 10, dtype=np.float32)
    for _ in range(100):
        x = kernels.unary("neg", x)
    assert np.asarray(x).tobytes() == np.linspace(-1, 1, 10, dtype=np.float32).tobytes()
    assert len(launched) == -(-100 // elementwise._STEPS_LIMIT)


def test_a_function_is_not_computed_for_a_third_kernel(kernels, launched):
    """In its consumer's kernel, then for itself, and from there on it is read."""
    x = np.linspace(-1, 1, 10, dtype=np.float32)
    y = kernels.unary("exp", x)
    for value in (1, 2, 3):
        np.asarray(kernels.binary("add", y, np.float32(value)))
    assert launched == ["exp 0; add 2 1", "exp 0", "add 0 1", "add 0 1"]


def test_a_cheap_step_is_computed_again_rather_than_read(kernels, launched):
    x = np.linspace(-1, 1, 10, dtype=np.float32)
    y = kernels.unary("neg", x)
    for value in (1, 2):
        np.asarray(kernels.binary("add", y, np.float32(value)))
    assert launched == ["neg 0; add 2 1"] * 2


def test_strangers_programs_compile_no_more_chains_than_the_limit(
    kernels, launched, monkeypatch
):
    monkeypatch.setattr(elementwise, "_CHAINS_LIMIT", 0)
    x = np.linspace(0.5, 1, 10, dtype=np.float32)
    y = kernels.unary("log", kernels.unary("sqrt", kernels.unary("abs", x)))
    expected = REFERENCE.unary("log", REFERENCE.unary("sqrt", x))
    assert np.asarray(y).tobytes() == expected.tobytes()
    assert launched == ["abs 0", "sqrt 0", "log 0"]


def test_no_more_steps_wait_than_the_limit(kernels, launched, monkeypatch):
    monkeypatch.setattr(elementwise, "_WAITING_LIMIT", 3)
    x = np.linspace(-1, 1, 10, dtype=np.float32)
    waiting = [kernels.unary("neg", x) for _ in range(5)]
    assert [value.waits for value in waiting] == [False, False, True, True, True]
    assert launched == ["neg 0", "neg 0"]


def test_what_nobody_reads_is_judged(kernels):
    kernels.unary("log", np.zeros(3, np.float32))
    fine = kernels.unary("neg", np.zeros(3, np.float32))
    with pytest.raises(ExactError) as caught:
        kernels.settle()
    assert (caught.value.code, caught.value.message.split()[0]) == ("infinity", "log")
    assert np.asarray(fine).tolist() == [-0.0] * 3  # nothing is left of it


def test_the_first_error_of_the_program_is_named_whatever_ran_first(kernels):
    masked = np.full((3, 3), -np.inf, np.float32)
    with placed("one", "Neg", kernels):
        kernels.unary("neg", masked)
    with placed("two", "MatMul", kernels):  # runs at once
        kernels.product(masked, masked, PRECISIONS["x16"], "column")
    with pytest.raises(ExactError) as caught, placed("three", "Reshape", kernels):
        raise ValueError
    assert (caught.value.node, caught.value.operator) == ("one", "Neg")


def test_what_follows_an_error_computes_with_rubbish_and_ends(kernels):
    x = np.array([[3e38, -3e38, 0, 1]] * 4, np.float32)
    y = kernels.binary("sub", kernels.binary("add", x, x), kernels.binary("add", x, x))
    for name in ("exp", "sin", "log", "gelu", "round", "softplus"):
        z = kernels.unary(name, y)
    for name in TWOS:
        z = kernels.binary(name, z, y)
    z = kernels.product(z, y, PRECISIONS["x20"], "k")
    z = kernels.product(z, z, PRECISIONS["x16"], "column")
    z = kernels.layer_norm_rows(kernels.softmax_rows(z), None, None, 1e-5)
    z = kernels.cumsum_rows(z, exclusive=True, reverse=True)
    kernels.scatter_add(z.reshape(-1), np.arange(4), z[0])
    for name in ("sum", "log_sum_exp", "max"):
        kernels.reduce_rows(name, z)
    with pytest.raises(ExactError, match="add met"):
        np.asarray(z)


def test_a_scalar_keeps_its_shape(kernels):
    two = np.array(2, np.float32)
    for value in (
        kernels.admit(two),
        kernels.unary("neg", two),
        kernels.binary("add", kernels.admit(two), two),
        kernels.admit(two).reshape(()),
    ):
        assert value.shape == np.asarray(value).shape == ()


def test_an_array_that_runs_backwards_is_taken(kernels):
    backwards = np.arange(1, 4, dtype=np.float32)[::-1]
    for x in (backwards, backwards[:1]):
        assert np.asarray(kernels.unary("neg", x)).tolist() == (-x).tolist()


def model(*nodes, inputs, initializers=()):
    """A model of float32 inputs whose last node's output is its own."""
    kinds = [
        helper.make_tensor_value_info(name, 1, list(shape)) for name, shape in inputs.items()
    ]
    output = helper.make_tensor_value_info(nodes[-1].output[0], 1, None)
    graph = helper.make_graph(list(nodes), "g", kinds, [output], list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])


BLOCK = (
    helper.make_node("MatMul", ["x", "w"], ["a"], "product"),
    helper.make_node("Add", ["a", "b"], ["c"], "bias"),
    helper.make_node("Gelu", ["c"], ["d"], "gelu"),
    helper.make_node("Add", ["d", "x"], ["e"], "residual"),
    helper.make_node("Log", ["e"], ["unread"], "log"),
    helper.make_node("Softmax", ["e"], ["y"], "softmax"),
)


def block_inputs(shift):
    rng = np.random.default_rng(4)
    x, w = (rng.normal(size=(4, 4)).astype(np.float32) for _ in range(2))
    return {"x": x, "w": w, "b": np.full(4, shift, np.float32)}


def outcome(backend, shift):
    inputs = block_inputs(shift)
    plan = make_plan(
        model(*BLOCK, inputs={name: x.shape for name, x in inputs.items()}),
        {},
        PRECISIONS["x16"],
        (),
        backend,
    )
    try:
        return np.asarray(plan.run(inputs)["y"]).tobytes()
    except ExactError as error:
        return error.code, error.node, error.operator


@pytest.mark.parametrize("shift", [20, 0, -np.inf, 3.4e38])
def test_a_program_ends_as_by_the_reference(shift, kernels):
    assert outcome(kernels, shift) == outcome(REFERENCE, shift)
    assert outcome(kernels, 20) == outcome(REFERENCE, 20)  # nothing is left of an error


def test_the_statuses_of_a_program_are_read_once(kernels, launched, monkeypatch):
    reads = []
    raise_first = card_module._raise_first
    monkeypatch.setattr(
        card_module, "_raise_first", lambda *given: (reads.append(1), raise_first(*given))
    )
    inputs = block_inputs(20)
    shapes = {name: x.shape for name, x in inputs.items()}
    plan = make_plan(model(*BLOCK, inputs=shapes), {}, PRECISIONS["x16"], (), kernels)
    assert (plan.run(inputs)["y"].shape, len(reads)) == ((4, 4), 1)
    assert "add 0 1; gelu 3; add 4 2" in launched


def test_a_run_that_is_ended_leaves_nothing_to_the_next(kernels):
    inputs = block_inputs(-np.inf)
    shapes = {name: x.shape for name, x in inputs.items()}
    plan = make_plan(model(*BLOCK, inputs=shapes), {}, PRECISIONS["x16"], (), kernels)
    left = iter(range(4))
    with pytest.raises(StopIteration):
        plan.run(inputs, before_step=lambda: next(left))
    assert np.asarray(plan.run(block_inputs(20))["y"]).shape == (4, 4)


def test_made_up_inputs_make_every_kernel_that_a_unit_of_another_size_launches(kernels):
    nodes = [
        helper.make_node("Sub", ["x", "row"], ["a"]),
        helper.make_node("Mul", ["a", "column"], ["b"]),
        helper.make_node("Tanh", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "w"], ["d"]),
        helper.make_node("Add", ["d", "c"], ["e"]),
        helper.make_node("Abs", ["e"], ["y"]),
    ]
    ports = (
        Port("x", "float32", ("n", 4)),
        Port("row", "float32", (4,)),
        Port("column", "float32", ("n", 1)),
        Port("w", "float32", (4, 4)),
    )
    shapes = {"x": (7, 4), "row": (4,), "column": (7, 1), "w": (4, 4)}
    plan = make_plan(model(*nodes, inputs=shapes), {}, PRECISIONS["x20"], (), kernels)
    before = len(elementwise._CHAINS)
    plan.run(made_up_inputs(ports, 1 << 10))
    made = len(elementwise._CHAINS)
    assert made > before
    plan.run({name: np.full(shape, 0.5, np.float32) for name, shape in shapes.items()})
    assert len(elementwise._CHAINS) == made
