"""What submitters hold becomes tensors, and outputs become what they want."""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from shoal.compute.errors import ProgramError
from shoal.compute.manifest import Manifest, Port
from shoal.compute.tensor import from_blob, to_blob
from shoal.crypto.content import blob_id_of
from shoal.node.client.files import InputError
from shoal.node.client.submitting import UNITS_PER_REQUEST, gather
from shoal.node.client.tensors import (
    PIECE_BYTES,
    arrays_of,
    as_wanted,
    check_as,
    id_of_pieces,
    named_arrays,
    pieces_of,
)
from shoal.node.errors import ConfigError

MANIFEST = Manifest(
    graph="00" * 32,
    tensors=(),
    inputs=(Port("x", "float32", ("n", 2)), Port("k", "int64", ())),
    outputs=(Port("y", "float32", ("n", 2)),),
)


def given(x, k=3):
    return arrays_of(MANIFEST, {"x": x, "k": k})


def test_lists_and_numbers_take_the_dtype_of_their_input():
    found = given([[1, 2], [3, 4]])
    assert (found["x"].dtype, found["k"].dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(found["x"], [[1, 2], [3, 4]])


@pytest.mark.parametrize("inputs", [np.zeros((2, 2), np.float32), [[1.0, 2.0]], 3, None])
def test_inputs_without_names_are_an_error_that_says_how_to_name_them(inputs):
    with pytest.raises(InputError, match="inputs are given by name") as caught:
        arrays_of(MANIFEST, inputs)
    assert "{'x': …, 'k': …}" in caught.value.hint
    with pytest.raises(InputError, match=type(inputs).__name__):
        named_arrays(inputs)


@pytest.mark.parametrize(
    ("x", "code"),
    [
        ([[1, 2], [3]], "bad_input"),
        ([["a", "b"]], "bad_input"),
        (object(), "bad_input"),
        ({"no": "array"}, "bad_input"),
        (np.zeros((1, 2)), "wrong_dtype"),
        ([[1.0, 2.0, 3.0]], "wrong_shape"),
    ],
)
def test_what_is_no_input_is_named(x, code):
    with pytest.raises((InputError, ProgramError), match="'x'") as caught:
        given(x)
    assert caught.value.code == code
    assert caught.value.hint


def test_files_are_inputs_one_by_one_or_all_together(tmp_path):
    x = np.ones((2, 2), np.float32)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "all.npz", x=x, k=np.int64(3))
    assert isinstance(given(tmp_path / "x.npy")["x"], np.memmap)
    assert isinstance(given(str(tmp_path / "x.npy"))["x"], np.memmap)
    assert arrays_of(MANIFEST, tmp_path / "all.npz").keys() == {"x", "k"}
    with pytest.raises(InputError, match="has no names"):
        named_arrays(tmp_path / "x.npy")
    with pytest.raises(FileNotFoundError):
        given(tmp_path / "none.npy")


def test_torch_tensors_go_in_and_out_bfloat16_too():
    torch = pytest.importorskip("torch", reason="tensors of torch need it")
    x = torch.ones(2, 2, requires_grad=True)
    np.testing.assert_array_equal(given(x)["x"], np.ones((2, 2), np.float32))
    pytest.importorskip("ml_dtypes", reason="numpy has no bfloat16 without it")
    half = torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16)
    array = named_arrays({"b": half.t()})["b"]
    assert array.dtype.name == "bfloat16"
    back = as_wanted(from_blob(to_blob(array)), "torch")
    assert back.dtype is torch.bfloat16
    assert torch.equal(back, half.t())
    assert torch.equal(as_wanted(from_blob(to_blob(np.arange(3))), "torch"), torch.arange(3))


def test_outputs_in_no_known_form_are_refused_before_any_work(monkeypatch):
    check_as("numpy")
    with pytest.raises(ConfigError, match="numpy or torch"):
        check_as("pandas")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match="PyTorch is not installed") as caught:
        check_as("torch")
    assert "'.[torch]'" in caught.value.hint


LARGE = np.arange(PIECE_BYTES, dtype=np.int64).reshape(4, -1)


@pytest.mark.parametrize(
    "array",
    [
        LARGE,
        LARGE.T,
        LARGE[:, ::3],
        LARGE.astype(">i8"),
        LARGE.reshape(1, 1, -1),
        (LARGE % 3).astype(bool),
        np.float32(7),
        np.zeros((0, 5)),
        np.asfortranarray(LARGE[:3]),
    ],
)
def test_an_array_in_pieces_is_its_blob(array):
    array = np.asarray(array)
    pieces = list(pieces_of(array))
    assert b"".join(pieces) == to_blob(array)
    assert id_of_pieces(array) == blob_id_of(to_blob(array))
    assert max(map(len, pieces)) <= PIECE_BYTES


def test_units_are_taken_as_many_as_go_in_one_request_and_no_more():
    taken = []

    def units():
        for number in range(1000):
            taken.append(number)
            yield {"x": [[number, 0]], "k": 0}

    source = units()
    sizes = []
    while True:
        found = gather(source, MANIFEST, len(taken))
        sizes.append(len(found.units))
        assert len(taken) == sum(sizes)
        if found.ended:
            break
    assert sizes == [UNITS_PER_REQUEST] * 3 + [1000 - 3 * UNITS_PER_REQUEST]


def test_large_units_go_in_small_requests():
    large = np.zeros((PIECE_BYTES // 8, 2), np.float32)  # 1 MiB
    found = gather(iter([{"x": large, "k": 0}] * 100), MANIFEST, 0)
    assert 1 < len(found.units) <= 6
    assert all(isinstance(unit["x"], str) for unit in found.units)
    assert len(found.large) == 1  # equal tensors are put once


def test_files_that_are_mapped_stay_open_no_longer_than_their_arrays(tmp_path):
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", np.zeros((number, 2), np.float32))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number, _ in pairwise(range(3)):
        given(tmp_path / f"{number + 1}.npy")
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
