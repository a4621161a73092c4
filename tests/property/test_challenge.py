"""A verifier and a prover joined by a network that loses, doubles, delays and cuts.

Whatever it does, the machines raise nothing but protocol and verification errors, the
verifier signs only for rows that it compared, the prover keeps only a proof of its own
challenge, and silence ends both.
"""

from dataclasses import dataclass

from challenge_samples import (
    ALICE,
    BOB,
    NONCE,
    WALL_MS,
    a_challenge,
    a_commitment,
    committed,
    honest_leaves,
    joined,
    leaf_at,
)
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from shoal.crypto.envelope import Statement
from shoal.crypto.errors import VerificationError
from shoal.crypto.merkle import leaf_of
from shoal.protocol.challenge import PROVER, VERIFIER, ProverSide, State, VerifierSide, Way
from shoal.protocol.challenge_messages import Draw, Opened, ProofOffer
from shoal.protocol.challenge_terms import time_allowed_s
from shoal.protocol.codec import decode, encode
from shoal.protocol.errors import LocalProtocolError, RemoteProtocolError
from shoal.protocol.messages import Frame, Request, Response
from shoal.protocol.negotiation_messages import Reason, Refusal

CHALLENGE = a_challenge()
PLACES = ((0, 1), (1, 3), (1, 0))
REFUSAL = Refusal(call=NONCE, reason=Reason.BUSY)
seldom = st.integers(0, 9).map(lambda number: number == 9)


@dataclass
class Letter:
    to_prover: bool
    data: bytes


