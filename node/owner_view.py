"""What the owner is shown of the owner's own settings: who is served, when, by what.

Pure: `node.owner_watch` knows how things stand, `node.bidding` acts on it, and
here both become a record of the local API. It also holds the name of a device
that the owner typed against those that there are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from shoal.node import owner, schedule
from shoal.node.errors import ConfigError
from shoal.node.owner import WHOLE_NODE, Stance
from shoal.node.status_views import OwnerView, StanceView

if TYPE_CHECKING:
    from shoal.compute.devices import Device
    from shoal.node.bidding import Terms
    from shoal.node.config import Config
    from shoal.node.owner_watch import OwnerWatch


def owner_view(
    config: Config,
    watch: OwnerWatch,
    devices: Sequence[str],
    terms: Terms,
    units_at_once: Callable[[str], int],
) -> OwnerView:
    """How the owner's settings and pauses stand at this moment."""
    change = schedule.next_change(config.schedule, schedule.wall_clock(time.time()))
    return OwnerView(
        provide=config.provide,
        serve=config.serve,
        sandboxed=terms.sandboxed,
        allowed=len(set(config.allow) - set(config.deny)),
        denied=len(config.deny),
        min_price=config.min_price,
        cores=config.cores,
        memory_bytes=config.memory_bytes,
        stances=tuple(
            stance_view(device, watch.stance(device), units_at_once(device))
            for device in devices
        ),
        schedule=tuple(schedule.texts(config.schedule)),
        schedule_changes_at=None if change is None else change.timestamp(),
        step_back=config.step_back,
        use=watch.use,
    )


def stance_view(device: str, stance: Stance, units_at_once: int) -> StanceView:
    """One device's stance as a record."""
    return StanceView(
        device=device,
        peers=stance.cause is None,
        own=stance.own,
        cause=None if stance.cause is None else stance.cause.value,
        until=stance.until_s,
        sentence=owner.sentence(stance),
        units_at_once=units_at_once,
    )


def check_device(device: str | None, devices: Sequence[Device]) -> str:
    """The device's id, or `WHOLE_NODE` for None.

    Raises:
        ConfigError: ``no_such_device``.
    """
    known = [found.id for found in devices]
    if device is None or device in known:
        return WHOLE_NODE if device is None else device
    raise ConfigError(
        f"this node has no device {device[:40]!r}",
        code="no_such_device",
        hint=f"it has {', '.join(known)}; see `shoal devices`",
    )
