"""Which devices this machine has, and why others are missing.

One module per vendor: `cpu` reads /proc and cgroups, `nvidia` asks NVML, `amd` asks
amdsmi and sysfs. The vendors' libraries run in processes of their own, for a limited
time, because a driver in trouble hangs or crashes whoever asks it: the daemon never
loads one. No torch, no onnxruntime.

Detection never fails: what is not there is listed with the reason and the next step,
which `shoal devices` and `shoal doctor` show. This is what a machine *has*. What it
really does is shown by an executor's canary; `abilities` joins the two.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec

from shoal.compute.devices.cpu import detect_cpu
from shoal.compute.devices.inventory import (
    Ability,
    Device,
    DeviceKind,
    Inventory,
    Lack,
    Missing,
    count_cards,
    numbered_from,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Ability", "Device", "DeviceKind", "Inventory", "Lack", "Missing", "detect"]

GPU_KINDS: Final[tuple[DeviceKind, ...]] = ("nvidia", "amd")

ROOT_VARIABLE: Final = "SHOAL_DEVICES_ROOT"
"""Where /dev, /proc and /sys of the cards are, as in a container that has the host's."""

LOOK_LIMIT_S: Final = 20.0
"""A driver that has to wake up several cards takes some seconds; one that hangs, for ever."""

_LEAST_WAIT_S: Final = 1.0


def detect(limit_s: float = LOOK_LIMIT_S) -> Inventory:
    """Look for devices. Takes some tenths of a second, with a GPU's driver up to seconds.

    Args:
        limit_s: How long the vendors' libraries may take.
    """
    deadline = time.monotonic() + limit_s
    looking = [(kind, _start(kind)) for kind in GPU_KINDS]
    cpu = detect_cpu()
    return joined(cpu, [_outcome(kind, process, deadline) for kind, process in looking])


def joined(cpu: Device, found: Sequence[Inventory]) -> Inventory:
    """One inventory of the CPU and what each vendor's library gave, numbered through."""
    devices: tuple[Device, ...] = (cpu,)
    cards = 0
    for inventory in found:
        devices += numbered_from(cards, inventory.devices)
        cards += count_cards(inventory.devices)
    return Inventory(devices, tuple(lack for each in found for lack in each.missing))


def _start(kind: DeviceKind) -> subprocess.Popen[bytes] | OSError:
    try:
        return subprocess.Popen(  # noqa: S603  # our own interpreter and module
            # -P: no module is ever taken from the current directory
            [sys.executable, "-P", "-m", "shoal.compute.devices", kind],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except OSError as error:
        return error


def _outcome(
    kind: DeviceKind, process: subprocess.Popen[bytes] | OSError, deadline: float
) -> Inventory:
    if isinstance(process, OSError):
        return _troubled(kind, "look_failed", f"cannot be asked: {process.strerror}", "")
    try:
        # One that hung must not take the time of the next, which has long answered.
        answer, said = process.communicate(
            timeout=max(deadline - time.monotonic(), _LEAST_WAIT_S)
        )
    except subprocess.TimeoutExpired:
        process.kill()
        with suppress(subprocess.TimeoutExpired):  # one that waits for its driver stays
            process.communicate(timeout=_LEAST_WAIT_S)
        return _troubled(
            kind,
            "driver_hangs",
            "does not answer",
            "the driver hangs: `sudo dmesg` may say why, and a reboot helps",
        )
    if process.returncode == 0:
        with suppress(msgspec.MsgspecError):
            return msgspec.json.decode(answer, type=Inventory)
    how = (
        f"was killed by {signal.Signals(-process.returncode).name}"
        if process.returncode < 0
        else f"ended with status {process.returncode}"
    )
    last_words = said.decode(errors="replace").strip().splitlines()[-1:]
    return _troubled(
        kind,
        "look_failed",
        f"{how}, saying: {last_words[0][:200]}" if last_words else how,
        "`nvidia-smi` should fail as well: install its driver anew"
        if kind == "nvidia"
        else "`amd-smi list` should fail as well: install ROCm anew",
    )


def _troubled(kind: DeviceKind, code: str, what: str, hint: str) -> Inventory:
    library = "NVML" if kind == "nvidia" else "amdsmi"
    return Inventory((), (Missing(kind, code, f"{library} {what}", hint),))
