"""A plan compiled by `torch.compile`, once for each set of shapes it meets.

Part of *execute*, and off unless asked for. The plan is run once on the inputs while torch
records what it does, sizes being plain numbers then; what was recorded is compiled. A plan
that looks at data on the way (a Loop, a NonZero) cannot be recorded and runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeAlias

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from shoal.compute.errors import ProgramError
from shoal.compute.torch_graph.errors import FAILURES, is_device_lost, is_out_of_memory

if TYPE_CHECKING:
    from shoal.compute.torch_graph.graph import Plan
    from shoal.compute.torch_graph.node import Run, Tensor

SHAPES_LIMIT: Final = 16
"""Sets of shapes for which one program is compiled; beyond it, it runs as it is."""

_Function: TypeAlias = Callable[..., "tuple[list[Tensor], list[Tensor]]"]


class Compiled:
    """Compiled versions of one plan.

    Args:
        plan: The plan.
        run: A lazy run of its device and class.
        backend: Of ``torch.compile``.
    """

    def __init__(self, plan: Plan, run: Run, backend: str = "inductor") -> None:
        self._plan = plan
        self._run = run
        self._backend = backend
        self._of_shapes: dict[object, _Function | None] = {}

    def run(self, inputs: Mapping[str, Tensor]) -> list[Tensor] | None:
        """The outputs; None where the plan must run as it is, which also names errors."""
        names = list(inputs)
        tensors = [inputs[name] for name in names]
        # Small integers may be sizes, which are recorded as numbers.
        key = tuple(
            (x.dtype, tuple(x.shape), tuple(x.reshape(-1).tolist()) if _is_shape(x) else None)
            for x in tensors
        )
        if key not in self._of_shapes:
            if len(self._of_shapes) >= SHAPES_LIMIT:
                return None
            self._of_shapes[key] = self._compiled(names, tensors)
        function = self._of_shapes[key]
        if function is None:
            return None
        outputs, held = function(*[x for x in tensors if not _is_shape(x)])
        return outputs if all(bool(flag) for flag in held) else None

    def _compiled(self, names: list[str], tensors: list[Tensor]) -> _Function | None:
        fixed = {n: x for n, x in zip(names, tensors, strict=True) if _is_shape(x)}
        moving = [n for n in names if n not in fixed]

        def walk(*values: Tensor) -> tuple[list[Tensor], list[Tensor]]:
            run = replace(self._run, doubts=[])
            outputs = self._plan.run({**fixed, **dict(zip(moving, values, strict=True))}, run)
            return outputs, [doubt.held for doubt in run.doubts]

        try:
            recorded = make_fx(walk, tracing_mode="real")(
                *[x for x in tensors if not _is_shape(x)]
            )
        except (ProgramError, *FAILURES) as error:
            if is_out_of_memory(error) or is_device_lost(error):
                raise
            return None
        compiled: _Function = torch.compile(recorded, backend=self._backend, dynamic=False)
        return compiled


def _is_shape(x: Tensor) -> bool:
    return x.ndim <= 1 and not x.dtype.is_floating_point and x.numel() <= 64
