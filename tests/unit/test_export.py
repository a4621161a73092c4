"""PyTorch modules become programs; what cannot is refused, naming operator and module."""

import numpy as np
import pytest

from shoal.compute.errors import ProgramError
from shoal.compute.executors.onnxruntime import OnnxRuntime
from shoal.compute.loading import load

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
export = pytest.importorskip("shoal.export")
nn = torch.nn


class Outer(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.first, self.inner = nn.Linear(4, 4), inner

    def forward(self, x):
        return self.inner(self.first(x))


class Branches(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x


class CallsNumpy(nn.Module):
    def forward(self, x):
        return torch.from_numpy(x.detach().numpy() * 2)


class Decomposes(nn.Module):
    def forward(self, x):
        return torch.linalg.svd(x)[1]


class Adds(nn.Module):
    def forward(self, x, y):
        return 2 * x + y


class GivesTwo(nn.Module):
    def forward(self, x):
        return x + 1, x * 2


class GivesByName(nn.Module):
    """One output has the name that torch gives to another value inside."""

    def forward(self, words):
        shift = torch.nn.functional.embedding(words, torch.ones(5, 4))
        return {"embedding": shift + 1, "second": shift * 2}


def run(program, inputs):
    executor = OnnxRuntime(threads=1)
    return executor.run(executor.prepare(load(program.program_id, program.blobs)), inputs)


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(7)
    return Outer(nn.Sequential(nn.GELU(), nn.LayerNorm(4))).eval()


def test_a_module_becomes_a_program_that_computes_what_the_module_does(module):
    program = export.program(module, torch.zeros(3, 4))
    x = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(run(program, {"x": x})["output"], expected, atol=1e-5)


def test_a_dynamic_axis_has_the_users_symbol_and_takes_any_size(module):
    program = export.program(module, torch.zeros(3, 4), dynamic_axes={"x": {0: "batch"}})
    (port,) = program.manifest.inputs
    assert port.shape == ("batch", 4)
    assert program.manifest.outputs[0].shape == ("batch", 4)
    for batch in (1, 5):
        x = np.ones((batch, 4), np.float32)
        assert run(program, {"x": x})["output"].shape == (batch, 4)


def test_one_tensor_as_two_example_inputs_makes_two_inputs_none_the_less():
    same = torch.ones(2, 3)
    program = export.program(Adds(), {"x": same, "y": same})
    given = {"x": np.full((2, 3), 5, np.float32), "y": np.full((2, 3), 7, np.float32)}
    np.testing.assert_array_equal(run(program, given)["output"], 17)


def test_the_same_module_has_the_same_program_id_each_time(module):
    ids = {export.program(module, (torch.zeros(3, 4),)).program_id for _ in range(2)}
    assert len(ids) == 1


def test_a_precision_is_written_into_the_program(module):
    plain = export.program(module, {"x": torch.zeros(3, 4)})
    exact = export.program(module, {"x": torch.zeros(3, 4)}, precision="x20")
    assert (plain.manifest.precision, exact.manifest.precision) == (None, "x20")
    assert load(exact.program_id, exact.blobs).manifest == exact.manifest
    assert plain.program_id not in exact.blobs


def test_outputs_are_named_by_the_keys_of_a_dict_or_by_their_place():
    names = [port.name for port in export.program(GivesTwo(), torch.zeros(2)).manifest.outputs]
    assert names == ["output_0", "output_1"]
    words = torch.tensor([1, 4])
    program = export.program(GivesByName(), words)
    assert [port.name for port in program.manifest.outputs] == ["embedding", "second"]
    outputs = run(program, {"words": words.numpy()})
    assert (outputs["embedding"] == 2).all()
    assert (outputs["second"] == 2).all()


@pytest.mark.parametrize(
    ("inner", "code", "operator"),
    [
        (Branches(), "untraceable", "__bool__"),
        (CallsNumpy(), "untraceable", "numpy"),
        (Decomposes(), "no_onnx_operator", "aten._linalg_svd"),
        (nn.Dropout(), "random_operator", "Dropout"),
    ],
    ids=["a branch on values", "numpy inside", "no such operator in ONNX", "random numbers"],
)
def test_what_cannot_be_exported_is_refused_naming_operator_and_module(inner, code, operator):
    with pytest.raises(ProgramError) as caught:
        export.program(Outer(inner), torch.zeros(3, 4))
    assert caught.value.code == code
    assert operator in caught.value.operator
    assert "'inner" in caught.value.message
    assert caught.value.hint


def test_inputs_that_the_module_does_not_take_are_refused_by_name(module):
    with pytest.raises(ProgramError, match="'mask' in dynamic_axes is no input"):
        export.program(module, torch.zeros(3, 4), dynamic_axes={"mask": {0: "batch"}})
    with pytest.raises(ProgramError, match="too many positional arguments"):
        export.program(module, (torch.zeros(3, 4), torch.zeros(1)))
