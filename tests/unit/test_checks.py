"""What opinions come to: in exact this node decides, elsewhere a majority does."""

from itertools import product
from typing import get_args

import pytest

from shoal.compute.exact.kernels import ErrorCode
from shoal.crypto import identity
from shoal.node.checks import (
    OF_THE_PROGRAM,
    TRANSITIONS,
    Event,
    Stage,
    UnitCheck,
    audited,
    of_the_program,
    wanted,
)
from shoal.protocol.errors import LocalProtocolError
from shoal.protocol.statements import UnitError
from shoal.protocol.verification.policy import Verify

PROVIDER, OWN, A, B, C = (identity.generate().peer_id for _ in range(5))
SIGNATURE, SALT = bytes(64), bytes(32)


def check(*order, more=1, exact=True, quorum=False):
    return UnitCheck(PROVIDER, OWN, order, more, exact, "right", quorum=quorum)


def anybody(_peer):
    return True


def ask(machine, usable=anybody):
    """Have all asked that are to be; gives who they are."""
    asked = machine.next(usable)
    for peer in asked:
        machine.asks(peer)
    return asked


def test_the_first_of_the_draw_is_asked_and_agrees():
    machine = check(A, B)
    assert ask(machine) == (A,)
    assert ask(machine) == ()
    machine.answers(A, "right")
    assert machine.stage is Stage.AGREED
    assert (machine.right, machine.false) == (PROVIDER, ())
    assert machine.verdicts == ((A, "re-run", "agrees"),)


def test_who_gives_no_opinion_is_followed_by_the_next_and_in_the_end_by_this_node():
    machine = check(A, B)
    for peer in (A, B):
        assert ask(machine) == (peer,)
        machine.says_nothing(peer)
    assert ask(machine) == (OWN,)
    machine.answers(OWN, "right")
    assert machine.stage is Stage.AGREED
    assert machine.verdicts == (
        (OWN, "own", "agrees"),
        (A, "re-run", "no_answer"),
        (B, "re-run", "no_answer"),
    )


def test_who_is_not_usable_now_is_passed_over():
    assert ask(check(A, B), lambda peer: peer != A) == (B,)


@pytest.mark.parametrize(
    ("own", "right", "false"),
    [("right", PROVIDER, (A,)), ("other", A, (PROVIDER,))],
    ids=("as_the_provider", "as_the_verifier"),  # else keys that are drawn anew
)
def test_in_exact_a_difference_is_decided_by_this_node(own, right, false):
    machine = check(A, B, C)
    ask(machine)
    machine.answers(A, "other")
    assert machine.stage is Stage.DIFFERS
    assert machine.false == ()
    assert ask(machine) == (OWN,)
    machine.answers(OWN, own)
    assert machine.stage is Stage.JUDGED
    assert (machine.right, machine.false) == (right, false)


def test_all_who_agree_on_a_false_result_are_found():
    machine = check(A, B, more=2)
    assert ask(machine) == (A, B)
    machine.answers(A, "right")
    machine.answers(B, "other")
    assert ask(machine) == (OWN,)
    machine.answers(OWN, "other")
    assert (machine.right, set(machine.false)) == (B, {PROVIDER, A})


def test_in_exact_a_vote_decides_only_where_this_node_cannot_run_the_unit():
    machine = check(A, B)
    ask(machine)
    machine.answers(A, "other")
    assert ask(machine) == (OWN,)
    machine.says_nothing(OWN)
    assert machine.stage is Stage.DIFFERS
    assert ask(machine) == (B,)
    machine.answers(B, "other")
    assert (machine.stage, machine.false) == (Stage.JUDGED, (PROVIDER,))


def test_in_other_classes_a_third_opinion_decides():
    machine = check(A, B, C, exact=False)
    ask(machine)
    machine.answers(A, "other")
    assert ask(machine) == (B,)
    machine.answers(B, "right")
    assert (machine.stage, machine.right, machine.false) == (Stage.JUDGED, PROVIDER, (A,))


def test_a_tie_of_three_asks_on():
    machine = check(A, B, C, exact=False)
    ask(machine)
    machine.answers(A, "other")
    ask(machine)
    machine.answers(B, "another")
    assert machine.stage is Stage.DIFFERS
    assert ask(machine) == (C,)


def test_a_quorum_is_asked_together_and_filled_up():
    machine = check(A, B, C, more=2, quorum=True)
    assert ask(machine) == (A, B)
    machine.says_nothing(A)
    assert ask(machine) == (C,)
    machine.answers(B, "right")
    assert not machine.stage.final
    machine.answers(C, "right")
    assert machine.stage is Stage.AGREED
    assert {level for _, level, verdict in machine.verdicts if verdict == "agrees"} == {
        "quorum"
    }


