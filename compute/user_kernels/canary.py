"""The kernel that shows that an executor of users' kernels works: the whole way, once.

Part of *execute*. It is lowered where it runs, by the Triton that is there, as a user's is.
"""

from __future__ import annotations

from typing import Final

import triton
import triton.language as tl

from shoal.compute.kernel_manifest import Extent, KernelProgram
from shoal.compute.manifest import Port
from shoal.compute.user_kernels.lower import lower

BLOCK: Final = 64
SIZE: Final = 2 * BLOCK + 1


@triton.jit  # type: ignore[untyped-decorator]
def canary_kernel(x, y, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, N803  # Triton's ways
    """Write 3·x + its place: loads, stores, a mask, more programs than one."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    tl.store(y + at, 3 * tl.load(x + at, mask=inside) + at, mask=inside)


def canary() -> KernelProgram:
    """The kernel as a program.

    Raises:
        ProgramError: ``not_a_kernel`` under Triton's interpreter.
    """
    return lower(
        canary_kernel,
        inputs=[Port("x", "int32", ("n",))],
        outputs=[Port("y", "int32", ("n",))],
        numbers={"n": "n"},
        constants={"BLOCK": BLOCK},
        grid=[Extent("n", BLOCK)],
        warps=2,
        stages=1,
    )
