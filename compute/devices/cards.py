"""A card as its worker is told of it, and how that worker comes to see no other.

Part of *execute*. Pure. The vendors' runtimes show a process the cards that environment
variables name, and count those alone: in a worker its own card is always the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.compute.devices.inventory import Device

Runtime = Literal["cuda", "hip"]

RUNTIMES: Final[dict[str, Runtime]] = {"nvidia": "cuda", "amd": "hip"}
"""By which runtime each kind of card computes."""

_Word = Annotated[str, msgspec.Meta(max_length=64)]

_NOT_TO_BE_USED: Final = frozenset(
    {"hidden", "perhaps_hidden", "card_failed", "no_mig_instance", "device_lost"}
)
"""Codes of lacks with which nothing is started on a card: that its owner keeps it from
programs, and that there is nothing to start on."""


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The card that a worker runs units on.

    Attributes:
        id: As `Device.id`.
        runtime: By which it computes.
        target: What kernels are compiled for, such as ``gfx942``; "" where not known.
        memory_bytes: All of its memory; 0 where the driver does not say.
        pci: Its place on the PCI bus; "" where not known.
    """

    id: _Word
    runtime: Runtime
    target: _Word
    memory_bytes: int
    pci: _Word = ""


def card_of(device: Device) -> Card:
    """What a worker is told of a device that is no CPU."""
    return Card(
        device.id, RUNTIMES[device.kind], device.target, device.memory_bytes, device.pci
    )


def may_be_used(device: Device) -> bool:
    """Whether a worker is started for a device that detection found."""
    return device.kind in RUNTIMES and not any(
        lack.code in _NOT_TO_BE_USED for lack in device.missing
    )


def only(device: Device, devices: Sequence[Device]) -> dict[str, str]:
    """The environment variables with which a process sees this card and no other.

    By its UUID, which means the same card in any order; by its place among its vendor's
    cards where the runtime would not know the UUID.

    Args:
        device: The card, or the instance of one.
        devices: All that were found, in order.
    """
    cards = [each.card or each.id for each in devices if each.kind == device.kind]
    place = str(list(dict.fromkeys(cards)).index(device.card or device.id))
    if device.kind == "nvidia":
        return {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": device.uuid or place,
        }
    known = device.uuid.startswith("GPU-")  # the library's own ids are others than ROCm's
    return {
        "ROCR_VISIBLE_DEVICES": device.uuid if known else place,
        "HIP_VISIBLE_DEVICES": "0",  # counted among those that the other one leaves
    }
