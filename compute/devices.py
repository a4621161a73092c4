"""Which devices this machine has, and which of them an executor of this node uses.

Asked by the daemon, so no torch, no onnxruntime, no child process: the CPU is read
from /proc and its cgroup, NVIDIA GPUs come from NVML (``nvidia-ml-py``, which loads
the driver's own library), AMD GPUs from sysfs. Detection never fails: what is
not there is listed with the reason, which `shoal devices` and `shoal doctor` show.

This is what a machine *has*. What it really does is shown by an executor's canary
(`shoal.compute.executors.base.Probe`).
"""

from __future__ import annotations

import math
import os
import platform
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

import msgspec
import psutil

from shoal.compute.cgroups import CgroupLimits, read_limits

DeviceKind = Literal["cpu", "nvidia", "amd"]

_AMD_VENDOR: Final = "0x1002"

_ISA_FLAGS: Final = {
    # /proc/cpuinfo's name: ours. Those that change which kernels a runtime picks.
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "avx_vnni": "avx_vnni",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_tile": "amx",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "asimd": "neon",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
}


class Device(msgspec.Struct, frozen=True):
    """One device of this machine.

    Attributes:
        id: "cpu", "gpu0", "gpu1", …
        kind: Who made it, as far as software cares.
        name: The maker's name for it.
        memory_bytes: All memory that this process may use there.
        memory_free_bytes: How much of it is free now.
        cores: Physical cores that this process may use; 0 for a GPU.
        threads: Logical ones; 0 for a GPU.
        isa: Instruction set extensions that matter; empty for a GPU.
        driver: The driver's version; "" for a CPU.
        executors: The executors of this node that use it; empty: present and unused.
        note: What a person should know about it, or "".
    """

    id: str
    kind: DeviceKind
    name: str
    memory_bytes: int
    memory_free_bytes: int
    cores: int = 0
    threads: int = 0
    isa: tuple[str, ...] = ()
    driver: str = ""
    executors: tuple[str, ...] = ()
    note: str = ""


class Missing(msgspec.Struct, frozen=True):
    """A kind of device that was looked for and not found, and why."""

    kind: DeviceKind
    reason: str


class Inventory(msgspec.Struct, frozen=True):
    """What detection found, the CPU first, and what it did not find."""

    devices: tuple[Device, ...]
    missing: tuple[Missing, ...]


def detect() -> Inventory:
    """Look for devices. Takes some milliseconds, with an NVIDIA driver up to a second."""
    devices = [_cpu(read_limits())]
    missing: list[Missing] = []
    for found in (_nvidia(), _amd(Path("/sys"))):
        if isinstance(found, Missing):
            missing.append(found)
        else:
            first = len(devices) - 1
            devices += [
                msgspec.structs.replace(device, id=f"gpu{first + index}")
                for index, device in enumerate(found)
            ]
    return Inventory(tuple(devices), tuple(missing))


def _cpu(limits: CgroupLimits) -> Device:
    usable = sorted(os.sched_getaffinity(0))
    threads, cores = len(usable), _physical_cores(usable)
    notes: list[str] = []
    if limits.cpus is not None and limits.cpus < threads:
        threads = max(math.ceil(limits.cpus), 1)
        cores = min(cores, threads)
        notes.append(f"limited to {limits.cpus:g} CPUs by its cgroup")
    memory = psutil.virtual_memory()
    total_bytes, free_bytes = memory.total, memory.available
    if limits.memory_bytes is not None and limits.memory_bytes < total_bytes:
        total_bytes = limits.memory_bytes
        free_bytes = min(free_bytes, max(total_bytes - limits.memory_used_bytes, 0))
        notes.append(f"limited to {total_bytes / 1e9:.1f} GB by its cgroup")
    name, flags = _cpu_name_and_flags(Path("/proc/cpuinfo"))
    return Device(
        id="cpu",
        kind="cpu",
        name=name,
        memory_bytes=total_bytes,
        memory_free_bytes=free_bytes,
        cores=cores,
        threads=threads,
        isa=tuple(ours for theirs, ours in _ISA_FLAGS.items() if theirs in flags),
        executors=("onnxruntime",) if find_spec("onnxruntime") else (),
        note="; ".join(notes),
    )


def _physical_cores(usable: list[int]) -> int:
    """How many cores these logical CPUs belong to."""
    siblings = set()
    for cpu in usable:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(_text(path) or str(cpu))
    return len(siblings)


def _cpu_name_and_flags(cpuinfo: Path) -> tuple[str, frozenset[str]]:
    """The first processor's name and flags; ARM calls the latter features."""
    entries: dict[str, str] = {}
    for line in _text(cpuinfo).splitlines():
        key, _, value = line.partition(":")
        entries.setdefault(key.strip(), value.strip())
    name = entries.get("model name") or f"{platform.machine()} processor"
    return name, frozenset((entries.get("flags") or entries.get("Features", "")).split())


def _nvidia() -> list[Device] | Missing:
    try:
        import pynvml
    except ImportError:
        return Missing("nvidia", "the package nvidia-ml-py is not installed")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Missing("nvidia", f"NVML does not load: {error}")
    try:
        driver = _as_text(pynvml.nvmlSystemGetDriverVersion())
        devices = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            devices.append(
                Device(
                    id="",
                    kind="nvidia",
                    name=_as_text(pynvml.nvmlDeviceGetName(handle)),
                    memory_bytes=int(memory.total),
                    memory_free_bytes=int(memory.free),
                    driver=driver,
                    note="present and unused: no executor of this node runs on it",
                )
            )
    except pynvml.NVMLError as error:
        return Missing("nvidia", f"NVML fails: {error}")
    finally:
        pynvml.nvmlShutdown()
    return devices or Missing("nvidia", "the driver is there, and no GPU")


def _amd(sys: Path) -> list[Device] | Missing:
    cards = [
        card / "device"
        for card in sorted(sys.glob("class/drm/card*"))
        if card.name.removeprefix("card").isdecimal()
        and _text(card / "device/vendor").strip() == _AMD_VENDOR
    ]
    if not cards:
        return Missing("amd", "no AMD GPU in /sys/class/drm")
    driver = (
        _text(sys / "module/amdgpu/version").strip() or f"amdgpu of Linux {platform.release()}"
    )
    devices = []
    for card in cards:
        total_bytes = _number(card / "mem_info_vram_total")
        devices.append(
            Device(
                id="",
                kind="amd",
                name=_text(card / "product_name").strip()
                or f"AMD GPU {_text(card / 'device').strip()}",
                memory_bytes=total_bytes,
                memory_free_bytes=max(total_bytes - _number(card / "mem_info_vram_used"), 0),
                driver=driver,
                note="present and unused: no executor of this node runs on it",
            )
        )
    return devices


def _as_text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _number(path: Path) -> int:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
