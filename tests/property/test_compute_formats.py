"""Tensor headers and manifests: one encoding each, and no other bytes are accepted."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from shoal.compute.errors import ProgramError
from shoal.compute.manifest import Manifest, Port, Weight, decode, encode
from shoal.compute.tensor import (
    DTYPES,
    TensorSpec,
    decode_header,
    encode_header,
    from_blob,
    to_blob,
)

dtypes = st.sampled_from(sorted(DTYPES))
specs = st.builds(TensorSpec, dtypes, st.lists(st.integers(0, 9), max_size=10).map(tuple))
plain_arrays = dtypes.filter(lambda name: name != "bfloat16").flatmap(
    lambda name: arrays.arrays(
        np.dtype(name).newbyteorder(">") if name != "bool" else np.dtype(bool),
        arrays.array_shapes(min_dims=0, min_side=0, max_side=4),
    )
)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
hex_ids = st.binary(min_size=32, max_size=32).map(bytes.hex)
dimensions = st.lists(st.integers(0, 1 << 40) | st.text(max_size=5), max_size=5).map(tuple)
ports = st.builds(Port, names, dtypes, st.none() | dimensions)


@st.composite
def manifests(draw):
    taken = draw(st.lists(names, unique=True, max_size=8))
    split = draw(st.integers(0, len(taken)))
    return Manifest(
        graph=draw(hex_ids),
        tensors=tuple(Weight(name, draw(hex_ids)) for name in sorted(taken[:split])),
        inputs=tuple(Port(name, draw(dtypes), draw(dimensions)) for name in taken[split:]),
        outputs=tuple(
            draw(st.lists(ports, min_size=1, max_size=4, unique_by=lambda p: p.name))
        ),
    )


@given(specs)
def test_every_header_gives_its_dtype_and_shape_back(spec):
    header = encode_header(spec)
    assert decode_header(header + b"more") == (spec, len(header))


@given(plain_arrays)
def test_every_array_comes_back_with_equal_bits(array):
    back = from_blob(to_blob(array))
    assert back.shape == array.shape
    assert back.dtype == array.dtype.newbyteorder("<")
    assert back.tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes()
    assert to_blob(back) == to_blob(array)


@given(specs, st.data())
def test_a_header_with_any_byte_changed_is_another_tensor_or_none(spec, data):
    header = bytearray(encode_header(spec))
    position = data.draw(st.integers(0, len(header) - 1))
    header[position] ^= data.draw(st.integers(1, 255))
    try:
        other, size = decode_header(header)
    except ProgramError:
        return
    assert other != spec
    assert encode_header(other) == header[:size]


@given(manifests())
def test_every_manifest_gives_itself_back(manifest):
    assert decode(encode(manifest)) == manifest


@given(manifests(), st.data())
def test_a_manifest_with_any_byte_changed_is_another_manifest_or_none(manifest, data):
    encoded = bytearray(encode(manifest))
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] ^= data.draw(st.integers(1, 255))
    try:
        other = decode(bytes(encoded))
    except ProgramError:
        return
    assert other != manifest
    assert encode(other) == encoded


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_and_nothing_else_happens(data):
    for reader in (decode, decode_header, from_blob):
        try:
            reader(data)
        except ProgramError:
            continue
        raise AssertionError(reader)
