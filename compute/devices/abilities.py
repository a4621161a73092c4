"""What each device can run: detection joined with what the executors' canaries showed.

A device is said to do what a canary did on it, in the words of its evidence, and
nothing more; what no canary has shown is listed as missing, with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from shoal.compute.devices.cards import may_be_used
from shoal.compute.devices.inventory import Ability, Device, Inventory, Lack
from shoal.compute.executors.base import Evidence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shoal.compute.executors.base import Probe

NOT_PROBED: Final = Lack(
    "not_probed",
    "its executors have not run their canary yet",
    "ask again in some seconds",
)
COMPILING: Final = Lack(
    "compiling",
    "the class exact is not offered yet: its kernels are being compiled, once per machine",
    "ask again in a minute or two; `shoal devices` shows when it is done",
)
NOT_USED: Final = "not_used"
"""Code of the lack of an executor whose class another one has on that device."""


@dataclass(frozen=True, slots=True)
class Canaries:
    """What is known of the executors of one device.

    Attributes:
        probes: Of the canaries that were right.
        lacks: What did not come about, and why.
        sandbox: How their worker is locked in.
        units_at_once: How many units it runs at a time.
    """

    probes: tuple[Probe, ...] = ()
    lacks: tuple[Lack, ...] = (NOT_PROBED,)
    sandbox: str = ""
    units_at_once: int = 1


def failed(reason: str, hint: str = "") -> Lack:
    """An executor that does not work here."""
    return Lack(
        "executor_failed", reason, hint or "see the daemon's log, and report it with that"
    )


def takes_units(probe: Probe) -> bool:
    """Whether units may be run by it.

    Only what was executed: an advert names executors and not their evidence, and must
    not claim silicon where there is a simulator or a compiler.
    """
    return probe.evidence is Evidence.EXECUTED


def with_abilities(inventory: Inventory, canaries: Mapping[str, Canaries]) -> Inventory:
    """Say of each device what runs on it, and of each that is unused, why.

    Args:
        inventory: What detection found.
        canaries: What executors showed, by device; of a device that is not there, nothing
            is known yet.
    """
    return msgspec.structs.replace(
        inventory, devices=tuple(_device(device, canaries) for device in inventory.devices)
    )


def _device(device: Device, canaries: Mapping[str, Canaries]) -> Device:
    if device.kind != "cpu" and not may_be_used(device):
        return device  # what it lacks says why
    known = canaries.get(device.id, Canaries())
    executors = {executor_of(probe) for probe in known.probes if takes_units(probe)}
    return msgspec.structs.replace(
        device,
        abilities=tuple(sorted(map(_ability, known.probes), key=_order)),
        executors=tuple(sorted(executors)),
        sandbox=known.sandbox,
        units_at_once=known.units_at_once if executors else 0,
        missing=(*device.missing, *known.lacks),
    )


def _order(ability: Ability) -> tuple[str, str]:
    return ability.executor, ability.numeric_class


def _ability(probe: Probe) -> Ability:
    return Ability(
        executor_of(probe), probe.numeric_class.value, probe.evidence.value, probe.runtime
    )


def executor_of(probe: Probe) -> str:
    """The executor's name, which its runtime's text begins with."""
    name, _, _version = probe.runtime.partition(" ")
    return name
