"""What torch says when something fails, in the family it belongs to.

Part of *execute*. Torch has one class for almost everything, so its words decide: no memory
and a lost device are this node's trouble, and any other failure is the program's.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import torch

from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.graph import printable

if TYPE_CHECKING:
    from shoal.compute.torch_graph.node import Node

FAILURES: Final = (
    RuntimeError,
    MemoryError,
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    AssertionError,
)
"""What is raised where an operator cannot be computed: attributes may say anything."""

_OUT_OF_MEMORY: Final = re.compile(
    r"out of memory|out_of_(device|host|resources)|can't allocate memory|"
    r"not enough memory|bad_alloc|STATUS_ALLOC_FAILED|ErrorMemoryAllocation|"
    r"Invalid buffer size|Storage size calculation overflowed",
    re.IGNORECASE,
)
_DEVICE_LOST: Final = re.compile(
    r"device-side assert|unspecified launch failure|launch timed out|illegal memory access|"
    r"(cuda|hip)Error(NoDevice|DeviceUnavailable|DevicesUnavailable|LaunchFailure|Assert|"
    r"LaunchTimeOut|IllegalAddress|ECCUncorrectable|ContextIsDestroyed|NotInitialized|Unknown)\b|"
    r"no (CUDA|HIP|ROCm)-capable device|No (CUDA|HIP) GPUs are available|"
    r"busy or unavailable|uncorrectable ECC|device.lost|fallen off the bus|"
    r"unspecified driver error",
    re.IGNORECASE,
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a failure is for lack of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))


def is_device_lost(error: Exception) -> bool:
    """Whether a failure says that the device can compute nothing any more."""
    return isinstance(error, RuntimeError) and bool(_DEVICE_LOST.search(str(error)))


def translated(error: Exception, node: Node | None = None) -> ComputeError | ProgramError:
    """An error of torch's as one of ours.

    Args:
        error: Of `FAILURES`.
        node: Where it happened; None where that is not known.

    Returns:
        A `ComputeError` ``memory_limit`` or ``device_lost``, or a `ProgramError`
        ``operator_failed``, each with node and operator.
    """
    name, operator = (node.name, printable(node.operator)) if node else ("", "")
    place = f" at node {name!r} ({operator})" if node else ""
    if is_out_of_memory(error):
        return ComputeError(
            f"the program failed{place}: it needs more memory than there is",
            code="memory_limit",
            hint="ask for more memory, or split the inputs into smaller batches",
            node=name,
            operator=operator,
        )
    said = printable(str(error).strip().split("\n")[0] or type(error).__name__, 300)
    if is_device_lost(error):
        # A card tells late: what failed may be a node before this one.
        return ComputeError(
            f"the device was lost{place} or before it: {said}",
            code="device_lost",
            hint="the worker must be started anew; `shoal doctor` looks at the device",
            node=name,
            operator=operator,
        )
    return ProgramError(
        f"the program failed{place}: {said}",
        code="operator_failed",
        node=name,
        operator=operator,
    )
