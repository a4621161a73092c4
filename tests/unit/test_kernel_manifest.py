"""A kernel's manifest: what it may say, and what a unit of it launches."""

import msgspec
import numpy as np
import pytest

from shoal.compute import manifest as manifests
from shoal.compute import programs
from shoal.compute.errors import ProgramError
from shoal.compute.kernel_manifest import (
    Argument,
    Extent,
    KernelManifest,
    Launch,
    check_grid,
    decode,
    encode,
    from_file,
    launch_of,
    program_of,
    sizes_of,
)
from shoal.compute.manifest import Manifest, Port, check_inputs
from shoal.compute.tensor import TensorSpec
from shoal.crypto.content import blob_id_of

SOFTMAX = KernelManifest(
    kernel="a" * 64,
    triton="3.7.0",
    entry="softmax",
    inputs=(Port("x", "float32", ("rows", "n")),),
    outputs=(Port("y", "float32", ("rows", "n")),),
    arguments=(
        Argument("x", "*fp32", None),
        Argument("y", "*fp32", None),
        Argument("n", "i32", "n"),
        Argument("eps", "fp32", 0.5),
    ),
    grid=(Extent("rows"), Extent("n", 64)),
)
ONNX = Manifest(graph="b" * 64, tensors=(), inputs=(), outputs=(Port("y", "float32", None),))


def but(**changes):
    return msgspec.structs.replace(SOFTMAX, **changes)


def argument(place, **changes):
    arguments = list(SOFTMAX.arguments)
    arguments[place] = msgspec.structs.replace(arguments[place], **changes)
    return but(arguments=tuple(arguments))


def test_a_manifest_comes_back_as_it_was():
    assert decode(encode(SOFTMAX)) == SOFTMAX
    assert SOFTMAX.blob_ids == ("a" * 64,)


def test_either_kind_is_told_by_its_first_field():
    assert programs.decode(encode(SOFTMAX)) == SOFTMAX
    assert programs.decode(manifests.encode(ONNX)) == ONNX
    for data, decoder in (
        (encode(SOFTMAX), manifests.decode),
        (manifests.encode(ONNX), decode),
    ):
        with pytest.raises(ProgramError) as refused:
            decoder(data)
        assert refused.value.code == "bad_manifest"


@pytest.mark.parametrize("data", [b"", b"\x80", b"garbage", b"\x8a\xa6kernel", bytes(600_000)])
def test_what_is_no_manifest_is_refused(data):
    with pytest.raises(ProgramError) as refused:
        programs.decode(data)
    assert refused.value.code == "bad_manifest"


