"""Capability challenges, counted: does the honest pass, does the liar fail, what does it cost.

    python tests/bench/challenge.py [--runs 100] [--claimed-s 0.5]

Three series of challenges through the real worker process, the real machines and the real
checks, with a link of no length between them: an honest claim with nothing beside it, an
honest claim with one busy process per core beside it (measured so), and a claim of four
times what this CPU does with nothing beside it. Then the verifier's cost beside the
prover's, in multiply-adds and in seconds of CPU, at challenges of the usual length.
"""

import argparse
import secrets
import statistics
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil
import trio

from shoal.compute import frames
from shoal.compute.capability import claim_of, measure_class
from shoal.compute.challenge_work import ChallengeWork
from shoal.compute.devices import detect
from shoal.compute.errors import ComputeError
from shoal.compute.supervisor import open_worker
from shoal.crypto import identity
from shoal.crypto.envelope import Statement
from shoal.crypto.errors import VerificationError
from shoal.protocol.challenge import ProverSide, VerifierSide
from shoal.protocol.challenge_messages import Challenge, Committed, Draw, ProofOffer
from shoal.protocol.challenge_terms import (
    CLAIMED_TIME_S,
    draw_places,
    time_allowed_s,
    work_for,
    work_of,
)
from shoal.protocol.codec import encode

PROVER, VERIFIER = identity.generate(), identity.generate()
MARGIN_S = 0.3
BUSY = (sys.executable, "-c", "while True: pass")


@dataclass
class Series:
    """How the challenges of one kind ended, by code; ``shown`` by the honest."""

    name: str
    claim: float
    outcomes: Counter = field(default_factory=Counter)
    shown: list = field(default_factory=list)

    def __str__(self):
        ends = ", ".join(f"{count} {code}" for code, count in self.outcomes.most_common())
        span = ""
        if self.shown:
            low, high = min(self.shown) / self.claim, max(self.shown) / self.claim
            span = f"; showed {low:.2f} to {high:.2f} times the claim"
        return f"{self.name}: claim {self.claim / 1e9:.2f} GMAC/s: {ends}{span}"


def asked(rate, time_s):
    work = work_for(rate, time_s)
    return Challenge(
        nonce=secrets.token_hex(16),
        device="cpu",
        numeric_class="exact",
        precision="x20",
        rate=rate,
        rows=work.rows,
        size=work.size,
        steps=work.steps,
    )


def committed(side, roots, elapsed_s):
    commitment = side.commitment_to(roots, elapsed_s)
    envelope = PROVER.sign(Statement.COMMITMENT, encode(commitment))
    return Committed(nonce=commitment.nonce, commitment=envelope)


def split(joined):
    return [joined[at : at + 32] for at in range(0, len(joined), 32)]


async def one(worker, challenge):
    """One challenge, start to end; gives how it ended, and what was shown."""
    verifier = VerifierSide(VERIFIER.peer_id, PROVER.peer_id)
    prover = ProverSide(VERIFIER.peer_id, PROVER.peer_id)
    try:
        verifier.send(challenge, time.monotonic())
        prover.receive(challenge, time.monotonic())
        prove = frames.Prove(
            prover.root,
            challenge.rows,
            challenge.size,
            challenge.steps,
            challenge.precision,
            time_limit_s=time_allowed_s(challenge) + MARGIN_S,  # a daemon waits no longer
        )
        done = await worker.measure(prove, frames.Proved, prove.time_limit_s)
        prover.leaves = done.leaves
        answer = committed(prover, done.roots, done.elapsed_s)
        prover.send(answer, time.monotonic())
        verifier.receive(answer, time.monotonic())
        draw = Draw(
            nonce=challenge.nonce, places=draw_places(work_of(challenge), secrets.randbelow)
        )
        verifier.send(draw, time.monotonic())
        prover.receive(draw, time.monotonic())
        opened = prover.open()
        prover.send(opened, time.monotonic())
        verifier.receive(opened, time.monotonic())
        rows = tuple((row.seed, row.row) for row in verifier.rows)
        recompute = frames.Recompute(verifier.root, challenge.size, challenge.precision, rows)
        computed = await worker.measure(recompute, frames.Recomputed, 60.0)
        said = verifier.judge(split(computed.leaves), 0)
        proof = VERIFIER.sign(Statement.CAPABILITY, encode(said))
        offer = ProofOffer(nonce=challenge.nonce, proof=proof)
        verifier.send(offer, time.monotonic())
        prover.receive(offer, time.monotonic())
    except (VerificationError, ComputeError) as error:
        return {"time_limit": "too_slow"}.get(error.code, error.code), 0.0
    return "passed", verifier.shown


