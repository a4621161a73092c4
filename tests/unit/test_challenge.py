"""One verifier and one prover by hand: what is shown, and every way to cheat that fails."""

import itertools

import msgspec
import pytest
from challenge_samples import (
    ALICE,
    BOB,
    CAROL,
    MALLORY,
    NONCE,
    OTHER_NONCE,
    Pair,
    a_challenge,
    a_commitment,
    committed,
    honest_leaves,
    leaf_at,
    signed_proof,
)

from shoal.crypto.errors import VerificationError
from shoal.crypto.merkle import leaf_of
from shoal.protocol import challenge
from shoal.protocol.challenge import PROVER, VERIFIER, ProverSide, State, VerifierSide, Way
from shoal.protocol.challenge_messages import Draw, Opened, ProofOffer
from shoal.protocol.challenge_terms import DRAW_LIMIT_S, OPENING_LIMIT_S, work_of
from shoal.protocol.errors import LocalProtocolError, RemoteProtocolError
from shoal.protocol.negotiation_messages import Reason, Refusal
from shoal.protocol.statements import open_proof

CLAIMED_S = work_of(a_challenge()).claimed_s(a_challenge().rate)
REFUSAL = Refusal(call=NONCE, reason=Reason.BUSY)


def begun():
    pair = Pair()
    pair.ask()
    return pair


def done():
    pair = begun()
    pair.commit()
    return pair


def opened():
    pair = done()
    pair.verifier.receive(pair.draw(), 0.2)
    return pair


def code_of(call, *arguments):
    with pytest.raises(VerificationError) as caught:
        call(*arguments)
    return caught.value.code


def test_an_honest_prover_is_given_a_proof_of_what_it_showed():
    pair = done()
    offer = pair.finish()
    pair.prover.receive(offer, 0.4)
    said, verifier = open_proof(offer.proof)
    assert verifier == ALICE.peer_id
    assert (said.prover, said.rate) == (BOB.peer_id, pair.challenge.rate)
    assert said.shown == pytest.approx(work_of(pair.challenge).multiply_adds / 0.1)
    assert pair.prover.proof == said
    assert pair.verifier.state is pair.prover.state is State.ENDED


# --- time: a virtual clock ---


def test_three_times_the_claimed_time_is_in_time_and_a_quarter_of_the_rate_is_not():
    pair = begun()
    pair.commit(3 * CLAIMED_S - 1e-9)
    assert pair.verifier.state is State.COMMITTED
    pair = begun()
    assert code_of(pair.commit, 4 * CLAIMED_S) == "too_slow"
    assert pair.verifier.state is State.ENDED


def test_the_links_delay_is_taken_off_but_never_more_than_half_the_claimed_time():
    pair = Pair(round_trip_s=CLAIMED_S / 4)
    pair.ask()
    pair.commit(3.2 * CLAIMED_S)
    assert pair.verifier.shown == pytest.approx(pair.challenge.rate / 2.95)
    pair = Pair(round_trip_s=100.0)
    pair.ask()
    assert code_of(pair.commit, 3.6 * CLAIMED_S) == "too_slow"


def test_rows_opened_late_are_worth_nothing():
    pair = done()
    rows = pair.draw(0.2)
    assert code_of(pair.verifier.receive, rows, 0.2 + OPENING_LIMIT_S + 0.1) == "too_slow"


def test_a_draw_that_comes_late_is_not_answered():
    pair = done()
    with pytest.raises(RemoteProtocolError):
        pair.prover.receive(Draw(nonce=NONCE, places=((0, 0),)), 0.1 + DRAW_LIMIT_S)
    assert pair.prover.state is State.ENDED


@pytest.mark.parametrize("steps", [begun, done])
def test_silence_ends_a_challenge_on_the_side_that_waits(steps):
    pair = steps()
    side = pair.verifier if steps is begun else pair.prover
    assert not side.expire(side.ends_at_s - 1e-6)
    assert side.expire(side.ends_at_s)


# --- cheating ---


