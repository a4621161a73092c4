"""What a node says of itself in its advert, and what it shows of it."""

import time
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
from challenge_samples import ALICE, BOB, CAROL, signed_proof

from shoal.compute.capability import VERSION, Figures, Measurement, key_of
from shoal.compute.devices import Device
from shoal.compute.errors import ComputeError, ProgramError
from shoal.node import capability as capabilities
from shoal.node import capability_records
from shoal.node.capability import Capability
from shoal.node.cli.capability import card_texts, measured_text
from shoal.node.measuring_plan import BELIED_AFTER_S, Tries
from shoal.node.proofs import ProofBook, checked
from shoal.protocol.device_offers import ClassRate, DeviceOffer
from shoal.protocol.statements import Advert

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
    version=VERSION,
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


CARDS = tuple(
    Device(
        id=f"gpu{number}",
        kind="nvidia",
        name="NVIDIA H200",
        memory_bytes=150 << 30,
        memory_free_bytes=1,
        uuid=f"GPU-{number}",
    )
    for number in range(2)
)
ON_CARDS = frozenset({"exact", "fp32", "low", "kernel"})


def card_figures(number, exact=2e12, device=None):
    """What was measured of a card."""
    return Measurement(
        device=f"gpu{number}",
        key=key_of(device or CARDS[number], 8, ON_CARDS),
        measured_at=1.0,
        rates=(ClassRate("exact", "x20", exact), ClassRate("fp32", None, 33e12)),
        memory_rate=4e12,
        failed=(("low", "no memory"),),
        version=VERSION,
    )


def capability(*figures, devices=(CPU,), proofs=(), classes=None, compiled=None):
    book = ProofBook(BOB.peer_id, frozenset())
    for proof in proofs:
        book.keep(proof)
    classes = {"cpu": CLASSES, "gpu0": ON_CARDS, "gpu1": ON_CARDS} | (classes or {})
    made = Capability(
        journal=None,
        directory=None,
        threads=8,
        devices=lambda: devices,
        classes=lambda device: classes[device],
        compiled=lambda device: (compiled or {}).get(device, ()),
        worker=lambda device: device,
        hold=lambda _device: None,
        changed=lambda: None,
        book=book,
    )
    made._measured = {each.device: each for each in figures}
    return made


def proof(signer=ALICE, **changes):
    said = {"rate": 41.2e9, "shown": 40.1e9, "issued_at_ms": time.time_ns() // 1_000_000}
    return checked(signed_proof(signer, **(said | changes)))


def test_the_advert_claims_the_figures_of_the_device_that_was_measured():
    claimed = capability(FIGURES).claimed(PLAIN)
    assert claimed.devices[0].rates == RATES
    assert claimed.devices[0].memory_rate == FIGURES.memory_rate
    assert claimed.disk_rate == FIGURES.disk_rate
    assert claimed.devices[1] == PLAIN.devices[1]


def test_figures_about_something_else_are_not_claimed():
    swapped = msgspec.structs.replace(CPU, name="another")
    older = msgspec.structs.replace(FIGURES, version=1)
    for made in (
        capability(FIGURES, devices=(swapped,)),
        capability(FIGURES, devices=()),
        capability(FIGURES, classes={"cpu": frozenset()}),
        capability(older),
        capability(),
    ):
        assert made.claimed(PLAIN) == PLAIN
        assert made.rates("cpu") == ()


def test_the_advert_says_when_the_newest_proof_was_issued():
    older, newer = proof(), proof(CAROL)
    newest = max(older.said.issued_at_ms, newer.said.issued_at_ms)
    made = capability(FIGURES, proofs=[older, newer])
    assert made.claimed(PLAIN).proven_at_ms == newest
    assert set(made.to_give()) == {older, newer}


def test_a_proof_about_what_is_not_claimed_any_more_stays_at_home():
    made = capability(FIGURES, proofs=[proof(device="gpu0"), proof(CAROL, precision="x8")])
    assert made.to_give() == ()
    assert made.claimed(PLAIN).proven_at_ms == 0
    assert capability(proofs=[proof()]).to_give() == ()


def test_a_node_shows_who_has_seen_its_own_claims():
    made = capability(FIGURES, proofs=[proof()])
    exact, fp32 = made.view(made.claimed(PLAIN)).claims
    assert (exact.proven, exact.verifiers) == (True, (ALICE.peer_id,))
    assert not fp32.proven
    assert capability().view(None).measured_at is None


class Measuring:
    """In place of a worker's answers: what `measure_device` gives of each device."""

    def __init__(self, monkeypatch):
        self.problems, self.measured, self.kept, self.started = {}, [], {}, None
        monkeypatch.setattr(capabilities.figures, "measure_device", self.measure)
        monkeypatch.setattr(capability_records, "keep_measurement", self.keep)
        monkeypatch.setattr(Capability, "_disk_rate", self.disk)  # no thread: time jumps

    async def measure(self, worker, classes, amounts, began):
        self.measured.append(worker)
        if self.started is not None:
            self.started(worker)
        await trio.sleep(1)
        if self.problems.get(worker):
            raise self.problems[worker].pop()
        rates = RATES if worker == "cpu" else card_figures(0).rates
        return Figures(rates, FIGURES.memory_rate)

    async def disk(self):
        return FIGURES.disk_rate

    async def keep(self, journal, measurement):
        await trio.sleep(1)
        self.kept[measurement.device] = measurement


@asynccontextmanager
async def keeping(made):
    made.settled.set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.keep_measured)
        yield
        nursery.cancel_scope.cancel()


