import ml_dtypes
import numpy as np
import pytest

from shoal.compute.errors import ProgramError
from shoal.compute.tensor import (
    HEADER_LIMIT_BYTES,
    TensorSpec,
    decode_header,
    encode_header,
    from_blob,
    spec_of_blob,
    to_blob,
)


def test_the_header_of_a_matrix_is_these_bytes():
    header = encode_header(TensorSpec("float32", (2, 3)))
    assert (
        header.hex()
        == (
            "5348 4f41 4c54 454e 0100 0100 0200 0000"  # magic, version, FLOAT, rank
            "0200 0000 0000 0000 0300 0000 0000 0000"
        ).replace(" ", "")
        + "00" * 32
    )


@pytest.mark.parametrize("rank", [0, 6, 7, 16])
def test_a_header_of_any_rank_is_a_multiple_of_64_bytes(rank):
    header = encode_header(TensorSpec("int8", (1,) * rank))
    assert len(header) % 64 == 0
    assert len(header) <= HEADER_LIMIT_BYTES
    assert decode_header(header) == (TensorSpec("int8", (1,) * rank), len(header))


def test_byte_order_and_strides_do_not_change_the_blob():
    plain = np.arange(12, dtype=np.float32).reshape(3, 4)
    expected = to_blob(plain)
    assert to_blob(plain.astype(">f4")) == expected
    assert to_blob(np.asfortranarray(plain)) == expected
    assert to_blob(np.repeat(plain, 2, axis=1)[:, ::2]) == expected
    assert to_blob(plain[::-1][::-1]) == expected


def test_a_bool_made_of_any_byte_is_a_0_or_1():
    assert to_blob(np.array([2, 0], np.uint8).view(bool)) == to_blob(np.array([True, False]))


def test_bfloat16_keeps_its_bits():
    array = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    back = from_blob(to_blob(array))
    assert back.dtype == ml_dtypes.bfloat16
    assert back.tobytes() == array.tobytes()


def test_an_array_read_from_a_blob_is_read_only_and_shares_its_memory():
    blob = bytearray(to_blob(np.zeros(3, np.int64)))
    array = from_blob(blob)
    assert not array.flags.writeable
    blob[64] = 7
    assert array[0] == 7


@pytest.mark.parametrize(
    ("position", "value"), [(0, 0), (8, 2), (10, 8), (12, 17), (12, 255), (32, 1), (63, 1)]
)
def test_a_header_with_one_wrong_byte_is_refused(position, value):
    blob = bytearray(to_blob(np.zeros((2, 3), np.float32)))
    blob[position] = value
    with pytest.raises(ProgramError) as refused:
        from_blob(blob)
    assert refused.value.code == "bad_tensor"


@pytest.mark.parametrize(
    "shape", [(1 << 63,), (1 << 32, 1 << 32), (0, 1 << 62), (1,) * 17, (-1,)]
)
def test_a_shape_whose_size_would_overflow_is_refused(shape):
    with pytest.raises(ProgramError) as refused:
        TensorSpec("float32", shape)
    assert refused.value.code == "bad_tensor"


def test_a_blob_with_a_byte_too_few_or_too_many_is_refused():
    blob = to_blob(np.zeros(4, np.int32))
    assert spec_of_blob(blob[:64], len(blob)) == TensorSpec("int32", (4,))
    for wrong in (blob[:-1], blob + b"\0", blob[:64], blob[:10], b""):
        with pytest.raises(ProgramError):
            from_blob(wrong)


def test_a_bool_tensor_with_a_byte_of_2_is_refused():
    with pytest.raises(ProgramError):
        from_blob(encode_header(TensorSpec("bool", (1,))) + b"\x02")


def test_arrays_of_text_and_complex_numbers_are_refused():
    for array in (np.array(["a"]), np.array([1j]), np.array([None])):
        with pytest.raises(ProgramError):
            to_blob(array)
