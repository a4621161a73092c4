"""NVIDIA's cards through NVML, the driver's own library, and why none is found.

``nvidia-ml-py`` loads ``libnvidia-ml.so.1`` and declares its functions. A card in MIG
mode cannot be used whole: its instances are listed in its place. A card that fails
is listed with the reason and hides no other. `shoal.compute.devices` calls this in a
process of its own: a driver that hangs or crashes must not take the daemon with it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from shoal.compute.devices.inventory import Device, Inventory, Lack, Missing
from shoal.compute.devices.kernel import (
    PciCard,
    in_container,
    named,
    pci_cards,
    read_text,
)
from shoal.compute.devices.visibility import MAYBE, Visible, visible

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_VENDOR: Final = "0x10de"
_LIBRARY: Final = "libnvidia-ml.so.1"
_WITH_TOOLKIT: Final = (
    "start it through NVIDIA's container toolkit: `docker run --gpus all …`, "
    "or `podman run --device nvidia.com/gpu=all …`"
)

# NVML's codes (nvml.h, nvmlReturn_t), named here because the decision below is made
# without the package, too.
NO_PERMISSION: Final = 4
NOT_SUPPORTED: Final = 3
DRIVER_NOT_LOADED: Final = 9
LIBRARY_NOT_FOUND: Final = 12
GPU_IS_LOST: Final = 15
VERSION_MISMATCH: Final = 18


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the kernel shows of NVIDIA's cards, whatever NVML says.

    Attributes:
        cards: Those on the PCI bus.
        nodes: Their device nodes, such as ``/dev/nvidia0``.
        module: The version of the loaded kernel driver, or "".
        container: Whether this is the inside of a container.
        wsl: Whether this is Windows' subsystem for Linux.
    """

    cards: tuple[PciCard, ...] = ()
    nodes: tuple[str, ...] = ()
    module: str = ""
    container: bool = False
    wsl: bool = False


def detect_nvidia(root: Path = Path("/")) -> Inventory:
    """List the cards, or say why there is none; takes up to some seconds.

    Args:
        root: Where /dev, /proc and /sys are.
    """
    around = surroundings(root)
    try:
        import pynvml
    except ImportError:
        return _nothing(
            "package_missing",
            "the package nvidia-ml-py is not installed",
            "`pip install nvidia-ml-py`",
        )
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Inventory((), (why_none(error.value, str(error), around),))
    try:
        devices = tuple(_cards(pynvml))
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError as error:
        return Inventory((), (why_none(error.value, str(error), around),))
    # No nvmlShutdown: this process ends now, and a lost card can make it hang.
    if not devices:
        return Inventory((), (_no_card(driver, around),))
    return Inventory(hide(devices, os.environ))


def surroundings(root: Path) -> Surroundings:
    """Read what the kernel shows."""
    version = re.search(
        r"Module.*?\s(\d[\d.]+)\s", read_text(root / "proc/driver/nvidia/version")
    ) or re.match(r"(\d[\d.]*)", read_text(root / "sys/module/nvidia/version"))
    return Surroundings(
        cards=pci_cards(root, _VENDOR),
        nodes=tuple(
            f"/dev/{node.name}"
            for node in sorted(root.glob("dev/nvidia*"))
            if node.name.removeprefix("nvidia").isdecimal()
        ),
        module=version[1] if version else "",
        container=in_container(root),
        wsl=(root / "dev/dxg").exists(),
    )


def why_none(code: int, said: str, around: Surroundings) -> Missing:
    """Explain why NVML gives no cards, and say the next step.

    Args:
        code: NVML's return code.
        said: Its name for it.
        around: What the kernel shows.
    """
    if code == LIBRARY_NOT_FOUND:
        return _why_no_library(around)
    if code == DRIVER_NOT_LOADED:
        there = (
            f"though a card is there ({named(around.cards)})"
            if around.cards
            else "and no NVIDIA card is on the PCI bus"
        )
        return _missing(
            "driver_not_loaded",
            f"NVML is there and the driver is not loaded, {there}",
            _how_to_load(around),
        )
    if code == VERSION_MISMATCH:
        loaded = f"the loaded driver {around.module}" if around.module else "the loaded driver"
        return _missing(
            "driver_mismatch",
            f"{loaded} and its library {_LIBRARY} are of different versions: "
            "one was updated, and the other still runs",
            "start the container anew, so that it gets the library of the driver that runs now"
            if around.container
            else "reboot; or load the driver anew: `sudo rmmod nvidia_uvm nvidia_drm "
            "nvidia_modeset nvidia && sudo modprobe nvidia`",
        )
    if code == NO_PERMISSION:
        nodes = ", ".join(around.nodes) or "/dev/nvidia*"
        return _missing(
            "no_permission",
            f"this user may not open the device nodes {nodes}",
            f"`ls -l {nodes.replace(',', '')}` shows which group may: "
            "`sudo usermod -aG GROUP USER`, and log in anew",
        )
    return _missing(
        "nvml_failed",
        f"NVML fails: {said}",
        "`nvidia-smi` should say the same; `sudo dmesg | grep -i nvrm` may say why",
    )


