"""How long a job takes where one of four providers is ten times slower, beside the ideal.

And how long a short job waits behind a long one: another submitter's, and the same one's.

Daemons on loopback. Two cores are not four, so each provider's workers are stopped and
let go in turns (SIGSTOP, SIGCONT): the quick ones run for `QUICK` of the time, the slow one
for a tenth of that, and there is always a core for whoever may run. What each does alone is
measured in the same run; the ideal is the least time in which whole units could be done by
all four at those speeds, with no dispatch at all.

    python tests/bench/skew.py [--units 120] [--rounds 3]
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import onnxruntime
import psutil

sys.path.append(str(Path(__file__).parents[1] / "e2e"))

import models

from shoal.node.demo.swarm import Swarm
from shoal.node.records import JobState
from shoal.protocol.statements import open_receipt

QUICK = 0.3
SLOWER = 10
UNIT_S = 0.25
"""Of one unit at a quick provider."""

PERIOD_S = {QUICK: 0.1, QUICK / SLOWER: 0.5}
ALONE_UNITS = {QUICK: 16, QUICK / SLOWER: 4}
LONG_UNITS = 120
SHORT_UNITS = 12
TARGET = 1.3
LOOK_S = 1.0
SETTLE_S = 6.0
"""After a pause: a peer that refused is asked again some seconds later."""


class Duty(threading.Thread):
    """Lets the workers of one daemon run for a share of the time."""

    def __init__(self, node, share):
        super().__init__(daemon=True)
        self._daemon = psutil.Process(node.process.pid)
        self._share, self._period_s = share, PERIOD_S[share]
        self._over = threading.Event()

    def run(self):
        looked_s, workers = -LOOK_S, []
        while not self._over.is_set():
            if time.monotonic() - looked_s > LOOK_S:
                workers, looked_s = self._daemon.children(recursive=True), time.monotonic()
            self._send(workers, signal.SIGCONT)
            time.sleep(self._period_s * self._share)
            self._send(workers, signal.SIGSTOP)
            self._over.wait(self._period_s * (1 - self._share))
        self._send(self._daemon.children(recursive=True), signal.SIGCONT)

    def end(self):
        self._over.set()
        self.join()

    def _send(self, workers, number):
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.send_signal(number)


def unit_model():
    """A model that takes `UNIT_S` at a quick provider, by what it takes here."""
    turns = 100_000
    one_thread = onnxruntime.SessionOptions()
    one_thread.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        models.slow(turns), one_thread, providers=["CPUExecutionProvider"]
    )
    took = []
    for _ in range(5):
        began_s = time.process_time()
        session.run(None, {"x": models.rows(1)})
        took.append(time.process_time() - began_s)
    return models.slow(2 * round(turns * UNIT_S * QUICK / min(took) / 2))


def units(count):
    return [{"x": models.rows(1) + index} for index in range(count)]


class Bench:
    """Two submitters and four providers, the last of them slow."""

    def __init__(self, swarm):
        self.swarm, self.model = swarm, unit_model()
        self.ann, self.ben, *providers = [node.client() for node in swarm.nodes]
        self.providers = providers
        self.shares = [QUICK] * (len(providers) - 1) + [QUICK / SLOWER]
        for submitter in (self.ann, self.ben):
            submitter.pause("cpu")

    @contextmanager
    def only(self, *chosen):
        """The other providers take nothing."""
        others = [client for client in self.providers if client not in chosen]
        for client in others:
            client.pause("cpu")
        time.sleep(SETTLE_S)
        try:
            yield
        finally:
            for client in others:
                client.resume("cpu")
            time.sleep(SETTLE_S)

    def finish(self, submitter, count):
        """Seconds that a job takes, submission included."""
        return self.wait(submitter, submitter.submit(self.model, units(count)))

    def wait(self, submitter, job):
        job = submitter.wait(job.id)
        assert job.state is JobState.DONE, job
        return job.ended_at - job.created_at

    def alone_s(self, provider, share):
        """Seconds for each unit of a provider that has one requester."""
        with self.only(provider):
            job = self.ann.submit(self.model, units(ALONE_UNITS[share]))
            self.wait(self.ann, job)
        receipts = [open_receipt(self.ann.receipt(one)) for one in self.ann.receipts(job.id)]
        ends = sorted(receipt.ended_at_ms for receipt in receipts)
        assert len({receipt.provider for receipt in receipts}) == 1
        return (ends[-1] - ends[0]) / (len(ends) - 1) / 1e3

    def by_provider(self, job_id):
        found = [open_receipt(self.ann.receipt(one)) for one in self.ann.receipts(job_id)]
        peers = [receipt.provider for receipt in found]
        return [peers.count(node.peer) for node in self.swarm.nodes[2:]]

    def behind_s(self, behind, ahead):
        """Seconds of a short job of ``behind`` that comes once ``ahead``'s long one runs."""
        long = ahead.submit(self.model, units(LONG_UNITS))
        while ahead.job(long.id).units_done < 4:
            time.sleep(0.05)
        took_s = self.finish(behind, SHORT_UNITS)
        left = LONG_UNITS - ahead.job(long.id).units_done
        ahead.cancel(long.id)
        assert left > 0, "the long job ended first: the short one had nothing to wait for"
        return took_s