def test_forged_rows_fail():
    pair = begun()
    pair.steps[1][4] = leaf_of(b"not computed")
    pair.commit()
    pair.verifier.receive(pair.draw(), 0.2)
    assert code_of(pair.judge) == "wrong_rows"


def test_a_row_that_was_not_drawn_is_not_noticed_which_is_why_64_are_drawn():
    pair = begun()
    pair.steps[1][1] = leaf_of(b"not computed")
    pair.commit()
    pair.finish()


def test_a_step_that_did_not_wait_for_the_one_before_fails():
    """Steps done side by side have seeds that no roots lead to."""
    pair = begun()
    pair.steps[1] = [leaf_at(b"guessed" * 4, row) for row in range(pair.challenge.rows)]
    pair.commit()
    pair.verifier.receive(pair.draw(), 0.2)
    assert code_of(pair.judge) == "wrong_rows"


def test_a_commitment_of_an_earlier_challenge_fails():
    earlier = Pair(a_challenge(nonce=OTHER_NONCE))
    earlier.ask()
    replayed = committed(a_commitment(earlier.challenge, earlier.steps))
    pair = begun()
    assert code_of(pair.commit, 0.1, msgspec.structs.replace(replayed, nonce=NONCE)) == (
        "commitment_mismatch"
    )


def test_work_done_beforehand_for_a_guessed_nonce_fails():
    guessed = Pair(a_challenge(nonce=OTHER_NONCE))
    guessed.ask()
    pair = begun()
    pair.steps = guessed.steps  # signed now, with the nonce that was drawn
    pair.commit()
    pair.verifier.receive(pair.draw(), 0.2)
    assert code_of(pair.judge) == "wrong_rows"


@pytest.mark.parametrize(
    ("verifier", "prover"), [(CAROL, BOB), (ALICE, CAROL)], ids=["verifier", "prover"]
)
def test_work_done_between_other_peers_fails(verifier, prover):
    """A prover that passes a challenge on gets products from other seeds."""
    other = ProverSide(verifier.peer_id, prover.peer_id)
    other.receive(a_challenge(), 0.0)
    pair = begun()
    pair.steps = honest_leaves(other.root, a_challenge())
    pair.commit()
    pair.verifier.receive(pair.draw(), 0.2)
    assert code_of(pair.judge) == "wrong_rows"


def test_rows_opened_from_another_commitment_fail():
    pair = done()
    rows = pair.draw()
    other = Pair(a_challenge(nonce=OTHER_NONCE))
    other.ask()
    other.commit()
    foreign = msgspec.structs.replace(other.draw(), nonce=NONCE)
    assert foreign.paths != rows.paths
    pair.verifier.receive(foreign, 0.2)
    assert code_of(pair.judge) == "wrong_rows"


