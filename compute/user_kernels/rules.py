"""Which texts are kernels: the rules that hold before any parser sees the text.

Triton IR is data and no less dangerous for it: it can hold assembly, call functions of
libraries, and print. So what is taken is what Triton's own printer writes for operations of
a list, without debug locations, and nothing else: one function, no symbol but its name, no
string but an operation's name. `shoal.compute.user_kernels.parsing` looks again at what the
parser made of it.

Pure, and without Triton: a submitter's process and tests use it, and the worker first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from shoal.compute.errors import ProgramError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shoal.crypto.content import Buffer

TTIR_LIMIT_BYTES: Final = 4 << 20
"""A kernel's text; the largest that people write have some 100 KB."""

DEPTH_LIMIT: Final = 64
"""How deep brackets nest: a parser goes as deep, on its stack."""

_OPERATIONS: Final = """
builtin.module tt.func tt.return
tt.addptr tt.advance tt.atomic_cas tt.atomic_rmw tt.bitcast tt.broadcast tt.cat tt.clampf
tt.dot tt.dot_scaled tt.expand_dims tt.fp_to_fp tt.gather tt.get_num_programs
tt.get_program_id tt.histogram tt.int_to_ptr tt.join tt.load tt.make_range
tt.make_tensor_ptr tt.map_elementwise tt.map_elementwise.return tt.mulhiui tt.precise_divf
tt.precise_sqrt tt.ptr_to_int tt.reduce tt.reduce.return tt.reshape tt.scan tt.scan.return
tt.splat tt.split tt.store tt.trans tt.unsplat
arith.addf arith.addi arith.addui_extended arith.andi arith.bitcast arith.ceildivsi
arith.ceildivui arith.cmpf arith.cmpi arith.constant arith.divf arith.divsi arith.divui
arith.extf arith.extsi arith.extui arith.floordivsi arith.fptosi arith.fptoui
arith.index_cast arith.index_castui arith.maximumf arith.maxnumf arith.maxsi arith.maxui
arith.minimumf arith.minnumf arith.minsi arith.minui arith.mulf arith.muli
arith.mulsi_extended arith.mului_extended arith.negf arith.ori arith.remf arith.remsi
arith.remui arith.select arith.shli arith.shrsi arith.shrui arith.sitofp arith.subf
arith.subi arith.truncf arith.trunci arith.uitofp arith.xori
math.absf math.absi math.ceil math.cos math.erf math.exp math.exp2 math.floor math.fma
math.log math.log2 math.rsqrt math.sin math.sqrt
scf.condition scf.for scf.if scf.while scf.yield
cf.br cf.cond_br
ub.poison
"""

OPERATIONS: Final = frozenset(_OPERATIONS.split())
"""What a kernel may do: arithmetic, tensors, loads and stores, atomics, loops, branches.

Not on it, for a reason that `_REFUSED` gives: assembly, external functions, output. Not on
it either: calls (Triton inlines them), descriptors (lowering writes them as pointers), and
every dialect of one vendor.
"""

_OTHERS: Final = """
tt.ptr
tt.divisibility tt.contiguity tt.constancy tt.num_stages tt.loop_unroll_factor
tt.disallow_acc_multi_buffer tt.flatten tt.warp_specialize
"""

_OTHER_WORDS: Final = frozenset(_OTHERS.split())
"""Dotted words that are no operations: a type, facts about arguments, hints for loops."""


@dataclass(frozen=True, slots=True)
class _Refused:
    """Operations that people do write, and that are refused with a reason of their own."""

    begins: tuple[str, ...]
    code: str
    why: str
    hint: str


_REFUSED: Final = (
    _Refused(
        ("tt.elementwise_inline_asm",),
        "inline_assembly",
        "is assembly, which no rule can look into",
        "write it with Triton's own functions",
    ),
    _Refused(
        ("tt.extern_elementwise", "tt.call", "func.", "llvm.call"),
        "external_call",
        "calls a function that is not in the kernel",
        "write it with triton.language's own functions, such as tl.exp, in place of "
        "libdevice's; and leave noinline out",
    ),
    _Refused(
        ("tt.print", "tt.assert", "cf.assert", "gpu.printf"),
        "kernel_prints",
        "writes to the provider's output",
        "take device_print and device_assert out; a kernel's results are its tensors",
    ),
)

# Nothing here looks at a character more than a few times, however the text is made.
_WORD: Final = re.compile(r"(?<![\w$])[\w$]++(?:\.[\w$]++)+")
_NUMBER: Final = re.compile(r"\d+\.\d+(?:[eE]\d*)?\Z")
_STRING: Final = re.compile(r'"([^"\n]*)"')
_HEX: Final = re.compile(r"0x[0-9A-Fa-f]*\Z")
_COMMENT: Final = re.compile(r"^ *\^bb\d+[^\n]*:  // (?:pred|\d+ preds|no predecessors)\b.*$")
_LOCATION: Final = re.compile(r"\bloc\(|^#loc", re.MULTILINE)
_HEAD: Final = re.compile(
    r"module \{\n  tt\.func public @(?P<name>[A-Za-z_]\w*)\([^\n]*\) "
    r"attributes \{noinline = false\} \{\n"
)
_TAIL: Final = "  }\n}\n"
_BRACKETS: Final = re.compile(r"->|[][(){}<>]")


