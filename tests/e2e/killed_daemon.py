"""A submitter's daemon that is killed at one of the writes that follow a job's submission."""

import sys
from pathlib import Path

import models
import numpy as np
from daemons import eventually

from shoal.crypto.errors import ShoalError
from shoal.node.demo.swarm import Swarm
from shoal.node.records import JobState

ROWS = np.arange(6 * 4, dtype=np.float32).reshape(6, 4)
TURNS = 20_000
"""A unit then takes some hundredths of a second."""

SCRIPT = Path(__file__).with_name("killing_sqlite.py")
LIMIT_S = 60.0


class KillingSwarm(Swarm):
    """A submitter's daemon, which may be killed at a write, and one that works for it."""

    def __init__(self):
        super().__init__(2)
        self.kill = None

    def _before(self, node):
        if node is not self.nodes[0] or self.kill is None:
            return ()
        at, when = self.kill
        return (sys.executable, "-P", str(SCRIPT), str(at), when)

    def restart(self, kill=None):
        """Start the submitter's daemon again, to be killed at ``kill`` or not at all."""
        submitter = self.nodes[0]
        submitter.kill()
        self.kill = kill
        self.start(submitter)
        self.wait_ready(submitter)

    def live(self, kill):
        """Deliver a job through a kill; gives whether there was one before the job's end."""
        submitter = self.nodes[0]
        self.restart(kill)
        label = f"killed {kill[1]} {kill[0]}"
        self._submit(label)
        eventually(lambda: not submitter.running or self._done(label), LIMIT_S, label)
        killed = not submitter.running
        self.restart()
        if self._find(label) is None:  # it was not written, and nobody was told that it was
            assert kill == (1, "before")
            self._submit(label)
        eventually(lambda: self._done(label), LIMIT_S, label)
        self._check(label)
        return killed

    def _submit(self, label):
        try:
            with self.nodes[0].client() as client:
                units = [{"x": row[None]} for row in ROWS]
                client.submit(models.slow(TURNS), units, label=label)
        except (ShoalError, OSError):
            if self.nodes[0].running and self.nodes[0].process.wait(LIMIT_S) is None:
                raise

    def _find(self, label):
        with self.nodes[0].client() as client:
            found = [job for job in client.jobs(100) if job.label == label]
        assert len(found) <= 1
        return found[0] if found else None

    def _done(self, label):
        try:
            job = self._find(label)
        except ShoalError:
            return False
        return job is not None and job.state is JobState.DONE

    def _check(self, label):
        """Every unit was delivered once: right, with a receipt, and counted."""
        job = self._find(label)
        assert (job.units_done, job.units_failed) == (len(ROWS), 0)
        with self.nodes[0].client() as client:
            found = np.concatenate([outputs["y"] for outputs in client.results(job.id)])
            units = client.units(job.id, 0, 100)
            receipts = client.receipts(job.id)
        np.testing.assert_array_equal(found, ROWS)
        assert [unit.receipt for unit in units] == receipts
        assert len(set(receipts)) == len(ROWS)
