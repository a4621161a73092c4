"""What a failure of a card's runtime means: for the unit, for its worker and for the card.

Part of *execute*. Pure. torch, ONNX Runtime, Triton and the drivers below raise errors of
many kinds, with the runtime's own name for what happened in their text; there is no other
way to tell them apart. Names are those of CUDA's ``cudaError_t`` and HIP's ``hipError_t``,
texts those of ``cudaGetErrorString`` and ``hipGetErrorString``.
"""

from __future__ import annotations

from typing import Final

from shoal.compute.errors import ComputeError

LOST: Final = "device_lost"
"""The card computes nothing more: no unit of anybody's will run on it."""

FAILED: Final = "device_failed"
"""The card failed under this unit, and its worker's process is of no more use."""

ENDS_WORKER: Final = frozenset({LOST, FAILED})
"""After one of these the process ends: a driver's context does not recover."""

_OUT_OF_MEMORY: Final = (
    "out of memory",
    "memoryallocation",
    "outofmemory",
    "status_alloc_failed",
)

_RUNTIMES: Final = ("cuda", "hip", "rocm", "hsa", "nvidia", "gpu")

_GONE: Final = (
    "no cuda-capable device",
    "no rocm-capable device",
    "no cuda gpus are available",
    "no hip gpus are available",
    "errornodevice",
    "invalid device ordinal",
    "errorinvaliddevice",
    "busy or unavailable",
    "errordevicesunavailable",
    "ecc error",
    "eccuncorrectable",
    "eccnotcorrectable",
    "nvlink error",
    "nvlinkuncorrectable",
    "gpu is lost",
    "fallen off the bus",
    "hardware exception",
    "system not yet initialized",
    "errorsystemnotready",
    "unknown error",
    "errorunknown",
    "driver shutting down",
    "errordeinitialized",
    "initialization error",
    "errornotinitialized",
)

_BROKEN: Final = (
    "cuda error",
    "hip error",
    "cuda driver error",
    "cuda failure",  # as ONNX Runtime calls an error
    "hip failure",
    "triton error",
    "cublas_status",
    "rocblas_status",
    "hipblas_status",
    "cudnn_status_execution_failed",
    "cudnn_status_internal_error",
    "illegal memory access",
    "launch failure",
    "device-side assert",
    "misaligned address",
    "illegal instruction",
)


def fault_of(error: BaseException, device: str, limit_bytes: int) -> ComputeError | None:
    """What a card's runtime meant by an error; None where that was no fault of a card.

    Args:
        error: What an executor raised.
        device: The card's id, for the sentence.
        limit_bytes: What the unit may use of its memory.
    """
    if isinstance(error, ComputeError):
        return None
    text = f"{type(error).__name__}: {error}".lower()
    if not any(name in text for name in _RUNTIMES):
        return None
    if any(sign in text for sign in _OUT_OF_MEMORY):
        return over_memory(device, limit_bytes)
    said = " ".join(str(error).split())[:200]
    if any(sign in text for sign in _GONE):
        return ComputeError(
            f"the card {device} is gone: {said}",
            code=LOST,
            hint="another node may run it; the owner of this one sees by `shoal devices` what "
            "to do about the card",
        )
    if any(sign in text for sign in _BROKEN):
        return ComputeError(
            f"the card {device} failed while the unit ran: {said}",
            code=FAILED,
            hint="try another node; a unit at which cards fail everywhere is at fault itself",
        )
    return None


def over_memory(device: str, limit_bytes: int) -> ComputeError:
    """A unit that wants more of a card's memory than it may have, or than is free."""
    return ComputeError(
        f"the unit needs more memory of {device} than its limit of {limit_bytes / 1e6:.0f} MB, "
        "or than is free there",
        code="memory_limit",
        hint="ask for more memory, or split the inputs into smaller batches",
    )