def check_text(ttir: Buffer) -> str:
    """Check that a text may be parsed.

    Args:
        ttir: The kernel, as Triton prints it, without debug locations.

    Returns:
        The text.

    Raises:
        ProgramError: ``kernel_too_large``, ``not_ttir``, ``debug_locations``,
            ``inline_assembly``, ``external_call``, ``kernel_prints``,
            ``operation_not_allowed`` or ``several_functions``.
    """
    size_bytes = memoryview(ttir).nbytes
    if size_bytes > TTIR_LIMIT_BYTES:
        raise ProgramError(
            f"a kernel of {size_bytes} bytes is over the limit of {TTIR_LIMIT_BYTES}",
            code="kernel_too_large",
            hint="make its blocks smaller, or unroll less",
        )
    data = bytes(ttir)
    if not data.isascii() or any(byte < 0x20 and byte != 0x0A for byte in set(data)):
        raise _not_ttir("it is no plain text")
    text = data.decode("ascii")
    if _LOCATION.search(text):
        raise ProgramError(
            "the kernel holds debug locations, which name its author's files",
            code="debug_locations",
            hint="lower it with `shoal.kernel`, which leaves them out",
        )
    if not text.startswith(("module", "#")):
        raise _not_ttir("it does not begin with a module")
    _check_comments(text)
    check_operations(
        word[0]
        for word in _WORD.finditer(text)
        if word[0] not in _OTHER_WORDS and _NUMBER.match(word[0]) is None
    )
    _check_strings(text)
    if _HEAD.match(text) is None or not text.endswith(_TAIL):
        several = text.count("tt.func") != 1
        raise _several() if several else _not_ttir("it is no module of one public function")
    if text.count("tt.func") != 1 or text.count("@") != 1:
        raise _several()
    _check_depth(text)
    return text


def check_operations(names: Iterable[str]) -> None:
    """Check that these operations are all allowed.

    Raises:
        ProgramError: ``inline_assembly``, ``external_call``, ``kernel_prints`` or
            ``operation_not_allowed``, naming the operation.
    """
    for name in names:
        if name in OPERATIONS:
            continue
        for refused in _REFUSED:
            if name.startswith(refused.begins):
                raise ProgramError(
                    f"the kernel's {name} {refused.why}",
                    code=refused.code,
                    hint=refused.hint,
                    operator=name[:64],
                )
        raise ProgramError(
            f"the kernel has {name[:80]!r}, which is not among the operations that are taken",
            code="operation_not_allowed",
            hint="docs/KERNELS.md lists them; tl.assume and tl.debug_barrier give others",
            operator=name[:64],
        )


def entry_of(text: str) -> str:
    """The function's name, of a text that was checked."""
    head = _HEAD.match(text)
    assert head is not None
    return head["name"]


def _check_strings(text: str) -> None:
    """A string is an operation's name or a constant's bytes: never text of its author's."""
    for string in _STRING.finditer(text):
        if string[1] not in OPERATIONS and _HEX.match(string[1]) is None:
            raise _not_ttir(f"it holds the string {string[1][:40]!r}")
    if _STRING.sub("", text).count('"'):
        raise _not_ttir("a string in it has no end")


def _check_comments(text: str) -> None:
    """Comments are the printer's own, and aliases and resources there are none."""
    for line in text.splitlines():
        if "//" in line and _COMMENT.match(line) is None:
            raise _not_ttir("it holds comments")
        if line.lstrip().startswith(("#", "!")) or "{-#" in line:
            raise _not_ttir(
                "it holds aliases or resources, as loop hints like disable_licm give"
            )


def _check_depth(text: str) -> None:
    depth = 0
    for bracket in _BRACKETS.finditer(text):
        if bracket[0] == "->":
            continue
        depth += 1 if bracket[0] in "[({<" else -1
        if not 0 <= depth <= DEPTH_LIMIT:
            raise _not_ttir(f"its brackets do not match, or nest deeper than {DEPTH_LIMIT}")
    if depth:
        raise _not_ttir("its brackets do not match")


def _several() -> ProgramError:
    return ProgramError(
        "the kernel is more than one function, or names symbols beside its own",
        code="several_functions",
        hint="leave noinline=True out, so that Triton writes the functions that a kernel calls "
        "into it",
    )


def _not_ttir(why: str) -> ProgramError:
    return ProgramError(
        f"this is no Triton IR as `shoal.kernel` writes it: {why}",
        code="not_ttir",
        hint="lower the kernel again with `shoal.kernel`",
    )