async def test_a_measurement_that_fails_is_told_with_the_reason_until_one_succeeds(
    autojump_clock, monkeypatch
):
    measuring = Measuring(monkeypatch)
    measuring.problems["cpu"] = [
        ComputeError("the worker was killed by SIGKILL", code="worker_died")
    ]
    made = capability()
    assert measured_text(made.view(None)).startswith("not measured yet")
    async with keeping(made):
        await trio.sleep(2)
        told = measured_text(made.view(None))
        assert told.startswith("could not be measured: the worker was killed by SIGKILL; ")
        assert "tried again" in told
        await trio.sleep(2 * BELIED_AFTER_S)
    assert made.view(None).problem == ""
    assert made.rates("cpu") == RATES


async def test_every_device_is_measured_one_after_another_and_all_is_kept(
    autojump_clock, monkeypatch
):
    measuring = Measuring(monkeypatch)
    made = capability(devices=(CPU, *CARDS))
    async with keeping(made):
        await trio.sleep(4)
        assert measuring.measured == ["cpu"]
        await trio.sleep(30)
    assert measuring.measured == ["cpu", "gpu0", "gpu1"]
    assert set(measuring.kept) == {"cpu", "gpu0", "gpu1"}
    assert measuring.kept["gpu1"].rates == made.rates("gpu1") == card_figures(0).rates


async def test_a_card_that_comes_while_another_is_measured_and_kept_is_measured_too(
    autojump_clock, monkeypatch
):
    """What is kept by device grows under whoever goes through it."""
    measuring = Measuring(monkeypatch)
    made, devices = capability(), [CPU]
    made.devices = lambda: devices
    measuring.started = lambda _: devices.extend(c for c in CARDS if c not in devices)
    async with keeping(made):
        for _ in range(40):
            await trio.sleep(1)
            made.claimed(PLAIN)
            made.view(PLAIN)
    assert set(measuring.kept) == {"cpu", "gpu0", "gpu1"}