def test_what_comes_late_changes_nothing():
    machine = check(A, B)
    ask(machine)
    machine.says_nothing(A)
    ask(machine)
    machine.answers(B, "right")
    machine.says_nothing(A)
    machine.answers(A, "other")
    assert (machine.stage, machine.false) == (Stage.AGREED, ())


def test_where_nobody_can_be_found_it_is_given_up_or_tried_again():
    machine = check(A)
    for peer in (A, OWN):
        assert ask(machine) == (peer,)
        machine.says_nothing(peer)
    assert ask(machine) == ()
    machine.try_again()
    assert ask(machine) == (A,)
    machine.says_nothing(A)
    machine.give_up()
    assert machine.stage is Stage.UNCHECKED


def test_an_event_out_of_turn_raises():
    with pytest.raises(LocalProtocolError):
        check(A).answers(A, "right")


@pytest.mark.parametrize("exact", [True, False])
def test_every_course_of_three_verifiers_comes_to_an_end(exact):
    """Whatever each of them says, the table allows it, and somebody's result is right."""
    courses = product(["right", "other", "another", None], repeat=4)
    for says in courses:
        machine = check(A, B, C, exact=exact)
        answers = dict(zip((A, B, C, OWN), says, strict=True))
        while asked := ask(machine):
            for peer in asked:
                if (key := answers[peer]) is None:
                    machine.says_nothing(peer)
                else:
                    machine.answers(peer, key)
        if not machine.stage.final:
            machine.give_up()
        assert machine.right not in machine.false
        if exact and machine.stage is Stage.JUDGED and OWN in machine.opinions:
            assert machine.opinions[machine.right] == answers[OWN]


def test_a_final_stage_is_not_left():
    for (stage, event), to in TRANSITIONS.items():
        if stage.final:
            assert to == {stage}
            assert event in {Event.SAME, Event.OTHER, Event.SILENT}


def test_how_many_opinions_a_policy_wants():
    def of(text, p=1.0):
        return wanted(Verify.parse(text), SIGNATURE, SALT, p)

    assert (of("receipt"), of("quorum:3"), of("sample:1")) == (0, 2, 1)
    assert (of("auto", 1.0), of("auto", 0.0)) == (1, 0)


def test_an_error_of_the_program_is_a_result_and_one_of_the_machine_is_not():
    assert set(get_args(ErrorCode)) == OF_THE_PROGRAM
    assert of_the_program(UnitError("nan", ""))
    assert not of_the_program(UnitError("time_limit", ""))


def test_an_audited_check_is_over_when_this_node_has_run_the_unit_too():
    machine = UnitCheck(PROVIDER, OWN, (A,), 1, True, "right", audit=True)
    assert ask(machine) == (A,)
    machine.answers(A, "right")
    assert not machine.stage.final
    assert ask(machine) == (OWN,)
    assert ask(machine) == ()
    machine.answers(OWN, "right")
    assert machine.stage is Stage.AGREED


def test_an_audit_finds_a_provider_and_its_friend_false():
    machine = UnitCheck(PROVIDER, OWN, (A,), 1, True, "wrong", audit=True)
    ask(machine)
    machine.answers(A, "wrong")
    ask(machine)
    machine.answers(OWN, "right")
    assert machine.stage is Stage.JUDGED
    assert set(machine.false) == {PROVIDER, A}


def test_where_this_node_cannot_run_a_unit_an_audit_is_done_without():
    machine = UnitCheck(PROVIDER, OWN, (A,), 1, True, "right", audit=True)
    ask(machine)
    machine.answers(A, "right")
    ask(machine)
    machine.says_nothing(OWN)
    assert machine.stage is Stage.AGREED


def test_one_in_sixteen_of_what_is_checked_under_auto_is_audited_and_of_nothing_else():
    auto = Verify.parse("auto")
    receipts = [number.to_bytes(64, "big") for number in range(4000)]
    drawn = [each for each in receipts if wanted(auto, each, SALT, 0.5)]
    found = [each for each in receipts if audited(auto, each, SALT, 0.5)]
    assert set(found) <= set(drawn)
    assert 80 < len(found) < 170
    few = [each for each in receipts if audited(auto, each, SALT, 1.0, few=True)]
    assert 1800 < len(few) < 2200
    assert not any(audited(Verify.parse("sample:1"), each, SALT, 1.0) for each in receipts)


@pytest.mark.parametrize("verify", ["auto", "sample:0.01"])
def test_whoever_runs_a_unit_that_a_false_peer_had_is_checked(verify):
    policy = Verify.parse(verify)
    receipts = [number.to_bytes(64, "big") for number in range(50)]
    assert all(wanted(policy, each, SALT, 0.01, doubted=True) == 1 for each in receipts)
    assert not all(wanted(policy, each, SALT, 0.01) for each in receipts)
    assert wanted(Verify.parse("receipt"), receipts[0], SALT, 1.0, doubted=True) == 0
