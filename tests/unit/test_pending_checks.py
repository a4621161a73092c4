"""What `shoal job why` says of results that wait to be checked, and of disputes."""

from dataclasses import replace

import msgspec
import pytest

from shoal.node.account import about_unit, told
from shoal.node.causes import Remedy
from shoal.node.checks import Stage
from shoal.node.explain import explain
from shoal.node.records import Job, JobId, JobState, Policy, Unit, UnitState
from shoal.node.surroundings import Neighbour, OpenDispute, PendingChecks, Surroundings

JOB = Job(
    id="j",
    policy=Policy.MAP,
    program="a" * 64,
    numeric_class="exact",
    label="",
    state=JobState.RUNNING,
    created_at=0.0,
    ended_at=None,
    units_total=10,
    units_done=3,
    units_failed=0,
)
WAITS = PendingChecks(Stage.ASKED, ("carol",), (4, 7), 12.0, 3.0, None)


def around(**fields):
    return Surroundings("own", dict.fromkeys(("own", "peer"), Neighbour()), **fields)


def only(pending=(), disputes=(), code="in_check"):
    place = around(pending=pending, disputes=disputes)
    (cause,) = [each for each in explain(JOB, [], place).causes if each.code == code]
    return cause


def changed(**changes):
    return only([replace(WAITS, **changes)])


def test_who_checks_a_result_is_told_since_when_and_what_comes_where_it_is_silent():
    cause = only([WAITS])
    assert cause.sentence == (
        "the results of units 4, 7 wait to be checked for 12 s: carol runs it too"
    )
    assert "the next of the draw is asked" in cause.step
    assert (cause.remedy, cause.peers, cause.units) == (Remedy.WAIT, ("carol",), (4, 7))


def test_this_node_is_told_as_such():
    cause = changed(asked=("own",), units=(4,))
    assert cause.sentence.endswith(
        "the result of unit 4 waits to be checked for 12 s: this node runs it too"
    )


def test_a_result_that_another_differs_from_is_decided_by_a_run_here():
    cause = changed(stage=Stage.DIFFERS, asked=("own",), units=(4,))
    assert "this node runs it to decide" in cause.sentence
    assert "disputed" in cause.step


@pytest.mark.parametrize(
    ("tries_left", "comes"),
    [(2, "after 2 more times the results are delivered without a check"), (None, "--verify")],
    ids=["auto", "asked for"],
)
def test_where_nobody_answers_it_is_told_what_comes_next(tries_left, comes):
    cause = changed(asked=(), stage=Stage.WAITING, tries_left=tries_left)
    assert "nobody who may gives an answer" in cause.sentence
    assert "they are asked again in 3 s" in cause.step
    assert comes in cause.step


def test_a_dispute_is_told_and_holds_nothing_back():
    cause = only(disputes=[OpenDispute("mallory", 3, 90.0)], code="disputed")
    assert cause.sentence == "a receipt of mallory for unit 3, 90 s old, is disputed"
    assert "nothing waits for it" in cause.step


def test_a_dispute_is_told_of_a_job_that_has_ended():
    job = msgspec.structs.replace(JOB, state=JobState.DONE, ended_at=5.0)
    place = around(disputes=[OpenDispute("mallory", 3, 90.0)])
    assert [cause.code for cause in told(job, [], place, []).causes] == ["disputed"]


def test_one_unit_is_told_of_its_own_check_alone():
    place = around(pending=[WAITS, replace(WAITS, units=(5,))])
    found = explain(JOB, [], place)
    unit = Unit(JobId("j"), 7, UnitState.LEASED, {}, provider="peer")
    about = about_unit(found, unit, "own")
    assert about.headline == "Unit 7 was run by peer, and its result is not delivered yet."
    assert [cause.units for cause in about.causes] == [(4, 7)]
    other = about_unit(found, msgspec.structs.replace(unit, index=8), "own")
    assert "is with peer now" in other.headline
    assert not [cause for cause in other.causes if cause.code == "in_check"]