async def test_a_card_that_is_lost_while_it_is_measured_claims_nothing_any_more(
    autojump_clock, monkeypatch
):
    measuring, classes = Measuring(monkeypatch), {"gpu0": ON_CARDS}
    old = msgspec.structs.replace(card_figures(0), measured_at=1.0)
    made = capability(old, devices=CARDS[:1])
    made.classes = classes.__getitem__
    assert made.rates("gpu0") == old.rates
    measuring.started = lambda _: classes.update(gpu0=frozenset())
    async with keeping(made):
        await trio.sleep(3)
        assert measuring.measured == ["gpu0"]
        assert made.rates("gpu0") == ()
        offers = (DeviceOffer("gpu0", "nvidia", "NVIDIA H200", 150 << 30),)
        advert = msgspec.structs.replace(PLAIN, devices=offers)
        assert made.claimed(advert).devices == offers
        await trio.sleep(600)
    assert measuring.measured == ["gpu0"]  # it takes no units: nobody looks at it


async def test_a_card_that_fails_every_time_is_left_alone_longer_and_longer(
    autojump_clock, monkeypatch
):
    measuring = Measuring(monkeypatch)
    failures = [ProgramError("a library failed", code="library_failure") for _ in range(50)]
    measuring.problems["gpu0"] = failures
    made = capability(devices=CARDS[:1])
    async with keeping(made):
        await trio.sleep(1000)
    assert 4 <= len(measuring.measured) <= 5
    (figures,) = made.view(None).devices
    assert figures.problem == "a library failed"


@pytest.mark.parametrize("belied", [False, True])
async def test_a_claim_that_could_neither_be_shown_nor_measured_is_made_no_more(
    autojump_clock, monkeypatch, belied
):
    measuring = Measuring(monkeypatch)
    measuring.problems["gpu0"] = [ComputeError("the card failed", code="device_failed")] * 9
    made = capability(card_figures(0), devices=CARDS[:1])  # of long ago: due anyway
    if belied:
        made.belie("gpu0")
    async with keeping(made):
        await trio.sleep(30)
    assert measuring.measured == ["gpu0"]
    assert bool(made.rates("gpu0")) is not belied


def test_what_a_card_claims_is_shown_of_each_card_and_so_is_why_a_class_has_no_rate():
    seen = proof(device="gpu0", rate=1.9e12, shown=1.9e12)
    made = capability(
        *(card_figures(0, 2e12), card_figures(1, 1.9e12)), devices=CARDS, proofs=[seen]
    )
    offers = tuple(DeviceOffer(d.id, d.kind, d.name, d.memory_bytes, ("exact",)) for d in CARDS)
    own = made.claimed(msgspec.structs.replace(PLAIN, devices=offers))
    (line,) = own.devices
    assert (line.id, line.count, line.rates[0].rate) == ("gpu0", 2, 1.9e12)
    view = made.view(own)
    exact = {c.device: c for c in view.claims if c.numeric_class == "exact"}
    assert (exact["gpu0"].rate, exact["gpu1"].rate) == (2e12, 1.9e12)
    assert exact["gpu0"].proven
    assert exact["gpu1"].proven
    assert [each.device for each in view.devices] == ["gpu0", "gpu1"]
    texts = card_texts(view.devices[0])
    assert texts[0].startswith("memory moves 4.0 TB/s; measured ")
    assert "no rate of kernel: units of this class are kernels of their own" in texts[1]
    assert texts[2] == "no rate of low: it could not be measured: no memory"


def test_a_card_that_only_compiles_claims_nothing_and_says_so():
    made = capability(
        *(card_figures(0),),
        devices=CARDS[:1],
        classes={"gpu0": frozenset()},
        compiled={"gpu0": ("exact", "kernel")},
    )
    (figures,) = made.view(None).devices
    assert made.rates("gpu0") == ()
    assert figures.measured_at is None
    (told,) = card_texts(figures)
    assert told.startswith("no rate of exact, kernel: compile-only")


def test_old_figures_that_could_not_be_taken_anew_are_shown_with_the_reason():
    made = capability(FIGURES)
    made._tries["cpu"] = Tries(problem="the worker does not start.")
    told = measured_text(made.view(None))
    assert told.endswith("ago, and not since: the worker does not start")
