"""The few functions of AMD's management library that detection calls, by ctypes.

ROCm brings ``libamd_smi.so``, and its own Python package for exactly that version; the
one on PyPI prints and raises where the library is not there, and lays out structures
as one version of ROCm does. So here are only calls whose form has been the same from
ROCm 6.1 (library 24.5) to 7 (26): handles, plain numbers, and structures of which a
leading string is read from a buffer larger than any of them. ``target_graphics_version``
alone lies deeper, where it has lain since library 25 (ROCm 6.4).

Prototypes: amd_smi/amdsmi.h of ROCm.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

OLDEST_MAJOR: Final = 24
_INIT_AMD_GPUS: Final = 1 << 1
_TYPE_AMD_GPU: Final = 1
_MEMORY_VRAM: Final = 0
_BUFFER_BYTES: Final = 16 << 10
"""Larger than every structure that is read from its beginning."""

_UUID_BYTES: Final = 256
_TARGET_SINCE_MAJOR: Final = 25
_TARGET_OFFSET: Final = 800
"""Of ``target_graphics_version`` in ``amdsmi_asic_info_t``: after 3 strings of 256 bytes."""

NOT_SUPPORTED: Final = 2
NO_PERMISSION: Final = 10
DRIVER_NOT_LOADED: Final = 34
_STATUS_NAMES: Final = {
    1: "INVAL",
    NOT_SUPPORTED: "NOT_SUPPORTED",
    6: "DRM_ERROR",
    7: "API_FAILED",
    8: "TIMEOUT",
    NO_PERMISSION: "NO_PERM",
    12: "IO",
    14: "FILE_ERROR",
    16: "INTERNAL_EXCEPTION",
    18: "INIT_ERROR",
    30: "BUSY",
    31: "NOT_FOUND",
    32: "NOT_INIT",
    DRIVER_NOT_LOADED: "DRIVER_NOT_LOADED",
}


class LibraryMissingError(Exception):
    """There is no ``libamd_smi.so``, or one that is too old; says which."""


class StatusError(Exception):
    """A call was answered with an error.

    Args:
        call: The function's name.
        status: Its ``amdsmi_status_t``.
    """

    def __init__(self, call: str, status: int) -> None:
        name = _STATUS_NAMES.get(status, "status")
        super().__init__(f"{call}: {name} ({status})")
        self.status = status


@dataclass(frozen=True, slots=True)
class Gpu:
    """What the library says of one GPU, or of a partition of one.

    ``name``, ``target``, ``driver`` and ``uuid`` are "" where it does not say.
    """

    pci: str
    memory_bytes: int
    memory_used_bytes: int
    name: str
    target: str
    driver: str
    uuid: str


def read_gpus(environment: Mapping[str, str] = os.environ) -> list[Gpu | StatusError]:
    """Each GPU in the library's order, or why it does not answer.

    Args:
        environment: Where ROCM_HOME and ROCM_PATH are looked up.

    Raises:
        LibraryMissingError: The library is not there.
        StatusError: It does not start.
    """
    library = _load(environment)
    version = (ctypes.c_uint32 * 64)()
    _call(library, "amdsmi_init", ctypes.c_uint64(_INIT_AMD_GPUS))
    _call(library, "amdsmi_get_lib_version", version)
    major = version[0]  # until 24 it was called the year
    if major < OLDEST_MAJOR:
        raise LibraryMissingError(f"libamd_smi.so {major} is older than ROCm 6.1's")
    gpus: list[Gpu | StatusError] = []
    for handle in _handles(library):
        try:
            gpus.append(_read(library, handle, major))
        except StatusError as error:
            gpus.append(error)
    return gpus


def _load(environment: Mapping[str, str]) -> ctypes.CDLL:
    rocm = environment.get("ROCM_HOME") or environment.get("ROCM_PATH")
    places = [
        *([f"{rocm}/lib/libamd_smi.so"] if rocm else []),
        "libamd_smi.so",
        *(f"libamd_smi.so.{major}" for major in range(27, OLDEST_MAJOR - 1, -1)),
        "/opt/rocm/lib/libamd_smi.so",
    ]
    for place in places:
        try:
            return ctypes.CDLL(place)
        except OSError:
            continue
    raise LibraryMissingError("libamd_smi.so is not found")


def _call(library: ctypes.CDLL, name: str, *arguments: Any) -> None:
    try:
        function = getattr(library, name)
    except AttributeError:
        raise StatusError(name, NOT_SUPPORTED) from None
    function.restype = ctypes.c_uint32
    status = function(*arguments)
    if status != 0:
        raise StatusError(name, status)


def _handles(library: ctypes.CDLL) -> Iterator[ctypes.c_void_p]:
    for socket in _list(library, "amdsmi_get_socket_handles"):
        for processor in _list(library, "amdsmi_get_processor_handles", socket):
            kind = ctypes.c_uint32()
            _call(library, "amdsmi_get_processor_type", processor, ctypes.byref(kind))
            if kind.value == _TYPE_AMD_GPU:
                yield processor


def _list(library: ctypes.CDLL, name: str, *of: ctypes.c_void_p) -> list[ctypes.c_void_p]:
    """Ask for the number of handles, then for the handles."""
    count = ctypes.c_uint32()
    _call(library, name, *of, ctypes.byref(count), None)
    handles = (ctypes.c_void_p * count.value)()
    _call(library, name, *of, ctypes.byref(count), handles)
    return [ctypes.c_void_p(handle) for handle in handles[: count.value]]


def _read(library: ctypes.CDLL, handle: ctypes.c_void_p, major: int) -> Gpu:
    place, total, used = ctypes.c_uint64(), ctypes.c_uint64(), ctypes.c_uint64()
    vram = ctypes.c_uint32(_MEMORY_VRAM)
    _call(library, "amdsmi_get_gpu_device_bdf", handle, ctypes.byref(place))
    _call(library, "amdsmi_get_gpu_memory_total", handle, vram, ctypes.byref(total))
    _call(library, "amdsmi_get_gpu_memory_usage", handle, vram, ctypes.byref(used))
    asic = _struct(library, "amdsmi_get_gpu_asic_info", handle)
    return Gpu(
        pci=address_of(place.value),
        memory_bytes=total.value,
        memory_used_bytes=used.value,
        name=_string(asic),
        target=_target(asic) if major >= _TARGET_SINCE_MAJOR else "",
        driver=_string(_struct(library, "amdsmi_get_gpu_driver_info", handle)),
        uuid=_uuid(library, handle),
    )


def _struct(library: ctypes.CDLL, name: str, handle: ctypes.c_void_p) -> bytes:
    """A structure's bytes, with zeros after them; zeros alone where it is not to be had."""
    buffer = ctypes.create_string_buffer(_BUFFER_BYTES)
    try:
        _call(library, name, handle, buffer)
    except StatusError:
        return bytes(_BUFFER_BYTES)
    return buffer.raw


def _string(data: bytes) -> str:
    return data[:256].partition(b"\0")[0].decode(errors="replace").strip()


def _target(asic: bytes) -> str:
    """``gfx942`` of 0x942; "" where the library does not know it."""
    version = int.from_bytes(asic[_TARGET_OFFSET : _TARGET_OFFSET + 8], "little")
    return f"gfx{version:x}" if 0x600 <= version <= 0xFFFFF else ""


def _uuid(library: ctypes.CDLL, handle: ctypes.c_void_p) -> str:
    length = ctypes.c_uint32(_UUID_BYTES)
    buffer = ctypes.create_string_buffer(_UUID_BYTES)
    try:
        _call(library, "amdsmi_get_gpu_device_uuid", handle, ctypes.byref(length), buffer)
    except StatusError:
        return ""
    return buffer.value.decode(errors="replace")


def address_of(bdf: int) -> str:
    """``0000:41:00.0`` of an ``amdsmi_bdf_t``: 3 bits of function, 5 of device, 8 of bus."""
    return f"{bdf >> 16:04x}:{bdf >> 8 & 0xFF:02x}:{bdf >> 3 & 0x1F:02x}.{bdf & 7:x}"
