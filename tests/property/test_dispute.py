"""A challenger and a defender of a large unit, joined by a network that loses and repeats.

Whatever one message suffers, whoever restarts when, and whichever leaf is false: the dispute
ends at that leaf, in at most 8 round trips and 200 KB of hashes.
"""

import random
from functools import cache

import pytest
from challenge_samples import ALICE, BOB
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.crypto.content import BlobId
from shoal.crypto.envelope import Statement
from shoal.crypto.merkle import check_path, leaf_of, levels_of, path_of, root_of, root_over
from shoal.protocol.checking_messages import (
    LeafGiven,
    LeafWanted,
    NodesGiven,
    NodesWanted,
    TraceGiven,
    TraceWanted,
)
from shoal.protocol.codec import decode, encode
from shoal.protocol.errors import LocalProtocolError, RemoteProtocolError
from shoal.protocol.messages import Problem, Request, Response
from shoal.protocol.statements import TraceRoot
from shoal.protocol.verification.defence import Defender, MakeTrace
from shoal.protocol.verification.dispute import (
    TRIES_LIMIT,
    Ask,
    Challenger,
    Compute,
    Ending,
    Finding,
    State,
)
from shoal.protocol.verification.search import Search
from shoal.protocol.versions import OWN

RECEIPT = BlobId("ab" * 32)
REQUESTER, PROVIDER = ALICE.peer_id, BOB.peer_id
UNIT_S = 60.0
STAGES, OPERATORS = 1000, 500


def leaf(kind, *place):
    return f"{kind} {place}".encode() * 4


@cache
def honest_stages(count):
    return tuple(leaf("stage", stage) for stage in range(count))


@cache
def honest_operators(stage, count):
    return tuple(leaf("operator", stage, place) for place in range(count))


class Provider:
    """The defender's node: signs traces, answers by the machine, lies where it is told to."""

    def __init__(self, stages, operators, false_stage, false_operator, *, missing=0, key=BOB):
        self.stages, self.operators = stages, operators
        self.false_stage, self.false_operator = false_stage, false_operator
        self.missing, self.key = missing, key
        self.lies = {}
        self.restart()

    @property
    def stage_leaves(self):
        leaves = list(honest_stages(self.stages))
        if leaves:  # what follows a false stage is false as well
            for stage in range(self.false_stage, self.stages):
                leaves[stage] = leaf("false stage", stage)
        return tuple(leaves)

    def operator_leaves(self, stage):
        leaves = list(honest_operators(stage, self.operators))
        if self.false_operator is not None:
            for place in range(self.false_operator, self.operators):
                leaves[place] = leaf("false operator", stage, place)
        return tuple(leaves[: len(leaves) - self.missing])

    def restart(self):
        self.side = Defender(RECEIPT, REQUESTER, self.stage_leaves)

    def answer(self, question):
        answer = self.side.receive(REQUESTER, question)
        if isinstance(answer, MakeTrace):
            leaves = self.operator_leaves(answer.stage)
            root = TraceRoot(
                protocol=OWN,
                receipt=RECEIPT,
                stage=answer.stage,
                root=root_over(leaves),
                leaves=len(leaves),
                provider=self.key.peer_id,
            )
            envelope = self.key.sign(Statement.TRACE_ROOT, encode(root))
            answer = self.side.traced(answer.stage, leaves, envelope)
        return self.lies.get(type(answer), lambda same: same)(answer)


class Dispute:
    """The two and what is between them."""

    def __init__(self, provider):
        self.provider = provider
        self.now_s = 0.0
        self.hash_bytes = self.sent = 0
        self.challenger = self.anew()

    def anew(self):
        leaves = self.provider.stage_leaves
        return Challenger(
            receipt=RECEIPT,
            accused=PROVIDER,
            trace=root_of([leaf_of(each) for each in leaves]) if leaves else None,
            stages=len(leaves),
            unit_s=UNIT_S,
            own_stages=honest_stages(len(leaves)),
        )

    def restart(self):
        saved, self.challenger = self.challenger.encode(), self.anew()
        self.challenger.restore(saved)

    def step(self, *, lose_question=False, lose_answer=False, repeat=False):
        """One step; gives the finding where it is over."""
        step = self.challenger.next()
        match step:
            case Compute(stage=stage):
                self.challenger.know(honest_operators(stage, self.provider.operators))
            case Ask(question=question):
                self.challenger.send(question, self.now_s)
                question = decode(encode(Request(id=1, body=question)), Request).body
                self.sent += 1
                answers = []
                if not lose_question:
                    answers += [self.ask(question) for _ in range(1 + repeat)]
                if lose_question or lose_answer:
                    self.now_s = self.challenger.next_deadline
                    self.challenger.expire(self.now_s)
                    assert self.challenger.next_deadline is None
                    return None
                self.now_s += 0.1
                for answer in answers:
                    self.challenger.receive(question, answer, self.now_s)
            case Finding():
                return step
        return None

    def ask(self, question):
        try:
            answer = self.provider.answer(question)
        except RemoteProtocolError as error:
            answer = Problem(code=error.code, message=error.message)
        data = encode(Response(id=1, body=answer))
        if isinstance(answer, NodesGiven | LeafGiven):
            self.hash_bytes += len(data)
        return decode(data, Response).body

    def run(self, trouble=None):
        for number in range(60):
            finding = trouble(self, number) if trouble else self.step()
            if finding is not None:
                return finding
        raise AssertionError("the dispute does not end")