def _why_no_library(around: Surroundings) -> Missing:
    if around.container and (around.nodes or around.module):
        seen = f"the cards' nodes ({around.nodes[0]}, …)" if around.nodes else "the driver"
        return _missing(
            "library_missing",
            f"this container sees {seen}, but not the driver's library {_LIBRARY}",
            _WITH_TOOLKIT,
        )
    if around.module or around.nodes:
        version = f" {around.module}" if around.module else ""
        branch = around.module.partition(".")[0] or "VERSION"
        return _missing(
            "library_missing",
            f"the driver{version} is loaded, and its library {_LIBRARY} is not found",
            f"install the library of the same version (Debian: libnvidia-ml1, Ubuntu: "
            f"libnvidia-compute-{branch}), or name its directory in LD_LIBRARY_PATH",
        )
    if around.wsl:
        return _missing(
            "library_missing",
            f"this is WSL, and {_LIBRARY} is not found",
            "install NVIDIA's driver in Windows, and name /usr/lib/wsl/lib in LD_LIBRARY_PATH",
        )
    if not around.cards:
        return _missing("absent", "no NVIDIA card is on the PCI bus", "")
    card = named(around.cards)
    if around.container:
        return _missing(
            "not_passed",
            f"the machine has an NVIDIA card ({card}), which this container was not given",
            _WITH_TOOLKIT,
        )
    driver = around.cards[0].driver
    if driver.startswith("vfio"):
        return _missing(
            "passed_on",
            f"the card {card} is handed to virtual machines (driver {driver})",
            "run a node inside that machine, or give the card back to this one",
        )
    return _missing(
        "driver_missing",
        f"a card is there ({card}), and NVIDIA's driver is not installed"
        + (f": {driver} runs it, which cannot compute" if driver else ""),
        "install it (Debian: nvidia-driver, Ubuntu: `sudo ubuntu-drivers install`), and reboot",
    )


def _how_to_load(around: Surroundings) -> str:
    if around.container:
        return "load it on the host with `sudo modprobe nvidia`, then start the container anew"
    if not around.cards:
        return "nothing, where this machine has no card; otherwise see whether it sits right"
    if around.cards[0].driver == "nouveau":
        return "nouveau holds the card: blacklist it (modprobe.d), and reboot"
    return (
        "`sudo modprobe nvidia`; if that fails, `sudo dmesg` says why: after an update of "
        "the kernel `sudo dkms autoinstall` builds it anew, and Secure Boot wants it signed"
    )


def _no_card(driver: str, around: Surroundings) -> Missing:
    if around.container:
        return _missing(
            "not_passed",
            f"the driver {driver} shows this container no card",
            f"{_WITH_TOOLKIT}; NVIDIA_VISIBLE_DEVICES there chooses among cards",
        )
    return _missing(
        "no_card",
        f"the driver {driver} is loaded and shows no card",
        "`lspci -d 10de:` shows those on the bus; `sudo dmesg | grep -i nvrm` may say "
        "why the driver refuses one",
    )


def _missing(code: str, reason: str, hint: str) -> Missing:
    return Missing("nvidia", code, reason, hint)


def _nothing(code: str, reason: str, hint: str) -> Inventory:
    return Inventory((), (_missing(code, reason, hint),))


# --- reading NVML ----------------------------------------------------------------------


def _cards(nvml: Any) -> Iterator[Device]:
    """Every card, or its MIG instances; ids count from gpu0."""
    driver = _text(nvml.nvmlSystemGetDriverVersion())
    supports = _cuda_version(nvml)
    for index in range(nvml.nvmlDeviceGetCount()):
        card = Device(
            id=f"gpu{index}",
            kind="nvidia",
            name="NVIDIA card",
            memory_bytes=0,
            memory_free_bytes=0,
            driver=driver,
            driver_supports=supports,
        )
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            card = _identified(nvml, handle, card)
            yield from _parts(nvml, handle, card)
        except nvml.NVMLError as error:
            yield msgspec.structs.replace(card, missing=(_card_failed(error),))


