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
from shoal.compute.devices.abilities import Canaries, executor_of, takes_units, with_abilities
from shoal.compute.devices.inventory import Inventory
from shoal.node.addresses import address_of
from shoal.node.bidding import Terms
from shoal.node.serving import withheld
from shoal.protocol.advert_fitting import grouped
from shoal.protocol.limits import ADDRESSES_LIMIT, DEVICES_LIMIT
from shoal.protocol.statements import Advert, DeviceOffer
from shoal.protocol.versions import OWN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shoal.compute.devices import Device, Lack
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

AGENT: Final = f"shoal/{shoal.__version__}"


@dataclass(slots=True)
class Capacity:
    """What this node offers; the executors are known once the worker was probed."""

    devices: tuple[Device, ...] = ()
    executors: dict[str, str] = field(default_factory=dict)
    """The executor of each numeric class, by what its canary showed."""
    canaries: Canaries = field(default_factory=Canaries)
    sandboxed: bool = False
    """Whether the worker is locked in well enough for strangers' programs."""
    draining: bool = False
    starting: bool = True
    """Whether canaries are still to come."""

    def units_run_on(self) -> tuple[str, ...]:
        """The ids of the devices that run units; the worker's is the CPU."""
        return ("cpu",)

    def offer(self, probes: Sequence[Probe], lacks: Sequence[Lack]) -> None:
        """Offer what these canaries showed, and nothing else; note what they did not."""
        self.canaries = Canaries(tuple(probes), tuple(lacks))
        self.executors = {
            probe.numeric_class.value: executor_of(probe)
            for probe in probes
            if takes_units(probe)
        }


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

    It may be over the limit: `protocol.advert_fitting` leaves out what does not fit.
    """
    return Advert(
        peer=peer,
        sequence=sequence,
        issued_at_ms=time.time_ns() // 1_000_000,
        lifetime_s=lifetime_s,
        protocol=OWN,
        agent=AGENT,
        addresses=tuple(address_of(ip, port) for ip, port in reached.places)[:ADDRESSES_LIMIT],
        devices=grouped(
            tuple(
                DeviceOffer(
                    id=device.id,
                    kind=device.kind,
                    name=device.name[:48],
                    memory_bytes=device.memory_bytes,
                    executors=device.executors,
                )
                for device in with_abilities(
                    Inventory(capacity.devices), capacity.canaries
                ).devices
            )
        )[:DEVICES_LIMIT],
        numeric_classes=tuple(sorted(capacity.executors)),
        providing=config.provide and owner.announces_open and not capacity.draining,
        via=reached.via,
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
) -> Terms:
    """By what this node bids, or refuses, at this moment (`node.bidding`)."""
    (device,) = capacity.units_run_on()
    return Terms(
        device=device,
        executors=capacity.executors,
        memory_bytes=config.memory_bytes,
        providing=config.provide,
        draining=capacity.draining,
        own=identity.peer_id,
        allowed=frozenset(config.allow),
        leases=provider.leases,
        units_waiting=provider.units_waiting,
        waiting_s=provider.waiting_s,
        stance=owner.stance(device),
        denied=frozenset(config.deny),
        strangers=config.serve != "friends",
        sandboxed=capacity.sandboxed,
        min_price=config.min_price,
        time_limit_s=config.time_limit_s,
        ban_of=ban_of,
        starting=capacity.starting,
        withheld=partial(withheld, config, standings, settling),
        doubted=standings.doubted,
    )