def check_found(dispute, stage, operator):
    """It ended at that leaf, with openings that lead to the signed root."""
    challenger = dispute.challenger
    finding = challenger.finding
    assert finding.ending is Ending.LEAF, finding
    assert (finding.stage, finding.first) == (stage, operator)
    assert finding.leaf == dispute.provider.operator_leaves(stage)[operator]
    search = challenger.operator_search
    theirs = dispute.provider.operator_leaves(stage)
    root = root_of([leaf_of(each) for each in theirs])
    for place in {0, operator // 2, max(0, operator - 1), operator}:
        given = finding.leaf if place == operator else None
        opening = challenger.open_operator(place, given)
        check_path(root, leaf_of(opening.leaf), place, search.count, opening.path)
    if stage:
        opening = challenger.open_stage(stage - 1)
        check_path(
            challenger.trace, leaf_of(opening.leaf), stage - 1, challenger.stages, opening.path
        )


def test_the_figures_of_a_thousand_stages_of_five_hundred_operators(capsys):
    most = [0, 0]
    rng = random.Random(7)
    places = [(0, 0), (STAGES - 1, OPERATORS - 1), (512, 256), (999, 0)]
    places += [(rng.randrange(STAGES), rng.randrange(OPERATORS)) for _ in range(20)]
    for stage, operator in places:
        dispute = Dispute(Provider(STAGES, OPERATORS, stage, operator))
        dispute.run()
        check_found(dispute, stage, operator)
        assert dispute.sent == dispute.challenger.round_trips
        most = [max(most[0], dispute.sent), max(most[1], dispute.hash_bytes)]
    with capsys.disabled():
        print(
            f"\n{STAGES} stages of {OPERATORS} operators: {most[0]} round trips, "
            f"{most[1]} bytes of hashes and leaves"
        )
    assert most[0] <= 8
    assert most[1] <= 200_000


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    stages=st.sampled_from([0, 1, 2, 16, 17, 40]),
    operators=st.integers(1, 70),
    data=st.data(),
)
def test_it_survives_the_loss_of_any_message_repeats_and_restarts(stages, operators, data):
    stage = data.draw(st.integers(0, stages - 1)) if stages else None
    operator = data.draw(st.integers(0, operators - 1))
    troubled = data.draw(st.integers(0, 12))
    kinds = ["lose_question", "lose_answer", "repeat", "challenger", "defender", "both"]
    kind = data.draw(st.sampled_from(kinds))
    dispute = Dispute(Provider(stages, operators, stage, operator))

    def trouble(dispute, number):
        if number == troubled and kind in {"challenger", "both"}:
            dispute.restart()
        if number == troubled and kind in {"defender", "both"}:
            dispute.provider.restart()
        loses = number == troubled and kind in {"lose_question", "lose_answer", "repeat"}
        return dispute.step(**({kind: True} if loses else {}))

    dispute.run(trouble)
    check_found(dispute, stage, operator)


def test_a_defender_that_restarts_is_asked_for_its_trace_again():
    dispute = Dispute(Provider(40, 70, 5, 33))
    while dispute.challenger.state is not State.OPERATORS:
        dispute.step()
    dispute.step()  # one's own leaves
    dispute.provider.restart()
    dispute.run()
    check_found(dispute, 5, 33)


