"""Programs that are made to do harm: each is stopped and named, and the next unit runs."""

from collections import Counter

import fuzzed_models
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from shoal.compute import exchanges
from shoal.compute.convert import convert
from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.frames import UnitLimits
from shoal.compute.sandbox import features, strangers_welcome
from shoal.compute.supervisor import open_worker
from shoal.compute.tensor import from_blob, to_blob

pytestmark = pytest.mark.skipif(
    not strangers_welcome(features()),
    reason="this kernel does not offer a whole sandbox: `shoal doctor` says what is missing",
)

LIMITS = UnitLimits(time_s=10.0, memory_bytes=1 << 28, output_bytes=1 << 20)
SHORT = UnitLimits(time_s=0.3, memory_bytes=1 << 28, output_bytes=1 << 20)
X = np.arange(3, dtype=np.float32)
HEADER = '<ir_version: 8, opset_import: ["" : 18]>'


def model_of(text):
    return parser.parse_model(HEADER + text)


DOUBLE = convert(
    model_of("g (float[n] x) => (float[n] y) { y = Add(x, x) }").SerializeToString()
)


@pytest.fixture
async def worker(monkeypatch):
    monkeypatch.setattr(exchanges, "GRACE_S", 0.5)
    async with open_worker(threads=2, cache_bytes=1 << 26, memory_bytes=1 << 28) as opened:
        await opened.probe()
        assert opened.sandboxed
        yield opened


async def run(worker, blobs, program_id, inputs, limits=LIMITS):
    async def fetch_blobs():
        return blobs

    arrays = {name: to_blob(array) for name, array in inputs.items()}
    execution = await worker.run("ann", program_id, fetch_blobs, arrays, limits)
    return {name: from_blob(blob) for name, blob in execution.outputs.items()}


async def run_model(worker, model, inputs, limits=LIMITS):
    program = convert(model.SerializeToString())
    return await run(worker, program.blobs, program.program_id, inputs, limits)


async def check_that_the_next_unit_runs(worker):
    outputs = await run(worker, DOUBLE.blobs, DOUBLE.program_id, {"x": X})
    assert outputs["y"].tolist() == [0.0, 2.0, 4.0]


# --- programs that take too much ---

TOO_MUCH_MEMORY = {
    "64 GB of zeros": (
        "g (int64[1] n) => (float[m] y) { y = ConstantOfShape(n) }",
        {"n": np.array([1 << 34])},
    ),
    "a tensor doubled forty times": (
        "g (float[n] x) => (float[m] y) { y0 = Identity(x)"
        + "".join(f" y{k + 1} = Concat<axis = 0>(y{k}, y{k})" for k in range(40))
        + " y = Identity(y40) }",
        {"x": X},
    ),
    "a range of 10^12": (
        """g (int64 n) => (int64[m] y) {
            a = Constant<value = int64 {0}>() d = Constant<value = int64 {1}>()
            y = Range(a, n, d) }""",
        {"n": np.array(10**12)},
    ),
    "a tensor repeated 10^8 times": (
        "g (float[3] x, int64[1] n) => (float[m] y) { y = Tile(x, n) }",
        {"x": X, "n": np.array([10**8])},  # ONNX Runtime has a limit of its own above
    ),
    "an expansion to 64 GB": (
        "g (float[1] x, int64[2] n) => (float[a, b] y) { y = Expand(x, n) }",
        {"x": X[:1], "n": np.array([1 << 17, 1 << 17])},
    ),
    "padding of 10^11": (
        "g (float[3] x, int64[2] n) => (float[m] y) { y = Pad(x, n) }",
        {"x": X, "n": np.array([0, 10**11])},
    ),
    "one of 10^10 classes": (
        """g (int64[2] x, int64 n) => (float[2, m] y) {
            v = Constant<value = float[2] {0, 1}>() y = OneHot(x, n, v) }""",
        {"x": np.array([1, 2]), "n": np.array(10**10)},
    ),
    "a loop that keeps every step": (
        """g (float[n] x) => (float[m, n] y) {
            n = Constant<value = int64 {100000000}>() t = Constant<value = bool {1}>()
            z = Constant<value = int64[1] {65536}>()
            r = Loop <body = b (int64 i, bool c) => (bool d, float[k] w) {
                d = Identity(c) w = ConstantOfShape(z) }> (n, t)
            y = Identity(r) }""",
        {"x": X},
    ),
}


@pytest.mark.parametrize("what", TOO_MUCH_MEMORY)
async def test_a_program_that_takes_too_much_memory_ends_with_that_error(worker, what):
    text, inputs = TOO_MUCH_MEMORY[what]
    with pytest.raises(ComputeError) as ended:
        await run_model(worker, model_of(text), inputs)
    assert ended.value.code == "memory_limit"
    await check_that_the_next_unit_runs(worker)


