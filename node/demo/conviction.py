"""The demo's second act: a stranger that lies is caught, and convicted by a proof.

It joins when the first job is done, and some of the files are looked at again: in the class
exact, in which two honest results have the same bits, so that a lie can be proved. That is
found out by the requester's daemon by itself; here it is waited for and told. The proof
goes into files, and is checked once more when all daemons have ended.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shoal.node.client.flows import failure_of
from shoal.node.demo.spread import JOB_LIMIT_S, UNIT_MEMORY_BYTES
from shoal.node.demo.swarm import Node, Swarm
from shoal.node.errors import WaitTimeoutError
from shoal.node.records import JobState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shoal.crypto.peer_id import PeerId
    from shoal.node.client import Client
    from shoal.node.client.flows import Prepared
    from shoal.node.peer_views import ProofView
    from shoal.node.records import Job

PRECISION = "x20"
UNITS = 32
"""Of one file each: enough that every node gets some."""

ROUNDS_LIMIT = 3
"""A node that is slow to answer may have got nothing of a first job."""

CONVICTED_LIMIT_S = 120.0
VERIFY_LIMIT_S = 120.0
_POLL_S = 0.05

JOINED_LIMIT_S = 120.0
"""Until all offer the class exact: its kernels are compiled once on each machine."""


class LyingSwarm(Swarm):
    """Honest daemons, and one more that lies and joins later: a stranger to all of them.

    Args:
        count: How many honest ones.
        settings: As for `Swarm`.
    """

    def __init__(self, count: int, settings: Iterable[str] = ()) -> None:
        super().__init__(count + 1, settings)

    @property
    def honest(self) -> list[Node]:
        """The daemons that do as they should."""
        return self.nodes[:-1]

    @property
    def liar(self) -> Node:
        """The one that lies."""
        return self.nodes[-1]

    def start_all(self) -> None:
        """Start the honest ones."""
        self.start_these(self.honest)

    def join_liar(self, waiting: Callable[[float], None]) -> None:
        """Start the one that lies, and wait until all offer the class exact.

        Args:
            waiting: Told now and then how long it has been, in seconds.

        Raises:
            SwarmError: It does not start, or one of them does not offer the class in time.
        """
        self.start(self.liar)
        self.wait_ready(self.liar)
        self.wait_acquainted(timeout_s=JOINED_LIMIT_S, offering="exact", waiting=waiting)

    def _command(self, node: Node) -> tuple[str, ...]:
        if node is not self.liar:
            return super()._command(node)
        return (sys.executable, "-P", "-m", "shoal.node.demo.liar")

    def _friends(self, node: Node) -> list[Node]:
        return [each for each in super()._friends(node) if each is not self.liar]


@dataclass(frozen=True, slots=True)
class Caught:
    """How the node that lies was caught; all empty where it was not.

    Attributes:
        units: Units of the job in which it lied.
        false: How many of its results were found false.
        delivered: How many of its results were delivered; none may be.
        checked_by: Who ran those units too and came to something else.
        finding: What the proof shows, by whoever checked it.
        proof: The file of the proof; beside it lies what it is about.
        verdict: What ``shoal proof verify`` said when no daemon ran; "" where it did not
            convict.
        command: Has the same said again.
    """

    peer: PeerId
    units: int = 0
    false: int = 0
    delivered: int = 0
    checked_by: tuple[PeerId, ...] = ()
    finding: str = ""
    proof: str = ""
    verdict: str = ""
    command: str = ""

    @property
    def problems(self) -> tuple[str, ...]:
        """What did not go as it must, in sentences."""
        found = []
        if self.delivered:
            found.append(f"{self.delivered} results of the node that lies were delivered")
        if not self.false:
            found.append("no result of the node that lies was found false")
        elif not self.proof:
            found.append("the node that lies was not convicted by a proof")
        elif not self.verdict:
            found.append("the proof against the node that lies was not confirmed offline")
        return tuple(found)


def run_among_liars(
    client: Client,
    program: Prepared,
    rows: dict[str, np.ndarray],
    on_progress: Callable[[Job], None],
) -> tuple[Job, list[dict[str, np.ndarray]]]:
    """Run a job in the class exact, of one row in each unit; gives it and its outputs.

    Args:
        client: Of the requester.
        program: In the precision `PRECISION`.
        rows: Inputs, of `UNITS` rows.
        on_progress: Told now and then how the job stands.

    Raises:
        JobFailedError: The job ended without its results.
        WaitTimeoutError: It did not end in time.
    """
    units = [{name: array[i : i + 1] for name, array in rows.items()} for i in range(UNITS)]
    job = client.submit(
        program,
        units,
        label="shoal demo, with a liar",
        numeric_class="exact",
        precision=PRECISION,
        memory_limit_bytes=UNIT_MEMORY_BYTES,
    )
    deadline_s = time.monotonic() + JOB_LIMIT_S
    while not job.state.final:
        if time.monotonic() > deadline_s:
            _, why = client.why(job.id)
            raise WaitTimeoutError(f"the job did not end within {JOB_LIMIT_S:.0f} s", hint=why)
        on_progress(job)
        time.sleep(_POLL_S)
        job = client.job(job.id)
    on_progress(job)
    if job.state is not JobState.DONE:
        raise failure_of(job)
    return job, [dict(outputs) for outputs in client.results(job.id)]


def caught_in(client: Client, job: Job, liar: PeerId) -> Caught:
    """What became of the liar's results in one job."""
    _, assured = client.assurance(job.id, 0, job.units_total)
    units = client.units(job.id, 0, job.units_total)
    ran = {unit.index: unit.provider for unit in units}
    false = [each for each in assured if liar in each.differed]
    right = [peer for each in false for peer in (ran[each.unit], *each.verifiers)]
    return Caught(
        peer=liar,
        units=job.units_total,
        false=len(false),
        delivered=sum(peer == liar for peer in ran.values()),
        checked_by=tuple(dict.fromkeys(peer for peer in right if peer is not None)),
    )


def await_proof(client: Client, liar: PeerId) -> ProofView | None:
    """Wait until the daemon believes a proof against the liar; None where it does not."""
    deadline_s = time.monotonic() + CONVICTED_LIMIT_S
    while time.monotonic() < deadline_s:
        for view in client.proofs():
            if view.accused == liar:
                return view
        time.sleep(_POLL_S)
    return None


def save(client: Client, view: ProofView) -> Path:
    """Write a proof, and its blobs beside it, to where they outlive the demo."""
    folder = Path(tempfile.mkdtemp(prefix="shoal-proof-"))
    file = folder / "liar.proof"
    file.write_bytes(client.proof(view.id))
    for blob_id in view.blobs:
        (folder / blob_id).write_bytes(client.blob(blob_id))
    return file


def verify_offline(file: Path) -> str:
    """What ``shoal proof verify`` says of a proof; "" where it does not convict.

    It is told of a home in which there is no daemon.
    """
    command = [sys.executable, "-P", "-m", "shoal.node.cli", "proof", "verify"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SHOAL_")}
    try:
        ended = subprocess.run(  # noqa: S603  # our own interpreter and files
            [*command, str(file)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=VERIFY_LIMIT_S,
            check=False,
            cwd=file.parent,
            env=environment | {"SHOAL_HOME": str(file.parent / "no-home")},
        )
    except subprocess.TimeoutExpired:
        return ""
    return " ".join(ended.stdout.split()) if ended.returncode == 0 else ""