@pytest.mark.parametrize("index", range(7))
def test_every_single_message_may_be_lost_in_the_large_dispute(index):
    for what in ("lose_question", "lose_answer"):
        dispute = Dispute(Provider(STAGES, OPERATORS, 777, 321))
        dispute.run(lambda d, n, what=what: d.step(**({what: True} if n == index else {})))
        check_found(dispute, 777, 321)


def flipped(data):
    return bytes([data[0] ^ 1]) + data[1:]


FALSE_ANSWERS = {
    "digests that do not hash up": (
        NodesGiven,
        lambda a: NodesGiven(digests=(flipped(a.digests[0]), *a.digests[1:])),
    ),
    "too few digests": (NodesGiven, lambda a: NodesGiven(digests=a.digests[:1])),
    "another leaf": (LeafGiven, lambda a: LeafGiven(leaf=a.leaf + b"x", path=a.path)),
    "a trace of nobody": (TraceGiven, lambda _: TraceGiven(root=b"x" * 90)),
    "an answer of another kind": (NodesGiven, lambda _: LeafGiven(leaf=b"x", path=b"")),
    "a trace for digests": (NodesGiven, lambda _: TraceGiven(root=b"x")),
}


@pytest.mark.parametrize("what", FALSE_ANSWERS)
@pytest.mark.parametrize("stages", [0, 40])
def test_a_false_answer_is_noted_and_ends_the_search(what, stages):
    provider = Provider(stages, 50, 7 if stages else None, 20)
    kind, lie = FALSE_ANSWERS[what]
    provider.lies[kind] = lie
    finding = Dispute(provider).run()
    assert finding.ending is Ending.FALSE_ANSWER
    assert finding.reason


def test_a_trace_signed_by_another_or_of_another_receipt_is_false():
    finding = Dispute(Provider(0, 50, None, 20, key=ALICE)).run()
    assert finding.ending is Ending.FALSE_ANSWER
    assert "provider" in finding.reason


def test_a_path_that_leads_nowhere_does_not_matter_since_the_way_down_gives_it():
    provider = Provider(0, 50, None, 20)
    provider.lies[LeafGiven] = lambda a: LeafGiven(leaf=a.leaf, path=b"")
    dispute = Dispute(provider)
    dispute.run()
    check_found(dispute, None, 20)


def test_silence_is_asked_again_with_more_time_and_then_is_withholding():
    dispute = Dispute(Provider(0, 50, None, 20))
    waits, finding = [], None
    while finding is None:
        before = dispute.now_s
        finding = dispute.step(lose_answer=True)
        waits.append(dispute.now_s - before)
    assert finding.ending is Ending.WITHHELD
    assert waits[0] > UNIT_S
    assert waits[:TRIES_LIMIT] == [waits[0] * 2**n for n in range(TRIES_LIMIT)]
    assert len(waits) == TRIES_LIMIT + 1


def test_the_deadline_follows_a_slow_link():
    dispute = Dispute(Provider(40, 50, 3, 20))
    question = dispute.challenger.next().question
    dispute.challenger.send(question, 0.0)
    quick_s = dispute.challenger.next_deadline
    dispute.challenger.receive(question, dispute.ask(question), 9.0)
    question = dispute.challenger.next().question
    dispute.challenger.send(question, 10.0)
    assert dispute.challenger.next_deadline - 10.0 > quick_s


def test_a_refusal_is_withholding():
    provider = Provider(0, 50, None, 20)
    provider.answer = lambda _: Problem(code="no", message="I will not say")
    finding = Dispute(provider).run()
    assert finding == Finding(Ending.WITHHELD, None, None, None, "it refused: I will not say")


def test_a_trace_that_equals_ones_own_is_evidence_against_its_receipt():
    dispute = Dispute(Provider(0, 50, None, None))
    assert dispute.run().ending is Ending.TRACE
    opening = dispute.challenger.open_operator(49)
    root = root_of([leaf_of(each) for each in honest_operators(None, 50)])
    check_path(root, leaf_of(opening.leaf), 49, 50, opening.path)


def test_of_a_stage_whose_operators_are_right_its_own_leaf_is_opened():
    provider = Provider(40, 50, 9, None)
    dispute = Dispute(provider)
    finding = dispute.run()
    assert (finding.ending, finding.stage, finding.first) == (Ending.LEAF, 9, None)
    assert finding.leaf == provider.stage_leaves[9]
    opening = dispute.challenger.open_stage(9, finding.leaf)
    check_path(dispute.challenger.trace, leaf_of(opening.leaf), 9, 40, opening.path)