class Challenged(RuleBasedStateMachine):
    mail = Bundle("mail")

    def __init__(self):
        super().__init__()
        self.now_s = 0.0
        self.asked_at_s = None
        self.committed_in_time = False
        self.forged = False
        self.judged = False
        self.proof = None
        self.verifier = VerifierSide(ALICE.peer_id, BOB.peer_id)
        self.prover = ProverSide(ALICE.peer_id, BOB.peer_id)

    def post(self, message):
        to_prover = isinstance(message, type(CHALLENGE) | Draw | ProofOffer)
        frame = (Request if to_prover else Response)(id=1, body=message)
        return Letter(to_prover, encode(frame))

    def say(self, side, message):
        """Send it if the machine lets us, else send it all the same, as a villain would."""
        before = side.state
        try:
            side.send(message, self.now_s)
        except LocalProtocolError:
            assert side.state is before
        return self.post(message)

    @initialize(
        target=mail,
        steps=st.sampled_from([0, 1, 2, 3, 4, 5, 5]),
        forge=st.booleans(),
        takes_s=st.sampled_from([0.1, 0.1, 0.6]),
    )
    def begin(self, steps, forge, takes_s):
        """Most often some way on: chance alone hardly ever gets far."""
        self.asked_at_s = self.now_s
        letter = self.say(self.verifier, CHALLENGE)
        moves = (
            lambda: self.answer(refuse=False, forge=forge),
            lambda: self.draw(early=False),
            lambda: self.open(cut=False),
        )
        for index, move in enumerate(moves[: max(0, steps - 1)]):
            self.deliver(letter)
            if index == 0:
                self.now_s += takes_s
            letter = move()
            if not isinstance(letter, Letter):  # the commitment came too late
                return multiple()
        if steps > len(moves) + 1:
            self.deliver(letter)
        return letter

    @rule(target=mail, again=seldom)
    def challenge_again(self, again):
        return self.say(self.verifier, CHALLENGE) if again else multiple()

    @precondition(lambda self: self.prover.state is State.CHALLENGED)
    @rule(target=mail, refuse=seldom, forge=seldom)
    def answer(self, refuse, forge):
        if refuse:
            return self.say(self.prover, REFUSAL)
        steps = honest_leaves(self.prover.root, CHALLENGE)
        if forge:
            step, row = PLACES[-1]
            steps[step][row] = leaf_of(b"made up")
            self.forged = True
        self.prover.leaves = joined(steps)
        return self.say(self.prover, committed(a_commitment(CHALLENGE, steps)))

    @rule(target=mail, early=seldom)
    def draw(self, early):
        if self.verifier.state is not State.COMMITTED and not early:
            return multiple()
        return self.say(self.verifier, Draw(nonce=NONCE, places=PLACES))

    @precondition(lambda self: self.prover.state is State.DRAWN)
    @rule(target=mail, cut=seldom)
    def open(self, cut):
        rows = self.prover.open()
        if cut:
            self.say(self.prover, rows)
            return self.post(Opened(nonce=NONCE, paths=rows.paths[:-1]))
        return self.say(self.prover, rows)

    @precondition(lambda self: self.verifier.state is State.OPENED)
    @rule(target=mail)
    def judge(self):
        leaves = [leaf_at(row.seed, row.row) for row in self.verifier.rows]
        try:
            said = self.verifier.judge(leaves, WALL_MS)
        except VerificationError:
            assert self.forged
            return multiple()
        assert not self.forged
        self.judged = True
        self.proof = ALICE.sign(Statement.CAPABILITY, encode(said))
        return self.say(self.verifier, ProofOffer(nonce=NONCE, proof=self.proof))

    @rule(letter=consumes(mail))
    def arrives(self, letter):
        self.deliver(letter)

    @rule(letter=mail)
    def arrives_and_will_again(self, letter):
        self.deliver(letter)

    @rule(letter=consumes(mail))
    def is_lost(self, letter):
        pass

    @rule(letter=mail, at=st.floats(0, 1, exclude_max=True), cut=seldom)
    def arrives_cut(self, letter, at, cut):
        if cut:
            self.deliver(Letter(letter.to_prover, letter.data[: int(at * len(letter.data))]))

    def deliver(self, letter):
        side = self.prover if letter.to_prover else self.verifier
        before = side.state
        try:
            side.receive(decode(letter.data, Frame).body, self.now_s)
        except RemoteProtocolError:
            assert side.state in {before, State.ENDED}
        except VerificationError:
            if side is self.verifier:
                assert side.state is State.ENDED
        else:
            if before is State.CHALLENGED and side.state is State.COMMITTED:
                took_s = self.now_s - self.asked_at_s
                self.committed_in_time = took_s <= time_allowed_s(CHALLENGE)

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.1, 0.6, 20.0]))
    def time_passes(self, seconds):
        self.now_s += seconds

    @rule(now=seldom)
    def clocks_are_looked_at(self, now):
        if now:
            self.verifier.expire(self.now_s)
            self.prover.expire(self.now_s)

    @invariant()
    def a_proof_is_for_rows_that_were_compared_in_time(self):
        if self.proof is not None:
            assert self.judged
            assert self.committed_in_time
        if self.prover.proof is not None:
            assert self.judged

    @invariant()
    def each_state_is_one_that_its_table_leads_to(self):
        for side, table in ((self.verifier, VERIFIER), (self.prover, PROVER)):
            assert side.state is State.IDLE or side.state in set(table.values())

    def teardown(self):
        """Silence: whoever waits for the other gives up in the end."""
        for side, waits_by in ((self.verifier, Way.GOT), (self.prover, Way.GOT)):
            table = VERIFIER if side is self.verifier else PROVER
            waits = side.state is not State.IDLE and any(
                (state, way) == (side.state, waits_by) for state, way, _ in table
            )
            if waits:
                assert side.expire(self.now_s + 3600.0)


TestChallenged = Challenged.TestCase
TestChallenged.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def test_the_machine_gets_to_a_proof_that_its_prover_keeps():
    """The rules above by hand: chance alone might never get there."""
    machine = Challenged()
    machine.deliver(machine.begin(steps=0, forge=False, takes_s=0.1))
    machine.deliver(machine.answer(refuse=False, forge=False))
    machine.deliver(machine.draw(early=False))
    machine.deliver(machine.open(cut=False))
    machine.deliver(machine.judge())
    machine.a_proof_is_for_rows_that_were_compared_in_time()
    assert machine.prover.proof is not None
    assert machine.prover.state is machine.verifier.state is State.ENDED
