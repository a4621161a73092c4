"""AMD's cards through amdsmi where ROCm is installed, and otherwise from sysfs.

The kernel's own description of what computes (kfd's topology) gives the target that
kernels are compiled for, whichever of the two lists the cards. `shoal.compute.devices`
calls this in a process of its own, as the library may hang or crash.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from shoal.compute.devices import amdsmi
from shoal.compute.devices.inventory import Device, Inventory, Lack, Missing
from shoal.compute.devices.kernel import (
    PciCard,
    in_container,
    link_name,
    named,
    pci_cards,
    read_number,
    read_text,
)
from shoal.compute.devices.visibility import visible

if TYPE_CHECKING:
    from collections.abc import Mapping

_VENDOR: Final = "0x1002"
_VARIABLES: Final = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
_WITH_DEVICES: Final = (
    "start it with `--device /dev/kfd --device /dev/dri`, and `--group-add` of those who may"
)
_JOIN_GROUPS: Final = "`sudo usermod -aG render,video USER`, and log in anew"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the kernel shows of AMD's cards, whatever amdsmi says.

    Attributes:
        cards: Those on the PCI bus.
        driver: The version of the loaded driver amdgpu, or "".
        kfd: Whether /dev/kfd, through which all computing goes, may be opened;
            None where it is not there.
        container: Whether this is the inside of a container.
        targets: Such as ``gfx942``, by PCI address without the function.
    """

    cards: tuple[PciCard, ...] = ()
    driver: str = ""
    kfd: bool | None = None
    container: bool = False
    targets: Mapping[str, str] = field(default_factory=dict)


def detect_amd(root: Path = Path("/")) -> Inventory:
    """List the cards, or say why there is none.

    Args:
        root: Where /dev and /sys are.
    """
    around = surroundings(root)
    lack: Lack | None = None
    try:
        gpus = amdsmi.read_gpus()
    except amdsmi.LibraryMissingError as error:
        devices = _from_sysfs(root, around, f"as the kernel shows it: {error}")
    except amdsmi.StatusError as error:
        devices = _from_sysfs(root, around)
        if not devices:
            return Inventory((), (why_none(around, str(error)),))
        lack = Lack(
            "amdsmi_failed",
            f"amdsmi does not start ({error}); what stands here is the kernel's",
            "`amd-smi list` should say the same",
        )
    else:
        devices = tuple(
            _from_amdsmi(gpu, index, root, around) for index, gpu in enumerate(gpus)
        )
    if not devices:
        return Inventory((), (why_none(around),))
    lacks = tuple(filter(None, (lack, _no_kfd(around))))
    devices = tuple(
        msgspec.structs.replace(device, missing=(*device.missing, *lacks)) for device in devices
    )
    return Inventory(hide(devices, os.environ))


def surroundings(root: Path) -> Surroundings:
    """Read what the kernel shows."""
    loaded = (root / "sys/module/amdgpu").exists()
    version = read_text(root / "sys/module/amdgpu/version").strip()
    kfd = root / "dev/kfd"
    return Surroundings(
        cards=pci_cards(root, _VENDOR),
        driver=(version or f"amdgpu of Linux {platform.release()}") if loaded else "",
        kfd=os.access(kfd, os.R_OK | os.W_OK) if kfd.exists() else None,
        container=in_container(root),
        targets=_targets(root),
    )


def why_none(around: Surroundings, amdsmi_said: str = "") -> Missing:
    """Explain why no card is found, and say the next step.

    Args:
        around: What the kernel shows.
        amdsmi_said: The error with which amdsmi did not start, or "".
    """
    if not around.cards:
        reason = "no AMD card is on the PCI bus"
        if amdsmi_said:
            return Missing(
                "amd",
                "driver_not_loaded",
                f"amdsmi is there and does not start ({amdsmi_said}), and {reason}",
                "nothing, where this machine has no card; otherwise `sudo modprobe amdgpu`",
            )
        return Missing("amd", "absent", reason)
    card = named(around.cards)
    if around.container and around.driver:
        return Missing(
            "amd",
            "not_passed",
            f"the machine has an AMD card ({card}), which this container was not given",
            _WITH_DEVICES,
        )
    driver = around.cards[0].driver
    if driver.startswith("vfio"):
        return Missing(
            "amd",
            "passed_on",
            f"the card {card} is handed to virtual machines (driver {driver})",
            "run a node inside that machine, or give the card back to this one",
        )
    return Missing(
        "amd",
        "driver_not_loaded",
        f"a card is there ({card}), and the driver amdgpu "
        + ("does not run it" if around.driver else "is not loaded"),
        "load it on the host with `sudo modprobe amdgpu`, then start the container anew"
        if around.container
        else "`sudo modprobe amdgpu`; if that fails, `sudo dmesg | grep amdgpu` says why "
        "(a new card may need a newer kernel, or the package amdgpu-dkms)",
    )


