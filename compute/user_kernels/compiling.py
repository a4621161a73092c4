"""The code of a user's kernel for one generation of cards, which need not be here.

Part of *execute*, inside a worker. Triton's stages are run one after another, without its
cache on disk: what a stranger's kernel was compiled to is never found there by another's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shoal.compute.errors import ComputeError
from shoal.compute.graph import printable
from shoal.compute.user_kernels.parsing import LoadedKernel, check_version, parse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from triton.backends.compiler import GPUTarget


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """A kernel's code for one target.

    Attributes:
        binary: A cubin or hsaco.
        extension: Which: ``cubin`` or ``hsaco``.
        metadata: What Triton's launcher needs beside it.
    """

    binary: bytes
    extension: str
    metadata: Mapping[str, Any]

    @property
    def shared_bytes(self) -> int:
        """Memory that the threads of one program share."""
        return int(self.metadata["shared"])


def compile_kernel(
    kernel: LoadedKernel, target: GPUTarget, shared_limit_bytes: int | None = None
) -> CompiledKernel:
    """Parse a kernel, look at it again, and compile it.

    Args:
        kernel: What `parsing.load` gave.
        target: A generation of cards.
        shared_limit_bytes: What one program may share on such a card, where that is known.

    Raises:
        ComputeError: ``triton_version``; ``not_for_this_card``: it does not compile for
            this target, or takes more shared memory than that has.
        ProgramError: As `parsing.parse`.
    """
    import triton
    from triton.backends.compiler import Language
    from triton.compiler.compiler import make_backend

    check_version(kernel.manifest, triton.__version__)
    backend = make_backend(target)
    module = parse(kernel, backend)
    options = backend.parse_options(
        {"num_warps": kernel.manifest.warps, "num_stages": kernel.manifest.stages}
    )
    metadata: dict[str, Any] = {
        "hash": str(kernel.program_id),
        "target": target,
        **options.__dict__,
        "triton_version": triton.__version__,
    }
    stages: dict[str, Any] = {}
    backend.add_stages(stages, options, Language.TRITON)
    made = module
    try:
        for stage in stages.values():
            made = stage(made, metadata)
    # A compiler may fail in any way at a stranger's text; a crash ends the worker.
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise _not_for(target, printable(said, 200)) from error
    compiled = CompiledKernel(bytes(made), backend.binary_ext, metadata)
    if shared_limit_bytes is not None and compiled.shared_bytes > shared_limit_bytes:
        raise _not_for(
            target,
            f"it takes {compiled.shared_bytes} bytes of shared memory, and such a card has "
            f"{shared_limit_bytes}",
        )
    return compiled


def _not_for(target: GPUTarget, why: str) -> ComputeError:
    arch = f"sm_{target.arch}" if target.backend == "cuda" else target.arch
    return ComputeError(
        f"the kernel does not compile for {arch}: {why}",
        code="not_for_this_card",
        hint="lower it with smaller blocks or fewer stages; another provider's card may take "
        "it as it is",
    )
