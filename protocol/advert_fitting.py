"""An advert within its limit: what is left out where not everything fits.

An advert is heard by every node, so it is small (`limits.ADVERT_LIMIT_BYTES` with its
envelope). Devices that are equal but for their ids stand in one line, with their count.
Where the rest is still too much, things are left out in this order, each only as far as
it must: long names of devices; the rates of memories and disks; lines of devices that
nothing uses, the last ones first; addresses beyond two, the last ones first; rates of
the last devices; peers to be introduced by, beyond one; lines of the other devices. So
a node with sixteen kinds of device is still found, and still says what its first one
does. Who it is, until when, in which classes it takes work and whether it does is never
left out.

Pure, and total: there is no advert of a node that cannot be made to fit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from msgspec.structs import replace

from shoal.protocol.codec import encode
from shoal.protocol.limits import ADVERT_LIMIT_BYTES, EQUAL_DEVICES_LIMIT

if TYPE_CHECKING:
    from shoal.protocol.device_offers import DeviceOffer
    from shoal.protocol.statements import Advert

ENVELOPE_BYTES = 126
"""What a signed envelope adds to an advert at most: key, type, signature and lengths."""

NAME_LIMIT = 24
"""Characters of a device's name that are kept where there is little room."""

Step: TypeAlias = Callable[["Advert"], "Advert"]


def fitted(advert: Advert, limit_bytes: int = ADVERT_LIMIT_BYTES) -> Advert:
    """The advert with as much of it as fits.

    Args:
        advert: All that its node would say.
        limit_bytes: Of the signed envelope.
    """
    advert = _with_groups(advert)
    for step in _STEPS:
        while size_bytes(advert) > limit_bytes:
            shorter = _with_groups(step(advert))  # without their rates, more are equal
            if shorter == advert:
                break
            advert = shorter
    return advert


def size_bytes(advert: Advert) -> int:
    """How large it is at most once it is signed."""
    return len(encode(advert)) + ENVELOPE_BYTES


def _with_groups(advert: Advert) -> Advert:
    return replace(advert, devices=grouped(advert.devices))


def grouped(devices: tuple[DeviceOffer, ...]) -> tuple[DeviceOffer, ...]:
    """Devices that are equal but for their ids in one line, in the order of the first."""
    groups: dict[DeviceOffer, tuple[str, int]] = {}
    for device in devices:
        kind = replace(device, id="", count=1)
        first, count = groups.get(kind, (device.id, 0))
        groups[kind] = (first, count + device.count)
    return tuple(
        replace(kind, id=first, count=min(count, EQUAL_DEVICES_LIMIT))
        for kind, (first, count) in groups.items()
    )


# --- the steps: each leaves out one thing more, or nothing ---------------------------


def _shorten_names(advert: Advert) -> Advert:
    return replace(
        advert,
        devices=tuple(
            replace(device, name=device.name[:NAME_LIMIT]) for device in advert.devices
        ),
    )


def _drop_memory_rates(advert: Advert) -> Advert:
    devices = tuple(replace(device, memory_rate=0.0) for device in advert.devices)
    return replace(advert, devices=devices, disk_rate=0.0)


def _drop_unused_device(advert: Advert) -> Advert:
    """The last device but the first that no executor of the node uses."""
    for index in range(len(advert.devices) - 1, 0, -1):
        if not advert.devices[index].executors:
            return replace(advert, devices=_without(advert.devices, index))
    return advert


def _drop_address(advert: Advert) -> Advert:
    return replace(advert, addresses=advert.addresses[: max(2, len(advert.addresses) - 1)])


def _drop_rates(advert: Advert) -> Advert:
    for index in range(len(advert.devices) - 1, 0, -1):
        device = advert.devices[index]
        if device.rates:
            changed = replace(device, rates=())
            return replace(advert, devices=_put(advert.devices, index, changed))
    return advert


def _drop_introducer(advert: Advert) -> Advert:
    return replace(advert, via=advert.via[: max(1, len(advert.via) - 1)])


def _drop_device(advert: Advert) -> Advert:
    return replace(advert, devices=advert.devices[: max(1, len(advert.devices) - 1)])


def _drop_anything(advert: Advert) -> Advert:
    """Names and addresses so long that no real node has them."""
    if len(advert.addresses) > 1:
        return replace(advert, addresses=advert.addresses[:1])
    if advert.devices:
        return replace(advert, devices=())
    if advert.numeric_classes:
        return replace(advert, numeric_classes=advert.numeric_classes[:-1])
    return replace(advert, addresses=())


_STEPS: tuple[Step, ...] = (
    _shorten_names,
    _drop_memory_rates,
    _drop_unused_device,
    _drop_address,
    _drop_rates,
    _drop_introducer,
    _drop_device,
    _drop_anything,
)


def _without(devices: tuple[DeviceOffer, ...], index: int) -> tuple[DeviceOffer, ...]:
    return devices[:index] + devices[index + 1 :]


def _put(
    devices: tuple[DeviceOffer, ...], index: int, device: DeviceOffer
) -> tuple[DeviceOffer, ...]:
    return (*devices[:index], device, *devices[index + 1 :])
