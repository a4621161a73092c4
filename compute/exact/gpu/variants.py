"""A kernel with its constants chosen: what is compiled, ahead of time or when first used.

Part of *execute*. Whoever launches a kernel names a `Variant`, and each module lists all
that it ever launches: so what compiles ahead of time with no card is what runs on one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Variant:
    """One kernel as it is compiled.

    Attributes:
        kernel: The function under `triton.jit`.
        signature: Triton's type of each argument that is no constant, by name. The kernel
            declares those of whole numbers, ``tl.int64``, or a launch would take int32 where
            the value fits, and a constant where it is 1: code that nobody compiled before.
        constants: Those that are.
        warps: How many warps run one program of it.
        stages: How many loads are under way ahead of a loop's turn.
    """

    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    warps: int = 4
    stages: int = 2

    @property
    def name(self) -> str:
        """Such as ``unary[NAME=exp, BLOCK=1024]``."""
        chosen = ", ".join(f"{name}={value}" for name, value in self.constants.items())
        return f"{self.kernel.__name__}[{chosen}]"

    def options(self, backend: str) -> dict[str, Any]:
        """What the compiler is told: no operation is ever fused with another.

        Args:
            backend: Triton's, ``cuda`` or ``hip``. AMD's cards have 64 KiB of memory that a
                program's threads share, so that fewer loads are under way there.
        """
        return {
            "num_warps": self.warps,
            "num_stages": self.stages if backend == "cuda" else min(self.stages, 2),
            "enable_fp_fusion": False,
        }