def _identified(nvml: Any, handle: Any, card: Device) -> Device:
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    bus_id = _text(nvml.nvmlDeviceGetPciInfo(handle).busId).lower()
    return msgspec.structs.replace(
        card,
        name=_text(nvml.nvmlDeviceGetName(handle)),
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        pci=bus_id[-len("0000:00:00.0") :],  # NVML writes the domain with eight digits
        target=f"sm_{major}{minor}",
    )


def _parts(nvml: Any, handle: Any, card: Device) -> Iterator[Device]:
    """The card itself, or its instances where it is in MIG mode."""
    if not _in_mig_mode(nvml, handle):
        yield _with_memory(nvml, handle, card)
        return
    instances = 0
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
        except nvml.NVMLError:
            continue  # places for instances are numbered, and some are empty
        instances += 1
        part = msgspec.structs.replace(card, id=f"{card.id}-mig{index}", card=card.id)
        try:
            part = msgspec.structs.replace(
                part,
                name=_text(nvml.nvmlDeviceGetName(instance)),
                uuid=_text(nvml.nvmlDeviceGetUUID(instance)),
            )
            yield _with_memory(nvml, instance, part)
        except nvml.NVMLError as error:
            yield msgspec.structs.replace(part, missing=(_card_failed(error),))
    if not instances:
        lack = Lack(
            "no_mig_instance",
            "the card is in MIG mode and has no instance, so that nothing can run on it",
            "make one: `nvidia-smi mig -lgip` lists the sizes, `sudo nvidia-smi mig -cgi ID "
            "-C` makes it; `sudo nvidia-smi -mig 0` leaves MIG mode",
        )
        yield msgspec.structs.replace(card, missing=(lack,))


def _in_mig_mode(nvml: Any, handle: Any) -> bool:
    try:
        current, _pending = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:
        return False  # a card, or a driver, that knows no MIG
    return bool(current == nvml.NVML_DEVICE_MIG_ENABLE)


def _with_memory(nvml: Any, handle: Any, device: Device) -> Device:
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError as error:
        if error.value != NOT_SUPPORTED:
            raise
        return msgspec.structs.replace(device, note="it shares the memory of the CPU")
    return msgspec.structs.replace(
        device, memory_bytes=int(memory.total), memory_free_bytes=int(memory.free)
    )


def _card_failed(error: Any) -> Lack:
    return Lack(
        "card_failed",
        f"the driver says of this card: {error}",
        "it fell off the bus: reboot; if it does so again, see to its power and seating"
        if error.value == GPU_IS_LOST
        else "`nvidia-smi` should say the same; `sudo dmesg | grep -i xid` may say why",
    )


def _cuda_version(nvml: Any) -> str:
    try:
        version = nvml.nvmlSystemGetCudaDriverVersion_v2()
    except nvml.NVMLError:
        return ""
    return f"CUDA {version // 1000}.{version % 1000 // 10}"


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


# --- what CUDA leaves out of what NVML shows ----------------------------------------------


def hide(devices: tuple[Device, ...], environment: Mapping[str, str]) -> tuple[Device, ...]:
    """Mark the devices that ``CUDA_VISIBLE_DEVICES`` keeps from programs.

    Args:
        devices: Those of `_cards`.
        environment: Where the variable is looked up.
    """
    value = environment.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return devices
    cards = list(dict.fromkeys(device.card or device.id for device in devices))
    whole = {device.id: device for device in devices if not device.card}
    in_place = (
        environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
        or len({device.name for device in devices}) == 1
    )
    uuids = [whole[card].uuid if card in whole else "" for card in cards]
    seen = dict(zip(cards, visible(value, uuids, index_is_place=in_place), strict=True))
    names = [text.strip() for text in value.split(",")]
    return tuple(_marked(device, _sees(device, seen, names), value) for device in devices)


def _sees(device: Device, seen: Mapping[str, Visible], names: list[str]) -> Visible:
    if not device.card:
        return seen[device.id]
    # CUDA takes an instance by its UUID; a bare index means the first of the card.
    if any(name and device.uuid.startswith(name) for name in names):
        return True
    return seen[device.card] if device.id.endswith("-mig0") else False


def _marked(device: Device, seen: Visible, value: str) -> Device:
    if seen is True:
        return device
    code, how = ("perhaps_hidden", "may hide") if seen == MAYBE else ("hidden", "hides")
    hint = (
        "set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name cards by UUID"
        if seen == MAYBE
        else f"start the daemon without that variable, or add {device.uuid or device.id} to it"
    )
    lack = Lack(code, f"CUDA_VISIBLE_DEVICES={value} {how} it from this node's programs", hint)
    return msgspec.structs.replace(device, missing=(*device.missing, lack))
