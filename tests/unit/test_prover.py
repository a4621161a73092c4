"""Which device shows its claim, on which worker, and what is answered where it cannot."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import trio
from challenge_samples import ALICE, BOB, a_challenge, honest_leaves, joined
from test_challenge_decisions import TERMS

from shoal.compute import frames
from shoal.compute.errors import ComputeError, ProgramError
from shoal.crypto.merkle import root_of
from shoal.node.proofs import ProofBook
from shoal.node.prover import Prover
from shoal.protocol.challenge_messages import Committed
from shoal.protocol.device_offers import ClassRate
from shoal.protocol.negotiation_messages import Reason, Refusal

RATES = (ClassRate("exact", "x20", 1e6),)


class Working:
    """A worker that does a challenge's work, or fails."""

    busy = False

    def __init__(self, error=None):
        self.error, self.asked = error, []

    async def measure(self, request, kind, time_limit_s):
        assert kind is frames.Proved
        self.asked.append(request)
        if self.error is not None:
            raise self.error
        steps = honest_leaves(request.root, a_challenge())
        return frames.Proved(joined(steps), tuple(map(root_of, steps)), 0.1)


def node(cpu, card):
    """A prover of a node with a card, and the devices that it was told have failed."""
    terms = [TERMS, replace(TERMS, device="gpu0")]
    workers = {"cpu": cpu, "gpu0": card}
    house = SimpleNamespace(
        peer_id=BOB.peer_id,
        identity=BOB,
        offers=lambda: terms,
        worker_on=workers.__getitem__,
    )
    book, belied = ProofBook(BOB.peer_id, frozenset({ALICE.peer_id})), []
    prover = Prover(
        house,
        book,
        rates=lambda device: RATES if device in workers else (),
        gives=tuple,
        belied=belied.append,
        proven=lambda: None,
    )
    return prover, belied


async def test_a_card_s_claim_is_shown_by_the_card_s_worker():
    cpu, card = Working(), Working()
    prover, belied = node(cpu, card)
    answer = await prover.answer(ALICE.peer_id, a_challenge(device="gpu0"))
    assert isinstance(answer, Committed)
    assert (len(cpu.asked), len(card.asked), belied) == (0, 1, [])


async def test_a_busy_card_shows_nothing_now_and_the_cpu_does():
    cpu, card = Working(), Working()
    card.busy = True
    prover, _ = node(cpu, card)
    answer = await prover.answer(ALICE.peer_id, a_challenge(device="gpu0"))
    assert answer.reason is Reason.BUSY
    assert isinstance(await prover.answer(ALICE.peer_id, a_challenge()), Committed)


@pytest.mark.parametrize("device", ["gpu1", "", "gpu0 "])
async def test_a_device_that_is_not_there_is_refused_by_name(device):
    cpu = Working()
    prover, _ = node(cpu, Working())
    answer = await prover.answer(ALICE.peer_id, a_challenge(device=device))
    assert (answer.reason, cpu.asked) == (Reason.NO_DEVICE, [])


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ProgramError("a library failed", code="library_failure"), ["gpu0"]),
        (ComputeError("the card gpu0 is gone", code="device_lost"), ["gpu0"]),
        (ComputeError("it took too long", code="time_limit"), ["gpu0"]),
        (ComputeError("no process can be started", code="worker_start"), []),
    ],
    ids=lambda value: getattr(value, "code", ""),
)
async def test_whatever_fails_while_a_claim_is_shown_is_an_answer_and_the_next_is_taken(
    error, told
):
    card = Working(error)
    prover, belied = node(Working(), card)
    answer = await prover.answer(ALICE.peer_id, a_challenge(device="gpu0"))
    assert isinstance(answer, Refusal)
    assert (answer.reason, answer.detail) == (Reason.INTERNAL, error.message)
    assert belied == told
    card.error = None
    again = a_challenge(device="gpu0", nonce="ef" * 16)
    assert isinstance(await prover.answer(ALICE.peer_id, again), Committed)


async def test_a_challenge_whose_turn_does_not_come_holds_up_no_other_one(autojump_clock):
    class Overtaken(Working):
        async def measure(self, request, kind, time_limit_s):
            await trio.sleep_forever()  # units go first, and more come for ever

    prover, belied = node(Working(), Overtaken())
    with trio.fail_after(600.0):
        answer = await prover.answer(ALICE.peer_id, a_challenge(device="gpu0"))
    assert (answer.reason, belied) == (Reason.BUSY, [])
    again = a_challenge(nonce="ef" * 16)
    assert isinstance(await prover.answer(ALICE.peer_id, again), Committed)