def hide(devices: tuple[Device, ...], environment: Mapping[str, str]) -> tuple[Device, ...]:
    """Mark the devices that ROCm's variables keep from programs."""
    for variable in _VARIABLES:
        value = environment.get(variable)
        if value is not None:
            if "GPU-" in value and not all(d.uuid.startswith("GPU-") for d in devices):
                return devices  # named by an id that is not known here
            seen = visible(value, [device.uuid for device in devices])
            lack = Lack(
                "hidden",
                f"{variable}={value} hides it from this node's programs",
                "start the daemon without that variable, or add the card to it",
            )
            return tuple(
                device
                if sees
                else msgspec.structs.replace(device, missing=(*device.missing, lack))
                for device, sees in zip(devices, seen, strict=True)
            )
    return devices


def _from_amdsmi(
    gpu: amdsmi.Gpu | amdsmi.StatusError, index: int, root: Path, around: Surroundings
) -> Device:
    if isinstance(gpu, amdsmi.StatusError):
        lack = Lack(
            "card_failed",
            f"amdsmi says of this card: {gpu}",
            "`amd-smi list` should say the same; `sudo dmesg | grep amdgpu` may say why",
        )
        return _device(index, "AMD GPU", 0, 0, driver=around.driver, missing=(lack,))
    place = root / "sys/bus/pci/devices" / gpu.pci
    return _device(
        index,
        gpu.name or _name(place),
        gpu.memory_bytes,
        gpu.memory_used_bytes,
        driver=gpu.driver or around.driver,
        target=around.targets.get(_slot(gpu.pci)) or gpu.target,
        uuid=_sysfs_uuid(place) or gpu.uuid,  # ROCm's variables name cards by the former
        pci=gpu.pci,
    )


def _from_sysfs(root: Path, around: Surroundings, note: str = "") -> tuple[Device, ...]:
    """The cards that amdgpu runs, by what it shows of each."""
    places = [
        place
        for card in sorted((root / "sys/class/drm").glob("card*"), key=_card_number)
        if card.name.removeprefix("card").isdecimal()
        and read_text((place := card / "device") / "vendor").strip() == _VENDOR
    ]
    devices = []
    for index, place in enumerate(places):
        pci = link_name(place)
        devices.append(
            _device(
                index,
                _name(place),
                read_number(place / "mem_info_vram_total"),
                read_number(place / "mem_info_vram_used"),
                driver=around.driver,
                target=around.targets.get(_slot(pci), ""),
                uuid=_sysfs_uuid(place),
                pci=pci,
                note=note,
            )
        )
    return tuple(devices)


def _device(
    index: int,
    name: str,
    memory_bytes: int,
    used_bytes: int,
    *,
    driver: str,
    target: str = "",
    uuid: str = "",
    pci: str = "",
    missing: tuple[Lack, ...] = (),
    note: str = "",
) -> Device:
    return Device(
        id=f"gpu{index}",
        kind="amd",
        name=name,
        memory_bytes=memory_bytes,
        memory_free_bytes=max(memory_bytes - used_bytes, 0),
        driver=driver,
        target=target,
        uuid=uuid,
        pci=pci,
        missing=missing,
        note=note,
    )


def _no_kfd(around: Surroundings) -> Lack | None:
    """Why nothing can compute on the cards although they are there."""
    if around.kfd is None:
        return Lack(
            "no_kfd",
            "the card is there, and /dev/kfd, through which it computes, is not",
            _WITH_DEVICES
            if around.container
            else "the kernel's amdgpu was built without it, or does not know this card's kind: "
            "install ROCm's amdgpu-dkms",
        )
    if not around.kfd:
        return Lack(
            "no_permission",
            "this user may not open /dev/kfd, through which the card computes",
            _JOIN_GROUPS,
        )
    return None


def _targets(root: Path) -> dict[str, str]:
    """Targets by PCI slot, of each node in kfd's topology that computes."""
    targets = {}
    for path in root.glob("sys/class/kfd/kfd/topology/nodes/*/properties"):
        lines = (line.split() for line in read_text(path).splitlines())
        facts = {pair[0]: int(pair[1]) for pair in lines if len(pair) == 2 and _is_number(pair)}
        version = facts.get("gfx_target_version", 0)
        if version:  # 90402 is gfx942: major, minor and stepping with two digits each
            major, minor, stepping = version // 10000, version // 100 % 100, version % 100
            place = facts.get("domain", 0) << 16 | facts.get("location_id", 0)
            targets[_slot(amdsmi.address_of(place))] = f"gfx{major}{minor:x}{stepping:x}"
    return targets


def _is_number(pair: list[str]) -> bool:
    return pair[1].isdecimal()


def _slot(pci: str) -> str:
    """Without the function: the partitions of one card differ by it."""
    return pci.rpartition(".")[0]


def _name(place: Path) -> str:
    model = read_text(place / "device").strip().removeprefix("0x")
    return read_text(place / "product_name").strip() or (
        f"AMD GPU 1002:{model}" if model else "AMD GPU"
    )


def _sysfs_uuid(place: Path) -> str:
    """As ROCm writes it: ``GPU-`` and the 16 digits of the card's unique id."""
    unique = read_text(place / "unique_id").strip()
    return f"GPU-{unique}" if unique else ""


def _card_number(card: Path) -> int:
    digits = card.name.removeprefix("card")
    return int(digits) if digits.isdecimal() else -1
