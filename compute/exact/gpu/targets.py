"""Compiling kernels ahead of time, for cards that need not be here.

Part of *execute*. Triton brings all that it takes: LLVM for AMD's cards, ptxas for
NVIDIA's. What comes out is the code of one card's generation.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

if TYPE_CHECKING:
    from shoal.compute.exact.gpu.variants import Variant


@dataclass(frozen=True, slots=True)
class Target:
    """A generation of cards.

    Attributes:
        name: As its vendor writes it, such as ``sm_90`` or ``gfx942``.
        backend: Triton's, ``cuda`` or ``hip``.
        arch: How that backend names it.
        lanes: Threads of a warp.
        shared_bytes: Memory that the threads of one program may share.
    """

    name: str
    backend: str
    arch: int | str
    lanes: int
    shared_bytes: int


TARGETS: Final = {
    target.name: target
    for target in (
        Target("sm_80", "cuda", 80, 32, 163 << 10),
        Target("sm_90", "cuda", 90, 32, 227 << 10),
        Target("gfx90a", "hip", "gfx90a", 64, 64 << 10),
        Target("gfx942", "hip", "gfx942", 64, 64 << 10),
        Target("gfx1100", "hip", "gfx1100", 32, 64 << 10),
    )
}


ALIGNMENT: Final = 16
"""Triton compiles a kernel anew where a size is a multiple of it: loads of 16 bytes at once."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A kernel's code for one target.

    Attributes:
        binary: A cubin or hsaco.
        assembly: The same for people: PTX or AMD's assembly.
        shared_bytes: Of a program's shared memory.
    """

    binary: bytes
    assembly: str
    shared_bytes: int


@dataclass(frozen=True, slots=True)
class Registers:
    """What a kernel's threads take.

    Attributes:
        count: Registers of a thread; on AMD's cards the vector ones.
        spilled_bytes: Of a thread's memory in place of registers, in local memory: slow
            where a loop uses it.
    """

    count: int
    spilled_bytes: int


def compile_for(variant: Variant, target: Target, *, aligned: bool = False) -> Compiled:
    """Compile a kernel, with no card.

    Args:
        variant: The kernel.
        target: For which cards.
        aligned: As a launch compiles it whose sizes are multiples of `ALIGNMENT`; else nothing
            is known of them.

    Raises:
        Exception: Triton's own, of many kinds: the kernel is not for this target.
    """
    attributes = {}
    if aligned:
        places = [variant.kernel.arg_names.index(name) for name in variant.signature]
        attributes = {(place,): [["tt.divisibility", ALIGNMENT]] for place in places}
    source = ASTSource(
        fn=variant.kernel,
        signature={**variant.signature, **dict.fromkeys(variant.constants, "constexpr")},
        constexprs=dict(variant.constants),
        attrs=attributes,
    )
    done = triton.compile(
        source,
        target=GPUTarget(target.backend, target.arch, target.lanes),
        options=variant.options(target.backend),
    )
    binary, assembly = ("cubin", "ptx") if target.backend == "cuda" else ("hsaco", "amdgcn")
    return Compiled(done.asm[binary], done.asm[assembly], done.metadata.shared)


def registers_of(done: Compiled, target: Target) -> Registers:
    """Read what a compiled kernel's threads take: AMD's assembly says it, a cubin's header too.

    Raises:
        OSError: NVIDIA's cuobjdump, which Triton brings, does not run here.
    """
    if target.backend == "hip":
        return Registers(
            _number(r"\.vgpr_count: +(\d+)", done.assembly),
            _number(r"\.private_segment_fixed_size: +(\d+)", done.assembly),
        )
    with TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(done.binary)
        tool: Any = knobs.nvidia.cuobjdump
        said = subprocess.run(  # noqa: S603  # Triton's own, on what Triton made
            [tool.path, "-res-usage", str(cubin)], capture_output=True, text=True, check=True
        ).stdout
    return Registers(_number(r"REG:(\d+)", said), _number(r"STACK:(\d+)", said))


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise OSError(f"nothing says {pattern}")
    return int(found[1])
