"""What a node says of itself in its advert, and what it shows of it."""

import time

import msgspec
import trio
from challenge_samples import ALICE, BOB, CAROL, signed_proof

from shoal.compute.capability import Measurement, key_of
from shoal.compute.devices import Device
from shoal.compute.errors import ComputeError
from shoal.node import capability as capabilities
from shoal.node import capability_records
from shoal.node.capability import BELIED_AFTER_S, Capability
from shoal.node.cli.capability import measured_text
from shoal.node.proofs import ProofBook, checked
from shoal.protocol.statements import Advert, ClassRate, DeviceOffer

NAME = "Intel(R) Xeon(R) Platinum 8480+ with a long name"
CPU = Device(id="cpu", kind="cpu", name=NAME, memory_bytes=1 << 38, memory_free_bytes=1)
CLASSES = frozenset({"exact", "fp32"})
RATES = (ClassRate("exact", "x20", 41.2e9), ClassRate("fp32", None, 88.1e9))
FIGURES = Measurement(
    device="cpu",
    key=key_of(CPU, 8, CLASSES),
    measured_at=1.0,
    rates=RATES,
    memory_rate=10.1e9,
    disk_rate=890e6,
)
PLAIN = Advert(
    peer=BOB.peer_id,
    sequence=1_700_000_000_000,
    issued_at_ms=1_700_000_000_000,
    lifetime_s=60.0,
    protocol=(1, 1),
    agent="shoal/0.1.0",
    addresses=("/ip4/192.168.100.100/tcp/47110", "/ip4/198.51.100.100/tcp/47110"),
    devices=(
        DeviceOffer("cpu", "cpu", NAME[:48], 1 << 38, ("exact", "onnxruntime")),
        DeviceOffer("gpu0", "nvidia", "NVIDIA H100 80GB HBM3", 80 << 30),
    ),
    numeric_classes=("exact", "fp32"),
    providing=True,
)


def capability(figures=FIGURES, cpu=CPU, proofs=()):
    book = ProofBook(BOB.peer_id, frozenset())
    for proof in proofs:
        book.keep(proof)
    made = Capability(
        journal=None,
        worker=None,
        directory=None,
        threads=8,
        cpu=lambda: cpu,
        classes=lambda: CLASSES,
        idle=lambda: True,
        changed=lambda: None,
        book=book,
    )
    made._measured = figures
    return made


def proof(signer=ALICE, **changes):
    said = {"rate": 41.2e9, "shown": 40.1e9, "issued_at_ms": time.time_ns() // 1_000_000}
    return checked(signed_proof(signer, **(said | changes)))


def test_the_advert_claims_the_figures_of_the_device_that_was_measured():
    claimed = capability().claimed(PLAIN)
    assert claimed.devices[0].rates == RATES
    assert claimed.devices[0].memory_rate == FIGURES.memory_rate
    assert claimed.disk_rate == FIGURES.disk_rate
    assert claimed.devices[1] == PLAIN.devices[1]


def test_figures_about_something_else_are_not_claimed():
    swapped = msgspec.structs.replace(CPU, name="another")
    for made in (capability(cpu=swapped), capability(cpu=None), capability(figures=None)):
        assert made.claimed(PLAIN) == PLAIN
        assert made.rates == ()


def test_the_advert_says_when_the_newest_proof_was_issued():
    older, newer = proof(), proof(CAROL)
    newest = max(older.said.issued_at_ms, newer.said.issued_at_ms)
    made = capability(proofs=[older, newer])
    assert made.claimed(PLAIN).proven_at_ms == newest
    assert set(made.to_give()) == {older, newer}


def test_a_proof_about_what_is_not_claimed_any_more_stays_at_home():
    made = capability(proofs=[proof(device="gpu0"), proof(CAROL, precision="x8")])
    assert made.to_give() == ()
    assert made.claimed(PLAIN).proven_at_ms == 0
    assert capability(figures=None, proofs=[proof()]).to_give() == ()


def test_a_node_shows_who_has_seen_its_own_claims():
    made = capability(proofs=[proof()])
    exact, fp32 = made.view(made.claimed(PLAIN)).claims
    assert (exact.proven, exact.verifiers) == (True, (ALICE.peer_id,))
    assert not fp32.proven
    assert capability(figures=None).view(None).measured_at is None


async def test_a_measurement_that_fails_is_told_with_the_reason_until_one_succeeds(
    autojump_clock, monkeypatch, tmp_path
):
    problems = [ComputeError("the worker was killed by SIGKILL", code="worker_died")]

    async def rates(worker, classes):
        if problems:
            raise problems.pop()
        return RATES

    async def memory(worker):
        return FIGURES.memory_rate

    async def keep(journal, measurement):
        pass

    monkeypatch.setattr(capabilities.figures, "measure_rates", rates)
    monkeypatch.setattr(capabilities.figures, "measure_memory", memory)
    monkeypatch.setattr(capability_records, "keep_measurement", keep)
    made = capability(figures=None)
    made.directory = tmp_path
    made.settled.set()
    assert measured_text(made.view(None)).startswith("not measured yet")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.keep_measured)
        await trio.sleep(1)
        told = measured_text(made.view(None))
        assert told.startswith("could not be measured: the worker was killed by SIGKILL; ")
        assert "tried again" in told
        await trio.sleep(2 * BELIED_AFTER_S)
        nursery.cancel_scope.cancel()
    assert made.view(None).problem == ""
    assert made.rates == RATES


def test_old_figures_that_could_not_be_taken_anew_are_shown_with_the_reason():
    made = capability()
    made._problem = "the worker does not start."
    told = measured_text(made.view(None))
    assert told.endswith("ago, and not since: the worker does not start")
