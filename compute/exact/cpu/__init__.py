"""The exact class on CPUs: numba and BLAS, the bits of the reference.

Part of *execute*. Importing ``kernels`` compiles all of them, or loads them from the
disk; ``CpuKernels`` is looked up there only when it is asked for, so that
``python -m shoal.compute.exact.cpu`` can first wait for its turn to compile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.compute.exact.cpu.kernels import CpuKernels

__all__ = ["CpuKernels"]


def __getattr__(name: str) -> Any:
    if name == "CpuKernels":
        from shoal.compute.exact.cpu.kernels import CpuKernels

        return CpuKernels
    raise AttributeError(name)
