"""Units that have inputs with peers, and those that have to wait for one again."""

from collections import deque
from types import SimpleNamespace

import pytest
from leases import lease_granted

from shoal.crypto.content import blob_id_of
from shoal.crypto.peer_id import PeerId
from shoal.node import handing_over
from shoal.node.records import JobId, Unit, UnitState
from shoal.node.scheduling import events
from shoal.node.scheduling import state as s
from shoal.node.scheduling.feeding import _by_nearness
from shoal.protocol.negotiation_messages import Reason, Refusal

JOB = JobId("0001")
ANNA, BERT = PeerId("anna"), PeerId("bert")


def a_job(**more):
    return s.JobQueue(JOB, (blob_id_of(b"p"), "fp32"), "fp32", **more)


def test_a_peer_is_given_first_what_no_other_peer_has_inputs_of():
    job = a_job(waiting=deque(range(5)), near={0: BERT, 1: ANNA, 3: BERT})
    assert list(_by_nearness(job, ANNA)) == [1, 2, 4, 0, 3]
    assert list(_by_nearness(job, BERT)) == [0, 2, 3, 4, 1]
    assert list(_by_nearness(a_job(waiting=deque(range(3))), ANNA)) == [0, 1, 2]


def out_with(peer, index):
    """A state in which one unit of a job is out, and another one waits."""
    state = s.State()
    job = a_job(waiting=deque([7]), out={index: [s.BatchId(1)]}, near={index: peer})
    state.jobs[JOB] = job
    batch = s.Batch(
        id=s.BatchId(1),
        job=JOB,
        lease=s.LeaseId(1),
        peer=peer,
        units=1,
        open={index: None},
        handed_s=0.0,
        expected_s=None,
    )
    state.batches[batch.id] = batch
    return state, job, batch


def test_a_unit_that_lost_an_input_is_nobodys_until_it_is_read_again():
    state, job, batch = out_with(ANNA, 3)
    events.waits_again(state, batch.id, 3)
    assert (list(job.waiting), job.out, batch.open, job.near) == ([7], {}, {}, {})
    events.waits_again(state, batch.id, 3)  # twice is no matter
    events.units_read(state, JOB, [3, 7], more=False, near={3: BERT})
    assert list(job.waiting) == [7, 3]
    assert job.near == {3: BERT}
    assert events.ended(state, JOB, 3)
    assert job.near == {}


def test_a_copy_of_it_that_another_peer_has_may_still_end_it():
    state, job, batch = out_with(ANNA, 3)
    job.out[3].append(s.BatchId(2))
    events.waits_again(state, batch.id, 3)
    assert job.out == {3: [s.BatchId(2)]}
    assert list(job.waiting) == [7]


def test_an_award_that_is_under_way_is_not_forgotten_while_a_job_waits_for_others():
    state = s.State()
    job = state.jobs[JOB] = a_job()
    events.bid_came(state, JOB, ANNA, s.Offer(price=1.0, units_max=9, in_flight_max=2), 0.0)
    job.candidate(ANNA).awarding = True
    events.not_finished(state, JOB)
    assert lease_granted(state, JOB, ANNA, 1.0) is not None


def test_a_unit_that_is_cancelled_while_it_is_read_does_not_come_back():
    state, job = s.State(), a_job(reading=True, unread=False)
    state.jobs[JOB] = job
    assert not events.ended(state, JOB, 5)  # not in memory yet
    events.units_read(state, JOB, [4, 5], more=False)
    assert list(job.waiting) == [4]


@pytest.mark.parametrize(
    "reason", [Reason.BUSY, Reason.PAUSED, Reason.DRAINING, Reason.NO_ROOM]
)
def test_a_refusal_that_tells_of_the_provider_is_no_loss_to_the_unit(reason):
    state, job, batch = out_with(ANNA, 3)
    unit, outcome = Unit(JOB, 3, UnitState.QUEUED, {}), handing_over.Outcome()
    running, answer = SimpleNamespace(errors={}), Refusal("0" * 32, reason)
    handing_over._refused(state, running, batch, unit, answer, outcome)
    assert (outcome.problem, outcome.refusal) == (None, answer)  # others of it still count
    assert (list(job.waiting), job.losses, job.errors) == ([3, 7], {}, {})