@pytest.mark.parametrize("missing", [1, 17, 49])
def test_a_trace_that_is_too_short_is_searched_as_far_as_it_goes(missing):
    dispute = Dispute(Provider(0, 50, None, None, missing=missing))
    assert dispute.run().ending is Ending.TRACE
    assert dispute.challenger.operator_search.count == 50 - missing


def test_a_trace_that_is_too_long_differs_where_ones_own_ends():
    provider = Provider(0, 50, None, None)
    dispute = Dispute(provider)
    provider.operators = 50
    dispute.step()
    dispute.challenger.know(honest_operators(None, 40))
    assert dispute.run().first == 40


def test_a_defender_that_forgets_again_and_again_has_withheld_its_trace():
    dispute = Dispute(Provider(0, 70, None, 33))

    def forget(dispute, number):
        if isinstance(dispute.challenger.next(), Ask) and number % 2:
            dispute.provider.restart()
        return dispute.step()

    assert dispute.run(forget).ending is Ending.WITHHELD


def test_two_roots_for_one_trace_are_a_false_answer():
    dispute = Dispute(Provider(0, 70, None, 33))
    while dispute.challenger.state is not State.OPERATORS:
        dispute.step()
    dispute.step()
    dispute.provider.false_operator = 40
    dispute.provider.restart()
    finding = dispute.run()
    assert finding.ending is Ending.FALSE_ANSWER
    assert "another trace" in finding.reason


def test_nobody_but_the_requester_is_answered_and_nothing_out_of_turn():
    provider = Provider(40, 50, 9, None)
    trace = TraceWanted(receipt=RECEIPT, stage=9)
    with pytest.raises(RemoteProtocolError, match="no such receipt"):
        provider.side.receive(PROVIDER, trace)
    with pytest.raises(RemoteProtocolError, match="no such receipt"):
        provider.side.receive(REQUESTER, TraceWanted(receipt="cd" * 32, stage=9))
    for wrong in (
        TraceWanted(receipt=RECEIPT, stage=40),
        TraceWanted(receipt=RECEIPT, stage=None),
        NodesWanted(receipt=RECEIPT, stage=None, level=7, index=0),
        NodesWanted(receipt=RECEIPT, stage=None, level=0, index=0),
        NodesWanted(receipt=RECEIPT, stage=None, level=2, index=10),
        NodesWanted(receipt=RECEIPT, stage=3, level=2, index=1),
        LeafWanted(receipt=RECEIPT, stage=3, index=1),
        LeafWanted(receipt=RECEIPT, stage=None, index=40),
    ):
        with pytest.raises(RemoteProtocolError):
            provider.answer(wrong)
    assert provider.side.state is State.IDLE


def test_a_defender_makes_no_more_traces_than_a_dispute_needs():
    provider = Provider(40, 50, 9, None)
    for stage in (1, 2, 1, 2):
        assert isinstance(
            provider.answer(TraceWanted(receipt=RECEIPT, stage=stage)), TraceGiven
        )
    with pytest.raises(RemoteProtocolError, match="traces of this unit"):
        provider.answer(TraceWanted(receipt=RECEIPT, stage=3))


def test_a_question_that_is_not_open_is_not_sent_and_nonsense_is_no_state():
    challenger = Dispute(Provider(0, 50, None, 20)).challenger
    with pytest.raises(LocalProtocolError):
        challenger.send(LeafWanted(receipt=RECEIPT, stage=None, index=0), 0.0)
    for nonsense in (b"", b"x", b"\x90"):
        with pytest.raises(LocalProtocolError, match="no state"):
            challenger.restore(nonsense)


@settings(max_examples=200, deadline=None)
@given(count=st.integers(1, 300), data=st.data())
def test_a_search_finds_the_first_difference_of_any_two_trees(count, data):
    own = [leaf_of(bytes([n % 256, n // 256])) for n in range(count)]
    wrong = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=5))
    theirs = [leaf_of(b"wrong%d" % n) if n in wrong else d for n, d in enumerate(own)]
    levels = levels_of(theirs)
    search = Search(levels[-1][0], count, own)
    rounds = 0
    while search.found is None:
        level, index = search.node
        below = max(0, level - 4)
        first = index << (level - below)
        search.take(levels[below][first : first + (1 << (level - below))])
        rounds += 1
    assert search.found == min(wrong)
    assert rounds == -(-(len(levels) - 1) // 4)
    for place in range(search.found + 1):
        assert search.path_of(place) == path_of(theirs, place)
