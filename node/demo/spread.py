"""The demo's job: a map over all nodes, during which one provider is killed.

What a submitter would do by hand, through `shoal.Client` and the socket of the
first daemon, which is the requester and a provider at once. What came of it is
gathered here and judged in `node.demo.account`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.compute.tensor import to_blob
from shoal.crypto.content import blob_id_of
from shoal.node.client.batching import batches
from shoal.node.client.flows import failure_of
from shoal.node.errors import WaitTimeoutError
from shoal.node.records import JobState, UnitState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import numpy as np

    from shoal.crypto.content import BlobId
    from shoal.crypto.peer_id import PeerId
    from shoal.node.client import Client
    from shoal.node.client.flows import Prepared
    from shoal.node.demo.swarm import Swarm
    from shoal.node.records import Job, Unit

JOB_LIMIT_S = 120.0
FILES_PER_UNIT_LIMIT = 8
UNITS_WANTED = 64
"""Enough of them that every node gets some and that half-way is a moment, not a guess."""

UNIT_MEMORY_BYTES = 1 << 30
"""magika's model needs some 100 MB; a small machine offers no more than this."""

_POLL_S = 0.02
_UNITS_PER_REQUEST = 1000


@dataclass(frozen=True, slots=True)
class Delivered:
    """One unit as it came back: what was sent, what came, and the receipt beside it.

    Attributes:
        rows: How many files were sent in it.
        inputs: Tensor ids of what was sent, taken here and now.
        output_ids: Tensor ids of what came, taken here and now.
    """

    unit: Unit
    rows: int
    inputs: dict[str, BlobId]
    outputs: dict[str, np.ndarray]
    output_ids: dict[str, BlobId]
    envelope: bytes


@dataclass(frozen=True, slots=True)
class Killed:
    """The provider that was killed, and what was done by then.

    Attributes:
        units_done: Of all ``units_total`` units, when it was killed.
        own_units_done: Those of them that this provider had run.
    """

    peer: PeerId
    units_done: int
    units_total: int
    own_units_done: int

    @property
    def half_way(self) -> bool:
        """Whether there was work left; a small job may end in the same moment."""
        return self.units_done < self.units_total


@dataclass(frozen=True, slots=True)
class Spread:
    """A job that has ended.

    Attributes:
        units: Every unit, in order of its index.
        receipt_ids: All receipts that the requester holds for the job.
        killed: None where the job was over before a provider could be killed.
    """

    job: Job
    units: tuple[Delivered, ...]
    receipt_ids: tuple[BlobId, ...]
    killed: Killed | None


def files_per_unit(files: int) -> int:
    """How many files go into one unit, so that there are enough units to spread."""
    return max(1, min(FILES_PER_UNIT_LIMIT, files // UNITS_WANTED))


def spread(
    swarm: Swarm,
    client: Client,
    program: Prepared,
    inputs: Mapping[str, np.ndarray],
    *,
    on_progress: Callable[[Job], None],
    on_kill: Callable[[Killed], None],
) -> Spread:
    """Run a program on each row of ``inputs``, and kill a provider half-way.

    Raises:
        JobFailedError: The job ended without its results.
        WaitTimeoutError: It did not end in time.
    """
    rows = len(next(iter(inputs.values())))
    sent = list(batches(inputs, files_per_unit(rows)))
    job = client.submit(program, sent, label="shoal demo", memory_limit_bytes=UNIT_MEMORY_BYTES)
    killed = None
    deadline_s = time.monotonic() + JOB_LIMIT_S
    while not job.state.final:
        if time.monotonic() > deadline_s:
            _, why = client.why(job.id)
            raise WaitTimeoutError(f"the job did not end within {JOB_LIMIT_S:.0f} s", hint=why)
        on_progress(job)
        if killed is None and 2 * job.units_done >= job.units_total:
            killed = _kill_one(swarm, client, job)
            if killed is not None:
                on_kill(killed)
        time.sleep(_POLL_S)
        job = client.job(job.id)
    on_progress(job)
    if job.state is not JobState.DONE:
        raise failure_of(job)
    units = _units(client, job)
    delivered = tuple(
        _deliver(client, unit, outputs, arrays)
        for unit, outputs, arrays in zip(units, client.results(job.id), sent, strict=True)
    )
    return Spread(job, delivered, tuple(client.receipts(job.id)), killed)


def choose_victim(units: Iterable[Unit], requester: PeerId) -> PeerId | None:
    """The provider other than the requester that has run most units, if any has."""
    run: dict[PeerId, int] = {}
    for unit in units:
        if unit.state is UnitState.DONE and unit.provider not in (None, requester):
            run[unit.provider] = run.get(unit.provider, 0) + 1
    return max(run, key=lambda peer: (run[peer], peer), default=None)


def _kill_one(swarm: Swarm, client: Client, job: Job) -> Killed | None:
    """Kill a provider that has run units already; None while none has."""
    victim = choose_victim(_units(client, job), swarm.nodes[0].peer)
    if victim is None:
        return None
    next(node for node in swarm.nodes if node.peer == victim).kill()
    done = [unit for unit in _units(client, job) if unit.state is UnitState.DONE]
    own = sum(unit.provider == victim for unit in done)
    return Killed(victim, len(done), job.units_total, own)


def _units(client: Client, job: Job) -> list[Unit]:
    return client.units(job.id, 0, _UNITS_PER_REQUEST)


def _deliver(
    client: Client,
    unit: Unit,
    outputs: Mapping[str, np.ndarray],
    sent: Mapping[str, np.ndarray],
) -> Delivered:
    return Delivered(
        unit=unit,
        rows=len(next(iter(sent.values()))),
        inputs={name: blob_id_of(to_blob(array)) for name, array in sent.items()},
        outputs=dict(outputs),
        output_ids={name: blob_id_of(to_blob(array)) for name, array in outputs.items()},
        envelope=client.receipt(unit.receipt) if unit.receipt else b"",
    )