async def series(worker, name, claim, runs, time_s):
    """Challenge one claim so many times."""
    result = Series(name, claim)
    for _ in range(runs):
        code, shown = await one(worker, asked(claim, time_s))
        result.outcomes[code] += 1
        if code == "passed":
            result.shown.append(shown)
    return result


async def exact_claim(worker):
    rate = await measure_class(worker, "exact")
    return rate.rate


@contextmanager
def busy_cores():
    """One busy process for each core."""
    children = [subprocess.Popen(BUSY) for _ in range(psutil.cpu_count())]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


async def run_all(runs, time_s, say=print):
    """The three series, one after another."""
    cores = detect().devices[0].threads
    async with open_worker(threads=cores) as worker:
        await worker.enable_exact()
        honest = await series(worker, "honest", await exact_claim(worker), runs, time_s)
        say(honest)
        with busy_cores():
            claim = await exact_claim(worker)
            busy = await series(worker, "honest, busy cores beside it", claim, runs, time_s)
        say(busy)
        fastest = max([unhindered_rate(), *honest.shown, *busy.shown])
        lie = await series(
            worker, "claim of 4 x its rate", claim_of([4 * fastest]), runs, time_s
        )
        say(lie)
        return [honest, busy, lie]


def costs(rate, repeats=5, average=statistics.mean):
    """(multiply-adds, CPU seconds) of prover and verifier, everything that each does."""
    from shoal.compute.exact.cpu.kernels import CpuKernels

    kernels = CpuKernels(detect().devices[0].threads)
    kernels.warm_up()
    work = ChallengeWork(kernels)
    challenge = asked(rate, CLAIMED_TIME_S)
    provers, verifiers = [], []
    for _ in range(repeats):
        verifier = VerifierSide(VERIFIER.peer_id, PROVER.peer_id)
        prover = ProverSide(VERIFIER.peer_id, PROVER.peer_id)
        verifier.send(challenge, 0.0)
        prover.receive(challenge, 0.0)
        started = time.process_time()
        steps = work.chain(prover.root, work_of(challenge), "x20")
        prover.leaves = tuple(b"".join(step.leaves) for step in steps)
        answer = committed(prover, tuple(step.root for step in steps), 1.0)
        prover.send(answer, 0.0)
        provers.append(time.process_time() - started)
        started = time.process_time()
        verifier.receive(answer, 0.0)
        places = draw_places(work_of(challenge), secrets.randbelow)
        draw = Draw(nonce=challenge.nonce, places=places)
        verifier.send(draw, 0.0)
        verifiers.append(time.process_time() - started)
        started = time.process_time()
        prover.receive(draw, 0.0)
        opened = prover.open()
        provers[-1] += time.process_time() - started
        started = time.process_time()
        verifier.receive(opened, 0.0)
        leaves = work.row_leaves(verifier.root, challenge.size, verifier.rows, "x20")
        said = verifier.judge(leaves, 0)
        VERIFIER.sign(Statement.CAPABILITY, encode(said))
        verifiers[-1] += time.process_time() - started
    rows = len(places)
    amounts = work_of(challenge).multiply_adds, rows * challenge.size**2
    return challenge, amounts, (average(provers), average(verifiers))


def unhindered_rate():
    """What this CPU does when nothing else runs, at the work that four times it is asked.

    By its own seconds and not by the clock's. Larger products go faster, hence the turns.
    """
    rate = 20e9
    for _ in range(3):
        _, (multiply_adds, _), (cpu_s, _) = costs(4 * rate, repeats=2, average=min)
        rate = multiply_adds / cpu_s * detect().devices[0].threads
    return rate


def print_costs(rate):
    challenge, amounts, seconds = costs(rate)
    shape = f"{challenge.steps} x ({challenge.rows}, {challenge.size}) x {challenge.size}^2"
    print(
        f"at a claim of {rate / 1e9:.3g} GMAC/s, {shape}: the verifier multiplies "
        f"{amounts[1] / 1e6:.0f} M of the prover's {amounts[0] / 1e6:.0f} M "
        f"({amounts[1] / amounts[0]:.2%}), in {seconds[1] * 1e3:.1f} ms of CPU beside "
        f"{seconds[0] * 1e3:.0f} ms ({seconds[1] / seconds[0]:.2%})"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--claimed-s", type=float, default=0.5)
    parser.add_argument("--costs-only", action="store_true")
    given = parser.parse_args()
    rates = [1e9, 5e9, 20e9, 50e9]
    if not given.costs_only:
        print(f"{given.runs} challenges of {given.claimed_s} s at the claim in each series")
        results = trio.run(run_all, given.runs, given.claimed_s)
        rates = sorted({*rates, results[0].claim})
    for rate in rates:
        print_costs(rate)


if __name__ == "__main__":
    main()
