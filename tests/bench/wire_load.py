"""What 4 GiB on the way do to the two daemons: their memory, and how late their loops are.

One blob, from one daemon to another on loopback, both as processes with homes on disk.
Memory is resident memory, above what it was before, at its most while the blob was
fetched. How late a loop is, the daemons measure themselves ten times a second
(`shoal_event_loop_lag_seconds`); a percentile is told by the bound that it is under. As
other work on the machine delays loops too, the same is said of a while without the blob.
Prints a table.

    python tests/bench/wire_load.py [--mib 4096]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families
from two_daemons import fetched, two_daemons

MIB = 4096
WARM_UP_MIB = 32
"""What is imported and set up with the first blob is there from then on."""

MEMORY_LIMIT_MB = 64.0
LAG_P99_LIMIT_S = 0.02
RESTING_S = 20.0
LAG = "shoal_event_loop_lag_seconds_bucket"


class Watched:
    """One daemon, looked at while it works."""

    def __init__(self, name, node):
        self.name, self._node = name, node
        self._process = psutil.Process(node.process.pid)
        self._idle_mb = self._most_mb = self._mb()

    def begin(self):
        """Note where it stands."""
        self._lags, self._cpu_s = self._buckets(), self._used_s()

    def look(self):
        """Note what it holds now."""
        self._most_mb = max(self._most_mb, self._mb())

    def since(self):
        """How late its loop was since `begin`, and the processor time it took."""
        counts = {bound: n - self._lags[bound] for bound, n in self._buckets().items()}
        return Lags(counts), self._used_s() - self._cpu_s

    @property
    def grown_mb(self):
        """Resident memory above what it was at first, at its most."""
        return self._most_mb - self._idle_mb

    def _mb(self):
        return self._process.memory_info().rss / 1e6

    def _used_s(self):
        used = self._process.cpu_times()
        return used.user + used.system

    def _buckets(self):
        with self._node.client() as client:
            families = text_string_to_metric_families(client.metrics())
        samples = (sample for family in families for sample in family.samples)
        return {float(one.labels["le"]): one.value for one in samples if one.name == LAG}


class Lags:
    """How often a loop was late by at most each bound."""

    def __init__(self, counts):
        self._counts = counts

    def s(self, share):
        """The bound under which this share of the delays is."""
        least = share * self._counts[float("inf")]
        return min(bound for bound, below in self._counts.items() if below >= least)

    def told(self):
        """The median, the 99th percentile and the most, in ms."""
        return "".join(f"{f'<= {1e3 * self.s(share):g}':>9s}" for share in (0.5, 0.99, 1.0))


def an_array(path, mib):
    """A file of so many MiB, no two of them alike, as float32."""
    block = np.random.default_rng().integers(0, 1 << 60, 1 << 17, np.int64)
    array = np.memmap(path, np.int64, "w+", shape=(mib, 1 << 17))
    for index in range(mib):
        array[index] = block + index
    return array.reshape(-1).view(np.float32)


def main(mib):
    """Print the table; whether the targets are met."""
    with (
        tempfile.NamedTemporaryFile() as file,
        two_daemons(Path(tempfile.gettempdir())) as pair,
    ):
        fetched(pair, np.random.default_rng().random(WARM_UP_MIB << 18, np.float32))
        watched = [Watched("gives", pair.asker), Watched("takes", pair.taker)]
        array = an_array(file.name, mib)

        def begin():
            for one in watched:
                one.begin()

        def look():
            for one in watched:
                one.look()

        begin()
        time.sleep(RESTING_S)
        resting = [one.since()[0] for one in watched]
        took_s = fetched(pair, array, look, begin)
        moving = [one.since() for one in watched]
    print(f"{mib} MiB on loopback, {(mib << 20) / took_s / 1e6:.0f} MB/s; ", end="")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}")
    print(f"  {'delay of the loop, ms':>69s}")
    print(f"  {'':6s}{'MB above idle':>14s}{'CPU s/GiB':>11s}", end="")
    print(f"{'p50':>9s}{'p99':>9s}{'most':>9s}   at rest: p50, p99, most")
    for one, (lags, cpu_s), rest in zip(watched, moving, resting, strict=True):
        used = f"{one.grown_mb:14.1f}{cpu_s / mib * 1024:11.2f}"
        print(f"  {one.name:6s}{used}{lags.told()}  {rest.told()}")
    small = all(one.grown_mb <= MEMORY_LIMIT_MB for one in watched)
    quick = all(lags.s(0.99) <= LAG_P99_LIMIT_S for lags, _ in moving)
    told = {True: "met", False: "MISSED"}
    print(f"  target: <= {MEMORY_LIMIT_MB:g} MB above idle: {told[small]}")
    print(f"  target: <= {1e3 * LAG_P99_LIMIT_S:g} ms p99 delay of the loops: {told[quick]}")
    return small and quick


if __name__ == "__main__":
    given = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    given.add_argument("--mib", type=int, default=MIB)
    sys.exit(not main(given.parse_args().mib))