@pytest.mark.parametrize(
    ("manifest", "why"),
    [
        (but(inputs=SOFTMAX.inputs * 2), "one name to two tensors"),
        (but(inputs=(Port("x", "float32", None),)), "a size or a symbol"),
        (but(inputs=(Port("x", "float32", ("", "n")),)), "a size or a symbol"),
        (but(inputs=(Port("x", "float99", ("rows", "n")),)), "not known"),
        (but(outputs=(Port("y", "float32", ("rows", "m")),)), "of no input"),
        (but(outputs=(*SOFTMAX.outputs, Port("x", "float32", ("n",)))), "comes in as"),
        (but(grid=(Extent("m"),)), "of no input"),
        (but(arguments=SOFTMAX.arguments[1:]), "not the manifest's inputs"),
        (but(arguments=(*SOFTMAX.arguments, SOFTMAX.arguments[0])), "to two arguments"),
        (argument(0, type="*fp16"), "taken as"),
        (argument(2, value="m"), "no size of that type"),
        (argument(2, value=2**31), "no finite number"),
        (argument(2, value=1.0), "no finite number"),
        (argument(2, type="i31"), "no finite number"),
        (argument(3, value=float("nan")), "no finite number"),
        (argument(3, value=1e39), "no finite number"),
        (argument(3, value=1), "no finite number"),
        (argument(3, value="n"), "no finite number"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(manifest, why):
    with pytest.raises(ProgramError, match=why) as refused:
        decode(msgspec.msgpack.encode(manifest))
    assert refused.value.code == "bad_manifest"
    with pytest.raises(ProgramError):
        encode(manifest)


@pytest.mark.parametrize(
    "changes",
    [
        {"warps": 0},
        {"warps": 64},
        {"stages": 99},
        {"entry": "no name"},
        {"triton": ""},
        {"grid": ()},
        {"grid": (Extent(1),) * 4},
        {"grid": (Extent(1, 0),)},
        {"kernel": "A" * 64},
        {"outputs": ()},
        {"version": 2},
        {"arguments": ()},
    ],
)
def test_a_field_over_its_bound_is_refused(changes):
    with pytest.raises(ProgramError) as refused:
        decode(msgspec.msgpack.encode(but(**changes)))
    assert refused.value.code == "bad_manifest"


@pytest.mark.parametrize(
    "grid", [(2**31,), (1, 65536), (1, 1, 65536), (2**30, 4), (65535, 65535, 65535)]
)
def test_a_grid_over_what_cards_launch_is_refused(grid):
    with pytest.raises(ProgramError) as refused:
        check_grid(grid)
    assert refused.value.code == "grid_too_large"
    with pytest.raises(ProgramError) as refused:
        decode(msgspec.msgpack.encode(but(grid=tuple(map(Extent, grid)))))
    assert refused.value.code == "grid_too_large"


def test_a_grid_that_only_its_inputs_make_too_large_is_refused_with_them():
    with pytest.raises(ProgramError) as refused:
        launch_of(SOFTMAX, {"x": TensorSpec("float32", (1, 65536 * 64))})
    assert refused.value.code == "grid_too_large"


def test_a_launch_is_worked_out_of_the_inputs_sizes():
    specs = {"x": TensorSpec("float32", (3, 65))}
    assert sizes_of(SOFTMAX, specs) == {"rows": 3, "n": 65}
    assert launch_of(SOFTMAX, specs) == Launch(
        (3, 2, 1), {2: 65, 3: 0.5}, {"y": TensorSpec("float32", (3, 65))}
    )


def test_a_size_that_its_number_cannot_hold_is_refused():
    with pytest.raises(ProgramError) as refused:
        launch_of(argument(2, type="i8"), {"x": TensorSpec("float32", (1, 128))})
    assert refused.value.code == "number_too_large"


def test_inputs_are_checked_as_of_any_program():
    from shoal.compute.tensor import spec_of_array

    right = {"x": spec_of_array(np.zeros((2, 3), np.float32))}
    check_inputs(SOFTMAX, right)
    for inputs, code in [
        ({}, "missing_input"),
        ({**right, "z": right["x"]}, "unknown_input"),
        ({"x": TensorSpec("float64", (2, 3))}, "wrong_dtype"),
        ({"x": TensorSpec("float32", (2,))}, "wrong_shape"),
    ]:
        with pytest.raises(ProgramError) as refused:
            check_inputs(SOFTMAX, inputs)
        assert refused.value.code == code


def test_a_kernel_runs_in_its_own_class_and_nothing_else_does():
    programs.check_class(SOFTMAX, "kernel")
    programs.check_class(ONNX, "fp32")
    for manifest, numeric_class in [
        (SOFTMAX, "fp32"),
        (SOFTMAX, "exact"),
        (ONNX, "kernel"),
        (ONNX, "exact"),
    ]:
        with pytest.raises(ProgramError) as refused:
            programs.check_class(manifest, numeric_class)
        assert refused.value.code == "class_mismatch"
        assert refused.value.hint


def test_a_saved_kernel_comes_back_and_any_other_file_is_refused(tmp_path):
    made = program_of(msgspec.structs.replace(SOFTMAX, kernel=blob_id_of(b"text")), b"text")
    made.save(tmp_path / "softmax.kernel")
    data = (tmp_path / "softmax.kernel").read_bytes()
    assert from_file(data) == made
    with pytest.raises(ProgramError) as refused:
        made.save(tmp_path / "softmax.txt")
    assert refused.value.code == "bad_kernel_file"
    for bad in (b"", data[:9], data[:-1], data[:-4] + b"tEXT", b"SHOALKRN\x01\xc0"):
        with pytest.raises(ProgramError) as refused:
            from_file(bad)
        assert refused.value.code == "bad_kernel_file"
