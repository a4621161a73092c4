"""Kernels' manifests and texts: one encoding, no other bytes, and never a traceback."""

import string

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from shoal.compute import programs
from shoal.compute.errors import ProgramError
from shoal.compute.kernel_manifest import (
    FLOATS,
    INTEGERS,
    Argument,
    Extent,
    KernelManifest,
    decode,
    encode,
    launch_of,
    type_of,
)
from shoal.compute.manifest import Port
from shoal.compute.tensor import DTYPES, TensorSpec
from shoal.compute.user_kernels.rules import OPERATIONS, check_text

names = st.text(string.ascii_letters, min_size=1, max_size=5)
symbols = st.sampled_from(["n", "m", "k"])
dtypes = st.sampled_from(sorted(DTYPES))
sizes = st.integers(0, 100) | symbols
shapes = st.lists(sizes, max_size=3).map(tuple)
MANIFEST_CODES = {"bad_manifest", "grid_too_large"}
TEXT_CODES = {
    "not_ttir",
    "debug_locations",
    "external_call",
    "operation_not_allowed",
    "several_functions",
}
SIZES = {"n": 7, "m": 1, "k": 100}


def outcome(step, codes=MANIFEST_CODES):
    """What a step gives, or the code by which it refuses: one of these."""
    try:
        return step(), None
    except ProgramError as error:
        code = error.code
    assert code in codes
    return None, code


@st.composite
def numbers(draw):
    kind = draw(st.sampled_from(sorted(INTEGERS) + sorted(FLOATS)))
    if kind in FLOATS:
        largest = FLOATS[kind]
        return kind, draw(st.floats(-largest, largest, allow_nan=False))
    held = INTEGERS[kind]
    return kind, draw(symbols | st.integers(held[0], held[-1]))


@st.composite
def manifests(draw):
    taken = draw(st.lists(names, unique=True, min_size=2, max_size=6))
    # The first has all symbols, so that whatever follows may use them.
    ports = [Port(taken[0], draw(dtypes), ("n", "m", "k"))]
    ports += [Port(name, draw(dtypes), draw(shapes)) for name in taken[1:3]]
    inputs = tuple(ports[: draw(st.integers(1, len(ports)))])
    outputs = tuple(ports[draw(st.integers(0, len(inputs))) :]) or inputs
    tensors = [Argument(p.name, f"*{type_of(p.dtype)}", None) for p in {*inputs, *outputs}]
    scalars = [Argument(name, *draw(numbers())) for name in taken[3:]]
    return KernelManifest(
        kernel=draw(st.binary(min_size=32, max_size=32)).hex(),
        triton="3.7.0",
        entry=draw(names),
        inputs=inputs,
        outputs=outputs,
        arguments=tuple(draw(st.permutations(tensors + scalars))),
        grid=tuple(
            draw(st.lists(st.builds(Extent, sizes, st.integers(1, 64)), min_size=1, max_size=3))
        ),
        warps=draw(st.integers(1, 32)),
        stages=draw(st.integers(1, 16)),
    )


@given(manifests())
def test_every_manifest_comes_back_and_can_be_launched(manifest):
    data = encode(manifest)
    assert programs.decode(data) == manifest
    specs = {
        port.name: TensorSpec(port.dtype, tuple(SIZES.get(s, s) for s in port.shape))
        for port in manifest.inputs
    }
    launch = launch_of(manifest, specs)
    assert launch.outputs.keys() == {port.name for port in manifest.outputs}
    assert len(launch.numbers) == sum(one.value is not None for one in manifest.arguments)


@given(manifests(), st.data())
def test_changed_bytes_are_refused_or_say_what_they_say(manifest, data):
    encoded = bytearray(encode(manifest))
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    found, code = outcome(lambda: programs.decode(bytes(encoded)))
    if code is None:
        assert encode(found) == encoded


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_by_name(data):
    for head in (b"", b"\x8a\xa6kernel"):
        outcome(lambda head=head: programs.decode(head + data))


json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(manifests(), st.sampled_from(KernelManifest.__struct_fields__), json_like)
def test_a_field_of_anything_is_refused_or_kept(manifest, field, value):
    plain = msgspec.to_builtins(manifest) | {field: value}
    found, code = outcome(lambda: decode(msgspec.msgpack.encode(plain)))
    if code is None:
        assert msgspec.to_builtins(found)[field] == value


SYNTAX = [
    "module {",
    "\n",
    "}",
    "{",
    "(",
    ")",
    "<",
    "->",
    "%0",
    "^bb0:",
    "//",
    '"',
    "loc(",
    "#",
]
NAMES = ["tt.func public @f() attributes {noinline = false} {", "llvm.call", "@f"]
words = st.sampled_from([*sorted(OPERATIONS), *SYNTAX, *NAMES])


@given(st.lists(words | st.text(max_size=5), max_size=40).map(" ".join))
def test_any_text_is_refused_by_name(text):
    for whole in (text, f"module {{\n{text}\n}}\n"):
        outcome(lambda whole=whole: check_text(whole.encode()), TEXT_CODES)


@given(st.binary(max_size=100))
def test_any_bytes_are_no_kernel_or_refused_by_name(data):
    for whole in (data, b"module {\n" + data):
        outcome(lambda whole=whole: check_text(whole), TEXT_CODES)
