"""Users' kernels: source → Triton IR → the code of both vendors' cards, with no card here."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import user_kernels
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend

from shoal import kernel
from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.exact.gpu.targets import TARGETS
from shoal.compute.kernel_manifest import Argument, Extent, encode, program_of
from shoal.compute.manifest import Port
from shoal.compute.user_kernels import lower
from shoal.compute.user_kernels.compiling import compile_kernel
from shoal.compute.user_kernels.parsing import load, parse
from shoal.compute.user_kernels.rules import TTIR_LIMIT_BYTES, check_text
from shoal.crypto.content import blob_id_of

GOOD = ["softmax", "add_multiply", "product", "count_up", "variety"]
ELF = b"\x7fELF"


def target_named(name):
    target = TARGETS[name]
    return GPUTarget(target.backend, target.arch, target.lanes)


@pytest.fixture(scope="module")
def lowered(tmp_path_factory):
    return user_kernels.lowered(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def programs(lowered):
    return lowered[0]


@pytest.fixture(scope="module")
def hostile(lowered):
    return lowered[1]


def text_of(program):
    return program.blobs[program.manifest.blob_ids[0]]


def with_text(program, text, **changes):
    """The program of another text, its manifest changed to name it."""
    manifest = msgspec.structs.replace(program.manifest, kernel=blob_id_of(text), **changes)
    return program_of(manifest, text)


def compiled(program, target="sm_80"):
    return compile_kernel(load(program.program_id, program.blobs), target_named(target))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", GOOD)
def test_a_kernel_compiles_for_every_generation(programs, name, target):
    made = compiled(programs[name], target)
    assert made.binary.startswith(ELF)
    assert made.extension == ("cubin" if target.startswith("sm_") else "hsaco")
    assert made.metadata["name"] == name
    assert made.shared_bytes <= TARGETS[target].shared_bytes


def test_what_travels_has_no_path_and_no_python_in_it(programs):
    for name, program in programs.items():
        assert program.blobs.keys() == {program.program_id, *program.manifest.blob_ids}
        blobs = b"".join(program.blobs.values())
        for word in (
            b"loc(",
            b"/tests",
            b"user_kernels",
            b"def ",
            b".py",
            name.upper().encode(),
        ):
            assert word not in blobs


def test_a_kernel_is_lowered_alike_again(programs, tmp_path):
    again, _ = user_kernels.lowered(tmp_path)
    assert {n: p.program_id for n, p in again.items()} == {
        n: p.program_id for n, p in programs.items()
    }


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("assembly", "inline_assembly"),
        ("library", "external_call"),
        ("output", "kernel_prints"),
        ("call", "external_call"),
    ],
)
def test_what_no_rule_can_look_into_is_refused_by_name(hostile, programs, name, code):
    with pytest.raises(ProgramError) as refused:
        check_text(hostile[name])
    assert refused.value.code == code
    program = with_text(programs["softmax"], hostile[name])
    with pytest.raises(ProgramError) as refused:
        load(program.program_id, program.blobs)
    assert refused.value.code == code
    assert refused.value.hint


@pytest.mark.parametrize("name", ["assembly", "library", "output"])
def test_the_parsed_module_is_looked_at_and_not_only_its_text(
    hostile, programs, name, monkeypatch
):
    from shoal.compute.user_kernels import parsing

    monkeypatch.setattr(parsing, "check_text", lambda text: bytes(text).decode())
    monkeypatch.setattr(parsing, "entry_of", lambda _text: "softmax")
    program = with_text(programs["softmax"], hostile[name])
    with pytest.raises(ProgramError) as refused:
        compiled(program)
    assert refused.value.code in {"inline_assembly", "external_call", "kernel_prints"}


def test_a_text_that_the_parser_reads_otherwise_than_it_is_written_is_refused(programs):
    text = text_of(programs["softmax"]).replace(b"    %1 = ", b"      %1 = ", 1)
    with pytest.raises(ProgramError, match="as Triton prints it") as refused:
        compiled(with_text(programs["softmax"], text))
    assert refused.value.code == "not_ttir"


def test_100_mb_are_refused_before_they_are_read(programs):
    text = text_of(programs["softmax"]) + b" " * (100 << 20)
    with pytest.raises(ProgramError, match=str(TTIR_LIMIT_BYTES)) as refused:
        check_text(text)
    assert refused.value.code == "kernel_too_large"


@pytest.mark.parametrize(
    "change",
    [
        lambda _: b"",
        lambda _: b"garbage",
        lambda text: text[: len(text) // 2],
        lambda text: text + b"\x00",
        lambda text: text.replace(b"arith.constant", b"arith.constantly", 1),
        lambda text: text.replace(b"tt.splat %", b"tt.splat %never", 1),
        lambda text: text.replace(b": tensor<1024xi32>", b": tensor<1000xi32>", 1),
        lambda text: text.replace(b"module {", b"module attributes {a = 1} {", 1),
        lambda text: b"\xff" + text,
        lambda text: text + b"{-# dialect_resources: {} #-}\n",
        lambda text: text.replace(b"module {", b"// a comment\nmodule {", 1),
        lambda text: text.replace(b"    tt.return", b"{" * 100_000 + b"    tt.return", 1),
    ],
)
def test_what_is_no_kernel_is_refused_by_name(programs, change):
    good = programs["softmax"]
    text = change(text_of(good))
    assert text != text_of(good)
    with pytest.raises(ProgramError) as refused:
        compiled(with_text(good, text))
    assert refused.value.code in {"not_ttir", "operation_not_allowed"}


@pytest.mark.parametrize(
    "piece", [b"a", b"a.", b"{}", b'"', b"^bb0:  //\n", b"loc", b"tt.func "]
)
def test_a_text_that_is_made_to_take_long_is_refused_all_the_same(piece):
    text = b"module {\n" + piece * ((TTIR_LIMIT_BYTES - 100) // len(piece)) + b"\n}\n"
    with pytest.raises(ProgramError):
        check_text(text)


@pytest.mark.parametrize("glued", [b"0", b"0.", b"%x", b"1.5", b"$", b"a."])
def test_no_glue_hides_an_operation(programs, glued):
    line = b"    " + glued + b"tt.elementwise_inline_asm\n    tt.return"
    text = text_of(programs["softmax"]).replace(b"    tt.return", line)
    with pytest.raises(ProgramError) as refused:
        check_text(text)
    assert refused.value.code in {"inline_assembly", "operation_not_allowed"}


def test_debug_locations_are_refused(programs):
    text = text_of(programs["softmax"]).replace(
        b"    tt.return\n", b'    tt.return loc("/home/me/secret.py":1:1)\n'
    )
    with pytest.raises(ProgramError) as refused:
        check_text(text)
    assert refused.value.code == "debug_locations"


def test_a_second_function_is_refused(programs):
    text = text_of(programs["softmax"])
    body = text.split(b"\n", 1)[1].rsplit(b"}\n", 1)[0]
    two = b"module {\n" + body + body.replace(b"@softmax", b"@other") + b"}\n"
    with pytest.raises(ProgramError) as refused:
        check_text(two)
    assert refused.value.code == "several_functions"


def test_a_vendors_own_operation_is_refused(programs):
    text = text_of(programs["softmax"]).replace(
        b"    tt.return", b"    gpu.barrier\n    tt.return"
    )
    with pytest.raises(ProgramError, match=r"gpu\.barrier") as refused:
        check_text(text)
    assert refused.value.code == "operation_not_allowed"


@pytest.mark.parametrize(
    "changes",
    [
        {"entry": "another"},
        {"arguments": (Argument("x", "*fp32", None), Argument("y", "*fp32", None))},
        {
            "arguments": (
                Argument("x", "*fp32", None),
                Argument("y", "*fp32", None),
                Argument("n", "i64", "n"),
            )
        },
    ],
)
def test_a_signature_that_is_not_the_kernels_is_refused(programs, changes):
    good = programs["softmax"]
    with pytest.raises(ProgramError) as refused:
        compiled(with_text(good, text_of(good), **changes))
    assert refused.value.code == "wrong_signature"


def test_another_version_of_triton_is_refused_with_both_versions(programs):
    good = programs["softmax"]
    with pytest.raises(ComputeError, match=r"3\.6\.1.*3\.7") as refused:
        compiled(with_text(good, text_of(good), triton="3.6.1"))
    assert refused.value.code == "triton_version"


def test_a_kernel_that_takes_more_shared_memory_than_the_card_has_is_not_for_it(programs):
    kernel = load(programs["product"].program_id, programs["product"].blobs)
    with pytest.raises(ComputeError, match="shared memory") as refused:
        compile_kernel(kernel, target_named("sm_80"), 1024)
    assert refused.value.code == "not_for_this_card"


@pytest.mark.parametrize(
    ("number", "typed"),
    [
        (3, ("i32", 3)),
        (1 << 31, ("i64", 1 << 31)),
        (2.5, ("fp32", 2.5)),
        ("n", ("i32", "n")),
        (("i64", "n"), ("i64", "n")),
        (("fp16", 2), ("fp16", 2.0)),
        (True, ("i32", 1)),
        (np.float32(1.5), ("fp32", 1.5)),
        (np.int64(7), ("i32", 7)),
    ],
)
def test_a_number_gets_its_type_and_one_form(number, typed):
    found = lower._typed(number)
    assert found == typed
    assert type(found[1]) is type(typed[1])


@pytest.mark.parametrize("number", [None, [3], ("i32", None)])
def test_what_is_no_number_is_refused(number):
    with pytest.raises(ProgramError) as refused:
        lower._typed(number)
    assert refused.value.code == "wrong_parameters"


@pytest.mark.parametrize(
    "text", ["", "float32", "float32[n", "[n]", "float32[n;m]", "float32[-1]"]
)
def test_a_shape_that_says_nothing_is_refused(text):
    with pytest.raises(ProgramError) as refused:
        kernel._port("x", text)
    assert refused.value.code == "bad_port"


def test_shapes_and_grids_are_read_as_they_are_written():
    assert kernel._port("x", "float32[rows, 128]") == Port("x", "float32", ("rows", 128))
    assert kernel._port("x", " int8 [] ") == Port("x", "int8", ())
    assert kernel._extent(3) == Extent(3)
    assert kernel._extent(("n", 64)) == Extent("n", 64)
    with pytest.raises(ProgramError) as refused:
        kernel._extent(lambda meta: meta["n"])
    assert refused.value.code == "bad_grid"


def test_under_the_interpreter_lowering_says_so():
    with pytest.raises(ProgramError, match="TRITON_INTERPRET") as refused:
        user_kernels.programs()
    assert refused.value.code == "not_a_kernel"


def test_a_blob_that_is_not_there_is_named(programs):
    good = programs["softmax"]
    for blobs in ({}, {good.program_id: encode(good.manifest)}):
        with pytest.raises(ProgramError) as refused:
            load(good.program_id, blobs)
        assert refused.value.code == "missing_blob"


def test_nothing_of_the_parser_stays_open(programs):
    kernel = load(programs["softmax"].program_id, programs["softmax"].blobs)
    before = len(list(Path("/proc/self/fd").iterdir()))
    parse(kernel, make_backend(target_named("gfx942")))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
