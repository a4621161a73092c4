"""What this node offers: by what it bids, and what its advert says.

The daemon holds a `Capacity` that fills as the executors' canaries come in, and
each advert and each bid is made of it anew, with the owner's wishes of that moment.
What is claimed of rates is added by `node.capability`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

import shoal
from shoal.compute import card_memory
from shoal.compute.devices.abilities import Canaries, executor_of, takes_units, with_abilities
from shoal.compute.devices.inventory import Inventory, Lack
from shoal.compute.executors.base import Evidence, NumericClass
from shoal.node.addresses import address_of
from shoal.node.bidding import Terms
from shoal.node.serving import withheld
from shoal.protocol.device_offers import DeviceOffer
from shoal.protocol.limits import ADDRESSES_LIMIT
from shoal.protocol.statements import Advert
from shoal.protocol.versions import OWN

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from shoal.compute.devices import Device
    from shoal.compute.errors import ComputeError
    from shoal.compute.executors.base import Probe
    from shoal.crypto.identity import Identity
    from shoal.crypto.peer_id import PeerId
    from shoal.node.config import Config
    from shoal.node.owner_watch import OwnerWatch
    from shoal.node.provider import Provider
    from shoal.node.records import Ban
    from shoal.node.settling import Settling
    from shoal.node.standings import Standings
    from shoal.protocol.advertising import Advertised
    from shoal.protocol.device_offers import ClassRate

AGENT: Final = f"shoal/{shoal.__version__}"


CPU: Final = "cpu"


@dataclass(slots=True)
class Capacity:
    """What this node offers; the executors are known once the workers were probed."""

    devices: tuple[Device, ...] = ()
    canaries: dict[str, Canaries] = field(default_factory=dict)
    """What executors showed, by device."""
    lost: dict[str, str] = field(default_factory=dict)
    """Why a card that took units computes nothing more."""
    sandboxed: dict[str, bool] = field(default_factory=dict)
    """Whether a device's worker is locked in well enough for strangers' programs."""
    draining: bool = False
    starting: bool = True
    """Whether canaries are still to come."""

    def units_run_on(self) -> tuple[str, ...]:
        """The ids of the devices that run units: the CPU, and cards that were seen to."""
        cards = (device.id for device in self.devices if device.id != CPU)
        return (CPU, *(card for card in cards if self.executors(card)))

    def executors(self, device: str = CPU) -> dict[str, str]:
        """The executor of each numeric class on a device, by what its canary showed."""
        return self._shown(device, takes_units)

    def compiled(self, device: str) -> dict[str, str]:
        """The same of what only compiles for it, and takes no units there."""
        return self._shown(device, lambda probe: probe.evidence is Evidence.COMPILE_ONLY)

    def _shown(self, device: str, wanted: Callable[[Probe], bool]) -> dict[str, str]:
        return {
            probe.numeric_class.value: executor_of(probe)
            for probe in self.canaries.get(device, Canaries()).probes
            if wanted(probe)
        }

    def units_at_once(self, device: str) -> int:
        """How many units a device runs at a time; 0 where it runs none."""
        known = self.canaries.get(device, Canaries())
        return known.units_at_once if any(map(takes_units, known.probes)) else 0

    @property
    def triton(self) -> str:
        """The version of Triton by which a card here runs kernels; "" where none does."""
        for device in self.units_run_on():
            for probe in self.canaries.get(device, Canaries()).probes:
                if probe.numeric_class is NumericClass.KERNEL and takes_units(probe):
                    return probe.runtime.split()[1][:64]
        return ""

    def offer(
        self,
        probes: Sequence[Probe],
        lacks: Sequence[Lack],
        device: str = CPU,
        sandbox: str = "",
        *,
        sandboxed: bool = False,
        units_at_once: int = 1,
    ) -> None:
        """Offer what these canaries showed, and nothing else; note what they did not."""
        self.canaries[device] = Canaries(tuple(probes), tuple(lacks), sandbox, units_at_once)
        self.sandboxed[device] = sandboxed

    def lose(self, device: str, error: ComputeError) -> None:
        """Offer nothing on a card any more: it is gone."""
        self.lost[device] = error.message
        self.canaries[device] = Canaries(
            (),
            (
                Lack(
                    error.code,
                    error.message,
                    "`sudo dmesg` may say why (`| grep -i xid`, `| grep amdgpu`); once the "
                    "card is back, restart the daemon: it looks at its cards when it starts",
                ),
            ),
        )


def make_advert(
    config: Config,
    peer: PeerId,
    reached: Advertised,
    capacity: Capacity,
    owner: OwnerWatch,
    sequence: int,
    lifetime_s: float,
) -> Advert:
    """What this node says of itself, before its figures (`node.capability`).

    Each device has a line of its own, so that it may be over the limit:
    `node.device_lines` puts equal ones together, `protocol.advert_fitting` leaves out what
    does not fit then.
    """
    return Advert(
        peer=peer,
        sequence=sequence,
        issued_at_ms=time.time_ns() // 1_000_000,
        lifetime_s=lifetime_s,
        protocol=OWN,
        agent=AGENT,
        addresses=tuple(address_of(ip, port) for ip, port in reached.places)[:ADDRESSES_LIMIT],
        devices=tuple(
            DeviceOffer(
                id=device.id,
                kind=device.kind,
                name=device.name[:48],
                memory_bytes=device.memory_bytes,
                executors=device.executors,
            )
            for device in with_abilities(Inventory(capacity.devices), capacity.canaries).devices
        ),
        numeric_classes=tuple(
            sorted(
                {c for device in capacity.units_run_on() for c in capacity.executors(device)}
            )
        ),
        providing=config.provide and owner.announces_open and not capacity.draining,
        via=reached.via,
        triton=capacity.triton,
    )


def make_terms(
    config: Config,
    identity: Identity,
    capacity: Capacity,
    provider: Provider,
    owner: OwnerWatch,
    ban_of: Callable[[PeerId], Ban | None],
    standings: Standings,
    settling: Settling,
    rates: Collection[ClassRate],
    device: str = CPU,
) -> Terms:
    """By what this node bids on one device, or refuses, at this moment (`node.bidding`)."""
    load, at_once = provider.load_on(device), max(1, capacity.units_at_once(device))
    card = next((d for d in capacity.devices if d.id == device and device != CPU), None)
    return Terms(
        device=device,
        executors=capacity.executors(device),
        memory_bytes=unit_memory_bytes(card, config) if card else config.memory_bytes,
        providing=config.provide,
        draining=capacity.draining,
        own=identity.peer_id,
        allowed=frozenset(config.allow),
        leases=load.leases,
        units_waiting=load.units,
        waiting_s=load.waiting_s / at_once,
        stance=owner.stance(device),
        denied=frozenset(config.deny),
        strangers=config.serve != "friends",
        sandboxed=capacity.sandboxed.get(device, False),
        min_price=config.min_price,
        time_limit_s=config.time_limit_s,
        ban_of=ban_of,
        starting=capacity.starting,
        withheld=partial(withheld, config, standings, settling),
        doubted=standings.doubted,
        compiled=capacity.compiled(device),
        lost=capacity.lost.get(device, ""),
        at_once=at_once,
        rates={rate.numeric_class: rate.rate for rate in rates},
    )


def unit_memory_bytes(card: Device, config: Config) -> int:
    """What a unit may ask for on a card; where its driver does not say, as on the CPU.

    No more than there either: what it takes in and gives passes through this machine's
    memory, and may be as much.
    """
    on_card = card_memory.unit_most_bytes(card.memory_bytes) or config.memory_bytes
    return min(on_card, config.memory_bytes)
