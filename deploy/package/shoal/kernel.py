"""A Triton kernel as a program: what a submitter calls before anything is submitted.

Triton lowers the kernel to its own IR here, in the submitter's process, and that text is
what travels: no Python, no binary, no path of the author's machine. The provider compiles it
for its own card, NVIDIA's or AMD's::

    import shoal, shoal.kernel
    import triton
    import triton.language as tl

    @triton.jit
    def scale(x, y, n, factor, BLOCK: tl.constexpr):
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(y + at, factor * tl.load(x + at, mask=at < n), mask=at < n)

    scaled = shoal.kernel.program(
        scale,
        inputs={"x": "float32[n]"},
        outputs={"y": "float32[n]"},
        numbers={"n": "n", "factor": 3.0},
        constants={"BLOCK": 1024},
        grid=[("n", 1024)],
    )
    with shoal.Client() as client:
        y = client.run(scaled, {"x": array})["y"]

Needs the extra ``gpu``, the very version of Triton that providers have, and no GPU. What a
kernel may do is in docs/KERNELS.md.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeAlias

from shoal.compute.errors import ProgramError
from shoal.compute.kernel_manifest import Extent, KernelProgram
from shoal.compute.manifest import Port
from shoal.compute.user_kernels.lower import lower

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Number: TypeAlias = "int | float | str"
Programs: TypeAlias = "int | str | tuple[int | str, int]"

__all__ = ["program"]


def program(
    function: Any,
    *,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    grid: Sequence[Programs],
    numbers: Mapping[str, Number | tuple[str, Number]] | None = None,
    constants: Mapping[str, Any] | None = None,
    warps: int = 4,
    stages: int = 2,
) -> KernelProgram:
    """Lower a kernel.

    Each of the function's parameters is named once: as a tensor, a number or a constant; a
    tensor that is changed in place is an input and an output, of one shape.

    Args:
        function: A function under ``@triton.jit``.
        inputs: Dtype and shape of each tensor that comes in, such as ``float32[rows, n]``
            or ``int8[4, 128]``. A symbol stands for one size throughout a unit. Tensors are
            contiguous, the last axis innermost.
        outputs: The same of each that goes out. One that is no input too is zeros before
            the kernel runs. Its symbols are those of inputs.
        grid: Programs along up to three axes, each a number, a symbol, or
            ``(symbol or number, block)``: that divided by ``block``, rounded up.
        numbers: Of each scalar argument: a number, or the symbol whose size it gets. It is
            an ``i32`` or ``fp32``; another type comes before it: ``("i64", "n")``.
        constants: The value of each ``tl.constexpr``.
        warps: Warps that run one program.
        stages: Loads under way ahead of a loop's turn.

    Returns:
        The program, for `shoal.Client.run` and `shoal.Client.map`; its numeric class is
        ``kernel``.

    Raises:
        ProgramError: ``not_a_kernel``, ``wrong_parameters``, ``bad_port``, ``bad_grid``,
            ``not_lowered``, or the code of the rule that the kernel breaks, such as
            ``inline_assembly`` or ``external_call``.
    """
    return lower(
        function,
        _ports(inputs),
        _ports(outputs),
        numbers or {},
        constants or {},
        [_extent(one) for one in grid],
        warps,
        stages,
    )


def _extent(programs: Programs) -> Extent:
    size, per = programs if isinstance(programs, tuple) else (programs, 1)
    if not isinstance(size, int | str) or not isinstance(per, int):
        raise ProgramError(
            f"{programs!r:.80} says no number of programs",
            code="bad_grid",
            hint='write a number, a symbol such as "n", or ("n", 64): n divided by 64',
        )
    return Extent(size, per)


def _ports(texts: Mapping[str, str]) -> list[Port]:
    return [_port(name, text) for name, text in texts.items()]


def _port(name: str, text: str) -> Port:
    found = re.fullmatch(r"\s*(\w+)\s*\[([^][]*)\]\s*", text)
    sizes = [size.strip() for size in found[2].split(",")] if found and found[2].strip() else []
    if found is None or not all(re.fullmatch(r"\d+|[A-Za-z_]\w*", size) for size in sizes):
        raise ProgramError(
            f"{text[:80]!r}, of {name!r}, is no dtype and shape",
            code="bad_port",
            hint="write it such as float32[rows, 128]",
        )
    return Port(name, found[1], tuple(int(size) if size.isdigit() else size for size in sizes))