@pytest.mark.parametrize(
    "change",
    [
        {"nonce": OTHER_NONCE},
        {"verifier": CAROL.peer_id},
        {"device": "gpu0"},
        {"numeric_class": "fp32"},
        {"precision": "x8"},
        {"rate": 1e9},
        {"rows": 4},
        {"size": 64},
        {"steps": 1},
        {"roots": (b"r" * 32,)},
        {"roots": (b"r" * 32,) * 3},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_commitment_about_anything_else_fails(change):
    pair = begun()
    wrong = committed(a_commitment(pair.challenge, pair.steps, **change))
    answer = msgspec.structs.replace(wrong, nonce=NONCE)
    assert code_of(pair.commit, 0.1, answer) == "commitment_mismatch"
    assert pair.verifier.state is State.ENDED


def test_a_commitment_signed_by_another_fails():
    pair = begun()
    commitment = a_commitment(pair.challenge, pair.steps)
    assert code_of(pair.commit, 0.1, committed(commitment, MALLORY)) == "wrong_signer"
    pair = begun()
    theirs = msgspec.structs.replace(commitment, prover=MALLORY.peer_id)
    assert code_of(pair.commit, 0.1, committed(theirs, MALLORY)) == "commitment_mismatch"


@pytest.mark.parametrize("count", [1, 3, 5])
def test_another_number_of_rows_opened_than_drawn_fails(count):
    pair = done()
    paths = (*pair.draw().paths, b"")[:count]
    assert code_of(pair.verifier.receive, Opened(nonce=NONCE, paths=paths), 0.2) == "wrong_rows"


@pytest.mark.parametrize("change", [lambda p: p[:-32], lambda p: p + bytes(32), lambda _: b""])
def test_a_path_that_is_cut_or_too_long_fails(change):
    pair = done()
    rows = pair.draw()
    paths = (change(rows.paths[0]), *rows.paths[1:])
    pair.verifier.receive(Opened(nonce=NONCE, paths=paths), 0.2)
    assert code_of(pair.judge) == "wrong_rows"


def test_no_proof_can_be_sent_before_the_rows_were_compared():
    pair = opened()
    with pytest.raises(LocalProtocolError):
        pair.verifier.send(ProofOffer(nonce=NONCE, proof=signed_proof()), 0.3)


# --- what the prover accepts ---


@pytest.mark.parametrize(
    ("signer", "change"),
    [
        (ALICE, {"commitment": b"d" * 32}),
        (CAROL, {}),
        (ALICE, {"prover": CAROL.peer_id}),
        (ALICE, {"rate": 1e12}),
        (ALICE, {"device": "gpu0"}),
    ],
)
def test_a_proof_about_anything_else_is_not_kept(signer, change):
    pair = opened()
    said = {
        "commitment": bytes.fromhex(pair.prover.commitment_id),
        "rate": pair.challenge.rate,
        **change,
    }
    offer = ProofOffer(nonce=NONCE, proof=signed_proof(signer, **said))
    assert code_of(pair.prover.receive, offer, 0.4) == "proof_mismatch"
    assert pair.prover.proof is None
    assert pair.prover.state is State.OPENED


def test_nobody_vouches_for_itself():
    with pytest.raises(VerificationError, match="itself"):
        open_proof(signed_proof(BOB))


@pytest.mark.parametrize("place", [(2, 0), (0, 5)])
def test_a_row_that_does_not_exist_is_neither_drawn_nor_opened(place):
    pair = done()
    draw = Draw(nonce=NONCE, places=(place,))
    with pytest.raises(LocalProtocolError):
        pair.verifier.send(draw, 0.2)
    with pytest.raises(RemoteProtocolError):
        pair.prover.receive(draw, 0.2)
    assert pair.prover.state is State.COMMITTED


def test_digests_are_let_go_once_rows_are_opened():
    assert opened().prover.leaves == ()


def test_a_message_about_another_challenge_changes_nothing():
    pair = done()
    with pytest.raises(RemoteProtocolError):
        pair.prover.receive(Draw(nonce=OTHER_NONCE, places=((0, 0),)), 0.2)
    assert pair.prover.state is State.COMMITTED


# --- the tables ---


def test_whatever_is_in_no_table_raises_and_changes_nothing():
    pair = opened()
    messages = {
        type(message): message
        for message in (
            pair.challenge,
            committed(a_commitment(pair.challenge, pair.steps)),
            pair.verifier.draw,
            Opened(nonce=NONCE, paths=(b"",)),
            ProofOffer(nonce=NONCE, proof=b"p"),
            REFUSAL,
        )
    }
    for role, table in ((VerifierSide, VERIFIER), (ProverSide, PROVER)):
        for state, way, kind in itertools.product(State, Way, messages):
            if (state, way, kind) in table:
                continue
            side = role(ALICE.peer_id, BOB.peer_id, state=state)
            step = side.send if way is Way.SENT else side.receive
            wrong = LocalProtocolError if way is Way.SENT else RemoteProtocolError
            with pytest.raises(wrong):
                step(messages[kind], 0.0)
            assert side.state is state


def test_both_tables_are_mirrors():
    mirrored = {
        (state, Way.GOT if way is Way.SENT else Way.SENT, message): after
        for (state, way, message), after in VERIFIER.items()
    }
    assert mirrored == PROVER
    assert challenge.State.ENDED not in {state for state, _, _ in PROVER}
