"""All checks in order: what the others rest on comes first, what is far away last.

The two that wait (canaries of the executors, bootstrap peers) run beside the others,
each within its own limit, so that all of it ends within `LIMIT_S`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final

from shoal.crypto.errors import ShoalError
from shoal.node.cli.checkup import listening, machine, peers, work
from shoal.node.cli.checkup.bootstrap import visit_all
from shoal.node.cli.checkup.findings import Finding, failure, failure_of, warning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shoal.compute.devices import Inventory
    from shoal.node.cli.checkup.bootstrap import Visit
    from shoal.node.cli.checkup.patient import Patient

LIMIT_S: Final = 15.0
CANARY_LIMIT_S: Final = 12.0

_HERE: Final = (
    machine.user,
    machine.home,
    machine.settings,
    machine.key,
    machine.network,
    machine.disk,
    machine.files,
    work.daemon,
    listening.ports,
    listening.bulk,
    work.sandbox,
    work.served,
)


def examine(patient: Patient, look: Callable[[], Inventory]) -> Iterator[Finding]:
    """Run every check.

    Args:
        patient: The node.
        look: Finds the devices and what runs on them; may take `CANARY_LIMIT_S`.
    """
    with ThreadPoolExecutor(2) as beside:
        inventory = beside.submit(look)
        visits = beside.submit(_visits, patient)
        for check in _HERE:
            yield from _guarded(check.__name__, partial(check, patient))
        yield from _guarded("worker", lambda: work.worker_and_devices(inventory.result()))
        yield from _guarded("bootstrap", lambda: _network(patient, visits.result()))


def _visits(patient: Patient) -> tuple[list[Visit], list[Finding]]:
    """What bootstrap peers say, and why some were not asked."""
    own = patient.peer()  # an address of its own may be among them: an invitation goes round
    wanted = [text for text in patient.bootstrap() if not (own and text.endswith(own))]
    try:
        key = patient.swarm_key()
    except ShoalError:
        told = warning(
            "bootstrap",
            f"{len(wanted)} bootstrap peers were not asked, for want of the network's secret",
            "mend what is said of network first",
        )
        return [], [told] * bool(wanted)
    from shoal.node.private_network import PrivateNetwork

    return visit_all(wanted, PrivateNetwork(key) if key else None), []


def _network(patient: Patient, found: tuple[list[Visit], list[Finding]]) -> Iterator[Finding]:
    visits, unasked = found
    yield from unasked
    yield from peers.bootstrap(patient, visits)
    if not unasked:
        yield from peers.links(patient, visits)
    yield from peers.views(patient)
    yield from peers.clock(patient, visits)


def _guarded(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except ShoalError as error:
        yield failure_of(name, error)
    except Exception as error:  # noqa: BLE001  # root of a check: a fault in one must not hide the others
        yield failure(
            name,
            f"this check itself failed: {type(error).__name__}: {error}",
            "that is a fault of shoal's: please report it with `shoal bugreport`",
        )
