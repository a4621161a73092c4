import msgspec
import pytest

from shoal.node.account import NOBODY_BIDS, about_unit, nobody_bids, told
from shoal.node.causes import AFTER_FAILURE
from shoal.node.records import (
    Answer,
    Failure,
    Job,
    JobState,
    OutputRef,
    Policy,
    Unit,
    UnitState,
)
from shoal.node.surroundings import Neighbour, Surroundings
from shoal.node.work_done import WorkDone

JOB = Job(
    id="j",
    policy=Policy.MAP,
    program="a" * 64,
    numeric_class="fp32",
    label="",
    state=JobState.DONE,
    created_at=10.0,
    ended_at=22.5,
    units_total=10,
    units_done=10,
    units_failed=0,
)
OFFERING = Neighbour(classes=frozenset({"fp32"}))
AROUND = Surroundings("own", {"own": OFFERING, "peer": OFFERING})
PRICE = Answer("j", "peer", 1.0, "price", "more")


def changed(**fields):
    return msgspec.structs.replace(JOB, **fields)


def test_a_job_that_is_done_tells_who_did_how_many_units_and_gives_no_advice():
    work = [
        WorkDone("peer", UnitState.DONE, 7, 0, 1.4),
        WorkDone("own", UnitState.DONE, 3, 7, 3.0),
    ]
    assert told(JOB, [PRICE], AROUND, work).summary.splitlines() == [
        "The job is done: 10 units in 12 s.",
        "peer did 7 units, 0.2 s each.",
        "this node did 3 units, 1 s each.",
    ]


def test_a_job_that_failed_tells_what_failed_where():
    job = changed(
        state=JobState.FAILED,
        units_done=7,
        units_failed=3,
        failure=Failure("operator_failed", "Gather: out of range"),
    )
    work = [
        WorkDone("peer", UnitState.FAILED, 2, 4, 0.1, Failure("input_failed", "Gather.")),
        WorkDone("own", UnitState.FAILED, 1, 9, 0.1, Failure("odd", "too slow")),
    ]
    step = AFTER_FAILURE["input_failed"]
    assert told(job, [], AROUND, work).summary.splitlines() == [
        "The job failed after 12 s, 3 of 10 units failed: Gather: out of range.",
        f"2 units, the first of them 4, failed at peer: Gather (input_failed): {step}.",
        "unit 9 failed at this node: too slow (odd).",
    ]


def test_a_job_that_still_runs_tells_what_has_failed_so_far():
    job = changed(state=JobState.RUNNING, ended_at=None, units_done=1, units_failed=1)
    work = [WorkDone("peer", UnitState.FAILED, 1, 4, 0.1, Failure("time_limit", "too slow"))]
    assert "unit 4 failed at peer: too slow" in told(job, [], AROUND, work).summary


def test_a_job_that_was_cancelled_tells_how_far_it_got():
    job = changed(state=JobState.CANCELLED, units_done=4)
    words = "The job was cancelled after 12 s: 4 of 10 units had been done by then."
    assert told(job, [PRICE], AROUND, []).summary == words


def test_a_job_for_which_nobody_bids_fails_with_the_first_cause_and_tells_them_all():
    running = changed(state=JobState.RUNNING, ended_at=None, units_done=0)
    busy = Answer("j", "own", 2.0, "busy", "32 leases are running")
    failure = nobody_bids(running, [PRICE, busy], "own")
    assert failure.code == NOBODY_BIDS
    assert failure.message == (
        "nobody bids for it: this node is busy (32 leases are running); "
        "peer takes only units that are worth more (more)"
    )
    assert failure.hint.startswith("nothing need be done")
    assert "`shoal job why j` tells what else would; or submit it without" in failure.hint
    job = changed(state=JobState.FAILED, units_done=0, failure=failure)
    text = told(job, [PRICE, busy], AROUND, []).summary
    assert "peer takes only units that are worth more (more)" in text


def test_a_job_for_which_nobody_even_answered_fails_in_words_too():
    failure = nobody_bids(changed(state=JobState.RUNNING, ended_at=None), [], "own")
    assert failure.message.startswith("nobody bids for it: no known node, this one included,")
    assert "without --fail-fast" in failure.hint


def test_a_job_that_failed_since_nobody_bid_is_told_of_as_one_that_has_ended():
    running = changed(state=JobState.RUNNING, ended_at=None, units_done=0)
    for answers, words in (
        ([], "2 nodes offer the class fp32 now, and had not answered when the job ended: "),
        ([Answer("j", "peer", 2.0, "busy", "")], "another job asks it anew; more peers"),
    ):
        failure = nobody_bids(running, answers, "own")
        job = changed(state=JobState.FAILED, units_done=0, failure=failure)
        text = told(job, answers, AROUND, []).summary
        assert words in text
        for wrong in ("wait some seconds", "can be asked", "asked again"):
            assert wrong not in text + failure.hint


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "Unit 3 waits for a peer that takes it."),
        ({"attempts": 2}, "Unit 3 waits for a peer that takes it; it has been under 2 leases."),
        (
            {"awaits": {"x": OutputRef("k", 1, "y")}},
            "Unit 3 awaits outputs that are not there yet: y of unit 1 of job k.",
        ),
        (
            {"state": UnitState.LEASED, "provider": "peer", "attempts": 1},
            "Unit 3 is with peer now; it has been under 1 lease.",
        ),
        (
            {
                "state": UnitState.DONE,
                "provider": "own",
                "attempts": 1,
                "seconds": 0.5,
                "receipt": "r",
            },
            "Unit 3 was done by this node in 0.5 s; it has been under 1 lease; its receipt is ",
        ),
        (
            {
                "state": UnitState.FAILED,
                "provider": "peer",
                "attempts": 3,
                "failure": Failure("c", "no."),
            },
            "Unit 3 failed at peer: no; it has been under 3 leases.",
        ),
        ({"state": UnitState.CANCELLED}, "Unit 3 was cancelled with its job; "),
    ],
)
def test_a_unit_tells_where_it_is_and_what_became_of_it(fields, words):
    unit = Unit(**{"job": "j", "index": 3, "state": UnitState.QUEUED, "inputs": {}} | fields)
    job = changed(state=JobState.RUNNING, ended_at=None)
    found = about_unit(told(job, [PRICE], AROUND, []), unit, "own")
    assert found.headline.startswith(words)
    waits = unit.state in (UnitState.QUEUED, UnitState.LEASED)
    assert bool(found.causes) == waits