def ideal_s(count, alone_s):
    """The least time in which providers of such speeds end ``count`` whole units."""
    ends = sorted(one_s * nth for one_s in alone_s for nth in range(1, count + 1))
    return ends[count - 1]


def main(count, rounds):
    """Print both tables; whether the targets were met."""
    with Swarm(6, settings=["--cores=1"]) as swarm:
        swarm.start_all()
        swarm.wait_acquainted(timeout_s=60)
        bench = Bench(swarm)
        duties = [
            Duty(node, share) for node, share in zip(swarm.nodes[2:], bench.shares, strict=True)
        ]
        for duty in duties:
            duty.start()
        try:
            skew = skewed(bench, count, rounds)
            fair = shared(bench, rounds)
        finally:
            for duty in duties:
                duty.end()
    return max(skew, fair) <= TARGET


def skewed(bench, count, rounds):
    alone_s = [
        bench.alone_s(client, share)
        for client, share in zip(bench.providers, bench.shares, strict=True)
    ]
    ideal = ideal_s(count, alone_s)
    told = ", ".join(f"{one:.2f}" for one in alone_s)
    print(f"{count} units, four providers that take {told} s for one", flush=True)
    print("  job (s)   ideal (s)   ratio   units of each provider")
    ratios = []
    for _ in range(rounds):
        job = bench.ann.submit(bench.model, units(count))
        took_s = bench.wait(bench.ann, job)
        ratios.append(took_s / ideal)
        each = ", ".join(map(str, bench.by_provider(job.id)))
        print(f"  {took_s:7.2f} {ideal:11.2f} {ratios[-1]:7.2f}   {each}", flush=True)
    return told_ratio(ratios)


def shared(bench, rounds):
    """How a short job fares on one provider that a long one keeps busy."""
    provider = bench.providers[0]
    with bench.only(provider):
        alone_s = statistics.median(bench.finish(bench.ben, SHORT_UNITS) for _ in range(rounds))
        fair_s = 2 * alone_s  # half of the provider, as long as both have units
        print(f"{SHORT_UNITS} units behind {LONG_UNITS} on one provider; alone {alone_s:.2f} s")
        print("  the long job is of      short (s)   fair share (s)   ratio")
        ratios = []
        for whose, behind in (("another submitter", bench.ben), ("the same one", bench.ann)):
            took_s = statistics.median(bench.behind_s(behind, bench.ann) for _ in range(rounds))
            ratios.append(took_s / fair_s)
            print(f"  {whose:22s} {took_s:10.2f} {fair_s:16.2f} {ratios[-1]:7.2f}", flush=True)
    return max(told_ratio([one]) for one in ratios)


def told_ratio(ratios):
    ratio = statistics.median(ratios)
    verdict = "met" if ratio <= TARGET else "MISSED"
    print(f"  ratio {ratio:.2f}, target <= {TARGET:g}: {verdict}", flush=True)
    return ratio


if __name__ == "__main__":
    given = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    given.add_argument("--units", type=int, default=120)
    given.add_argument("--rounds", type=int, default=3)
    asked = given.parse_args()
    sys.exit(not main(asked.units, asked.rounds))