async def test_outputs_over_their_limit_end_with_that_error(worker):
    model = model_of("g (int64[1] n) => (float[m] y) { y = ConstantOfShape(n) }")
    with pytest.raises(ComputeError) as ended:
        await run_model(worker, model, {"n": np.array([1 << 20])})
    assert ended.value.code == "output_limit"
    await check_that_the_next_unit_runs(worker)


ENDLESS = model_of(
    """g (float[n] x) => (float[n] y) {
        t = Constant<value = bool {1}>()
        y = Loop <body = b (int64 i, bool c, float[n] v) => (bool d, float[n] w) {
            d = Identity(c) w = Neg(v) }> ("", t, x) }"""
)


async def test_an_endless_loop_ends_at_its_time_limit_and_its_worker_stays(worker):
    await check_that_the_next_unit_runs(worker)
    pid = worker.pids["ann"]
    with pytest.raises(ComputeError) as ended:
        await run_model(worker, ENDLESS, {"x": X}, SHORT)
    assert ended.value.code == "time_limit"
    await check_that_the_next_unit_runs(worker)
    assert worker.pids["ann"] == pid


async def test_one_operator_that_does_not_end_is_ended_with_its_worker(worker):
    # A recurrence over a long sequence of nothing: it looks at no flag on its way.
    model = model_of(
        """g (int64[3] n) => (float[a, b, c, d] y) {
            x = ConstantOfShape(n) y, h = GRU<hidden_size = 1>(x, w, r) }"""
    )
    for name in ("w", "r"):
        weight = np.ones((1, 3, 1), np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
    await check_that_the_next_unit_runs(worker)
    pid = worker.pids["ann"]
    with pytest.raises(ComputeError) as ended:
        await run_model(worker, model, {"n": np.array([10**7, 1, 1])}, SHORT)
    assert ended.value.code == "time_limit"
    assert "its worker was ended" in ended.value.message
    await check_that_the_next_unit_runs(worker)
    assert worker.pids["ann"] != pid


# --- programs that are no programs ---


async def prepare_graph(worker, graph):
    """Hand over a graph as a peer might, past all checks of a client's."""
    blobs = {**DOUBLE.blobs, DOUBLE.manifest.graph: graph}
    return await run(worker, blobs, DOUBLE.program_id, {"x": X})


async def refused_both_ways(worker, model):
    """The codes with which a worker refuses to convert a model, and to prepare it."""
    with pytest.raises(ProgramError) as when_converted:
        await worker.convert("ann", model)
    with pytest.raises(ProgramError) as when_prepared:
        await prepare_graph(worker, model)
    return {when_converted.value.code, when_prepared.value.code}


async def test_100_000_nodes_are_refused(worker):
    model = model_of("g (float[n] x) => (float[n] y) { y = Neg(x) }")
    for k in range(100_000):
        model.graph.node.append(helper.make_node("Neg", ["x"], [f"n{k}"]))
    assert await refused_both_ways(worker, model.SerializeToString()) == {"too_many_nodes"}
    await check_that_the_next_unit_runs(worker)


def field(number, content):
    """A protobuf field that holds bytes."""
    size, prefix = len(content), bytearray([number << 3 | 2])
    while size > 127:
        prefix.append(size & 127 | 128)
        size >>= 7
    return bytes(prefix) + bytes([size]) + content


@pytest.mark.parametrize("depth", [5, 30, 5_000])
async def test_branches_nested_too_deep_are_refused(worker, depth):
    # Written by hand: protobuf itself would not nest so deep.
    output, branch = field(2, b"y"), field(1, b"then_branch") + b"\xa0\x01\x05"
    graph = field(1, output + field(4, b"Constant"))
    for _ in range(depth):
        attribute = branch + field(6, graph)
        graph = field(1, output + field(4, b"If") + field(5, attribute))
    ported = model_of("g (float[n] x) => (float[n] y) { y = Neg(x) }")
    del ported.graph.node[:]
    model = (
        b"\x08\x08" + field(8, b"\x10\x12") + field(7, graph + ported.graph.SerializeToString())
    )
    assert await refused_both_ways(worker, model) <= {"subgraph_too_deep", "malformed_model"}
    await check_that_the_next_unit_runs(worker)


async def test_a_weight_that_claims_more_than_it_has_is_refused(worker):
    model = model_of("g (float[n] x) => (float[n] y) { y = Add(x, w) }")
    tensor = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT)
    tensor.dims.extend([1 << 31, 1 << 31])
    tensor.raw_data = b"1234"
    codes = await refused_both_ways(worker, model.SerializeToString())
    assert codes <= {"tensor_too_large", "tensor_size_mismatch"}
    await check_that_the_next_unit_runs(worker)


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",  # an array of 4 billion
        b"\xdf\xff\xff\xff\xff",  # a map of 4 billion
        b"\xc6\xff\xff\xff\xff",  # 4 GB of bytes
        b"\x91" * 100_000,  # arrays within arrays
        b"\x81" * 1_000 + b"\xc0",
    ],
)
async def test_a_manifest_that_is_none_is_refused(worker, manifest):
    blobs = {**DOUBLE.blobs, DOUBLE.program_id: manifest}
    with pytest.raises(ProgramError):
        await run(worker, blobs, DOUBLE.program_id, {"x": X})
    await check_that_the_next_unit_runs(worker)


