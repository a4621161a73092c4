"""What detection gives: devices, what runs on each of them, and what is missing.

Values alone; they are what `shoal devices --json` and the local API show.
"""

from __future__ import annotations

from typing import Literal

import msgspec

DeviceKind = Literal["cpu", "nvidia", "amd"]


class Ability(msgspec.Struct, frozen=True):
    """What an executor does on a device, as far as its canary showed it.

    Attributes:
        executor: Its name, such as ``onnxruntime``.
        numeric_class: ``exact``, ``fp32`` or ``low``.
        evidence: ``executed``, ``emulated`` or ``compile-only``, and never more than
            the canary showed.
        runtime: Name, version and provider, for people.
    """

    executor: str
    numeric_class: str
    evidence: str
    runtime: str


class Lack(msgspec.Struct, frozen=True):
    """Something that keeps a device from being used, or used fully.

    Attributes:
        code: A stable snake_case name, for programs.
        reason: A sentence for a person.
        hint: The next thing to do, or "" where there is nothing to be done.
    """

    code: str
    reason: str
    hint: str = ""


class Device(msgspec.Struct, frozen=True):
    """One device of this machine.

    Attributes:
        id: "cpu", "gpu0", "gpu1", … and "gpu0-mig0", … for the instances of a card.
        kind: Who made it, as far as software cares.
        name: The maker's name for it.
        memory_bytes: All memory that this process may use there.
        memory_free_bytes: How much of it is free now.
        cores: Physical cores that this process may use; 0 for a GPU.
        threads: Logical ones; 0 for a GPU.
        numa_nodes: How many NUMA nodes those belong to; 0 for a GPU.
        isa: Instruction set extensions that matter; empty for a GPU.
        target: What kernels are compiled for, ``sm_90`` or ``gfx942``; "" for a CPU,
            and where it is not known.
        driver: The driver's version; "" for a CPU.
        driver_supports: The newest runtime that the driver supports, such as ``CUDA 12.8``.
        uuid: The maker's id of it, which outlasts a reboot; "" where there is none.
        pci: Its place on the PCI bus, such as ``0000:41:00.0``.
        card: The id that its card has, where it is an instance (MIG); otherwise "".
        executors: The executors of this node that take units on it.
        abilities: What executors do on it, with the evidence.
        sandbox: How the worker that runs its units is locked in; "" where none does.
        units_at_once: How many of them it runs at a time, where its memory allows; 0 where
            it runs none.
        missing: What keeps it from being used, and how to get that.
        note: What else a person should know about it, or "".
    """

    id: str
    kind: DeviceKind
    name: str
    memory_bytes: int
    memory_free_bytes: int
    cores: int = 0
    threads: int = 0
    numa_nodes: int = 0
    isa: tuple[str, ...] = ()
    target: str = ""
    driver: str = ""
    driver_supports: str = ""
    uuid: str = ""
    pci: str = ""
    card: str = ""
    executors: tuple[str, ...] = ()
    abilities: tuple[Ability, ...] = ()
    sandbox: str = ""
    units_at_once: int = 0
    missing: tuple[Lack, ...] = ()
    note: str = ""


class Missing(msgspec.Struct, frozen=True):
    """A kind of device of which none was found, and why; fields as those of `Lack`.

    The code ``absent`` says that there is simply none on this machine.
    """

    kind: DeviceKind
    code: str
    reason: str
    hint: str = ""


class Inventory(msgspec.Struct, frozen=True):
    """What detection found, the CPU first, and what it did not find."""

    devices: tuple[Device, ...]
    missing: tuple[Missing, ...] = ()


def numbered_from(first: int, devices: tuple[Device, ...]) -> tuple[Device, ...]:
    """Give devices of one vendor, which count from gpu0, the ids that come after others'."""

    def shifted(device_id: str) -> str:
        number, dash, instance = device_id.removeprefix("gpu").partition("-")
        return f"gpu{first + int(number)}{dash}{instance}"

    return tuple(
        msgspec.structs.replace(
            device, id=shifted(device.id), card=shifted(device.card) if device.card else ""
        )
        for device in devices
    )


def count_cards(devices: tuple[Device, ...]) -> int:
    """How many cards there are; the instances of one count as one."""
    return len({device.card or device.id for device in devices})
