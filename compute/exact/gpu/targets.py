"""Compiling kernels ahead of time, for cards that need not be here.

Part of *execute*. Triton brings all that it takes: LLVM for AMD's cards, ptxas for
NVIDIA's. What comes out is the code of one card's generation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import triton
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


def compile_for(variant: Variant, target: Target) -> Compiled:
    """Compile a kernel, with no card.

    Raises:
        Exception: Triton's own, of many kinds: the kernel is not for this target.
    """
    source = ASTSource(
        fn=variant.kernel,
        signature={**variant.signature, **dict.fromkeys(variant.constants, "constexpr")},
        constexprs=dict(variant.constants),
    )
    done = triton.compile(
        source,
        target=GPUTarget(target.backend, target.arch, target.lanes),
        options=variant.options(target.backend),
    )
    binary, assembly = ("cubin", "ptx") if target.backend == "cuda" else ("hsaco", "amdgcn")
    return Compiled(done.asm[binary], done.asm[assembly], done.metadata.shared)