async def test_500_damaged_models_are_refused_or_run_and_the_next_unit_runs(worker):
    # 10,000 of them: tests/soak/test_damaged_models.py
    codes = Counter()
    for model in fuzzed_models.fuzzed(500, seed=4):
        codes[await fuzzed_models.try_one(worker, model)] += 1
    assert codes["ran"] < 250
    assert "library_failure" not in codes
    assert len(codes) >= 8  # it is not one rule that refuses them all
    await check_that_the_next_unit_runs(worker)


# --- operators with arguments that make no sense ---

SENSELESS = {
    "Gather beyond the end": ("y = Gather(x, i)", [10**12]),
    "Gather before the beginning": ("y = Gather(x, i)", [-(10**12)]),
    "ScatterElements beyond the end": ("y = ScatterElements(x, i, x)", [0, 1, 1 << 40]),
    "GatherND beyond the end": ("y = GatherND(x, i)", [1 << 62]),
    "Reshape to an overflow": ("y = Reshape(x, i)", [1 << 32, 1 << 32]),
    "Reshape to less than nothing": ("y = Reshape(x, i)", [-5]),
    "ConstantOfShape of less than nothing": ("y = ConstantOfShape(i)", [-(1 << 40), 1]),
    "ConstantOfShape of an overflow": ("y = ConstantOfShape(i)", [1 << 33, 1 << 33]),
    "Expand to an overflow": ("y = Expand(x, i)", [1 << 40, 1 << 40, 3]),
    "Tile less than nothing": ("y = Tile(x, i)", [-(1 << 60)]),
    "Pad less than nothing": ("y = Pad(x, i)", [-(1 << 62), -(1 << 62)]),
    "TopK of more than there are": ("v, k = TopK(x, i) y = Identity(v)", [1 << 50]),
    "an integer divided by zero": ("z = Sub(i, i) d = Div(i, z) y = Cast<to = 1>(d)", [1]),
    "an integer modulo zero": ("z = Sub(i, i) d = Mod(i, z) y = Cast<to = 1>(d)", [1]),
    "the least integer divided by -1": (
        "o = Constant<value = int64[1] {-1}>() d = Div(i, o) y = Cast<to = 1>(d)",
        [-(1 << 63)],
    ),
    "Slice by a step of nothing": ("z = Sub(i, i) y = Slice(x, z, i, z, z)", [1]),
    "Split into what is not there": ("y, q = Split(x, i)", [1 << 40, -(1 << 40)]),
    "Unsqueeze an axis far out": ("y = Unsqueeze(x, i)", [1 << 40]),
    "Squeeze an axis far out": ("y = Squeeze(x, i)", [-(1 << 40)]),
    "EyeLike far off": ("u = Unsqueeze(x, i) y = EyeLike<k = 9223372036854775807>(u)", [0]),
    "CenterCropPad to 10^12": ("y = CenterCropPad<axes = [0]>(x, i)", [10**12]),
    "BlackmanWindow of 10^12": ("s = Squeeze(i) y = BlackmanWindow(s)", [10**12]),
    "CumSum along an axis far out": ("s = Squeeze(i) y = CumSum(x, s)", [1 << 40]),
    "ReduceSum along an axis far out": ("y = ReduceSum(x, i)", [1 << 40]),
    "Resize to 10^12": ('y = Resize<mode = "nearest">(x, "", "", i)', [10**12]),
    "Col2Im of an overflow": ("u = Unsqueeze(x, i) y = Col2Im(u, i, i)", [1 << 40]),
}


@pytest.mark.parametrize("what", SENSELESS)
async def test_senseless_arguments_end_the_unit_at_most(worker, what):
    body, numbers = SENSELESS[what]
    # Ranks are left open: nothing can be refused before the numbers are there.
    model = model_of(f"g (float[n] x, int64[m] i) => (float y) {{ {body} }}")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    code = "ran"
    try:
        await run_model(worker, model, {"x": X, "i": np.array(numbers)})
    except (ProgramError, ComputeError) as error:
        code = error.code
    assert code in {
        "ran", "operator_failed", "unsupported_program", "memory_limit", "worker_died",
    }  # fmt: skip
    await check_that_the_next_unit_runs(worker)


async def test_a_name_full_of_control_characters_does_not_reach_a_terminal(worker):
    evil = "\x1b[2J\r\n\x07" + "%s%n{}" * 20
    model = model_of("g (float[n] x, int64[m] i) => (float[m] y) { y = Gather(x, i) }")
    model.graph.node[0].name = evil
    with pytest.raises(ProgramError) as refused:
        await run_model(worker, model, {"x": X, "i": np.array([99])})
    assert refused.value.code == "operator_failed"
    assert refused.value.message.isprintable()
    await check_that_the_next_unit_runs(worker)
