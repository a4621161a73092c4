import msgspec
import pytest

from shoal.compute.errors import ProgramError
from shoal.compute.manifest import (
    MANIFEST_LIMIT_BYTES,
    Manifest,
    Port,
    Weight,
    check_inputs,
    decode,
    encode,
)
from shoal.compute.tensor import TensorSpec
from shoal.crypto.content import blob_id_of

MANIFEST = Manifest(
    graph="0" * 64,
    tensors=(Weight("v", "1" * 64), Weight("w", "2" * 64), Weight("z", "1" * 64)),
    inputs=(Port("x", "float32", ("n", 3)), Port("mask", "bool", ("n", ""))),
    outputs=(Port("y", "float32", None),),
)
FITTING = {"x": TensorSpec("float32", (8, 3)), "mask": TensorSpec("bool", (8, 5))}


def changed(**fields):
    return msgspec.structs.replace(MANIFEST, **fields)


def test_a_manifest_survives_its_encoding_and_its_id_stays_the_same():
    assert decode(encode(MANIFEST)) == MANIFEST
    assert blob_id_of(encode(MANIFEST)) == (
        "bb817b6c105f224f0d1dbc8e518141f4b0b4e3cf4d008a67dff833cb7dfb0b22"
    )


def test_the_blobs_of_a_program_are_named_once_each():
    assert MANIFEST.blob_ids == ("0" * 64, "1" * 64, "2" * 64)


@pytest.mark.parametrize(
    "wrong",
    [
        changed(tensors=MANIFEST.tensors[::-1]),
        changed(tensors=(Weight("w", "1" * 64), Weight("w", "1" * 64))),
        changed(tensors=(Weight("x", "1" * 64),)),
        changed(inputs=(MANIFEST.inputs[0], MANIFEST.inputs[0])),
        changed(outputs=(MANIFEST.outputs[0], MANIFEST.outputs[0])),
        changed(outputs=()),
        changed(outputs=(Port("y", "string", None),)),
        changed(outputs=(Port("y", "int8", (-1,)),)),
        changed(outputs=(Port("y", "int8", (1 << 63,)),)),
        changed(outputs=(Port("y", "int8", (1,) * 17),)),
        changed(outputs=(Port("", "int8", ()),)),
        changed(outputs=(Port("y" * 513, "int8", ()),)),
        changed(graph="0" * 63),
        changed(graph="A" * 64),
        changed(graph="0" * 64 + "\n"),
        changed(precision="x99"),
        changed(version=2),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused(wrong):
    with pytest.raises(ProgramError) as refused:
        decode(msgspec.msgpack.encode(wrong))
    assert refused.value.code == "bad_manifest"


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"\x80",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 5000,
        encode(MANIFEST)[:-1],
        encode(MANIFEST) + b"\xc0",
        msgspec.msgpack.encode(dict(reversed(msgspec.to_builtins(MANIFEST).items()))),
        msgspec.msgpack.encode(msgspec.to_builtins(MANIFEST) | {"more": 1}),
        b"\x00" * (MANIFEST_LIMIT_BYTES + 1),
    ],
)
def test_bytes_that_are_not_a_canonical_manifest_are_refused(wrong):
    with pytest.raises(ProgramError) as refused:
        decode(wrong)
    assert refused.value.code == "bad_manifest"


def test_fitting_inputs_are_accepted():
    check_inputs(MANIFEST, FITTING)


@pytest.mark.parametrize(
    ("inputs", "code", "words"),
    [
        ({"x": FITTING["x"]}, "missing_input", "'mask' (bool[n, ?]) is missing"),
        (FITTING | {"u": FITTING["x"]}, "unknown_input", "no input 'u'"),
        (
            FITTING | {"x": TensorSpec("float64", (8, 3))},
            "wrong_dtype",
            "'x' is a float64[8, 3], and float32[n, 3] is wanted",
        ),
        (
            FITTING | {"x": TensorSpec("float32", (8, 4))},
            "wrong_shape",
            "'x' is a float32[8, 4], and float32[n, 3] is wanted",
        ),
        (FITTING | {"x": TensorSpec("float32", (8,))}, "wrong_shape", "float32[8]"),
        (
            FITTING | {"mask": TensorSpec("bool", (9, 5))},
            "wrong_shape",
            "'n' is 9, but 'x' has 8 for it",
        ),
    ],
)
def test_a_wrong_input_is_refused_by_name(inputs, code, words):
    with pytest.raises(ProgramError) as refused:
        check_inputs(MANIFEST, inputs)
    assert refused.value.code == code
    assert words in refused.value.message


def test_an_input_without_its_first_axis_is_answered_with_how_to_add_it():
    with pytest.raises(ProgramError) as refused:
        check_inputs(MANIFEST, FITTING | {"x": TensorSpec("float32", (3,))})
    assert refused.value.hint == "add the first axis: array[None]"
