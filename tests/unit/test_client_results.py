"""Results as a client walks through them."""

import msgpack
import msgspec

from shoal.node.client.fetching import Results
from shoal.node.records import Job, JobId, JobState, Policy

JOB = Job(
    id=JobId("0001"),
    policy=Policy.MAP,
    program="0" * 64,
    numeric_class="fp32",
    label="",
    state=JobState.RUNNING,
    created_at=0.0,
    ended_at=None,
    units_total=3,
    units_done=2,
    units_failed=0,
)


def page(after, *indices, **changes):
    units = [{"index": index, "state": "done", "outputs": {}} for index in indices]
    job = msgspec.to_builtins(msgspec.structs.replace(JOB, **changes))
    return b"".join(map(msgpack.packb, [*units, {"job": job, "after": after}]))


def given(flow):
    try:
        flow.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it asks for more than is there")


def asked(results, answer):
    flow = results.ask()
    next(flow)
    try:
        flow.send(answer)
    except StopIteration as end:
        return end.value
    raise AssertionError("it asks for more than is there")


def test_a_unit_that_ended_again_since_its_outputs_were_lost_is_given_once():
    results = Results(JOB.id, ordered=False)
    assert asked(results, page(1, 0, 9)) == 2
    assert [given(results.take()).unit, given(results.take()).unit] == [0, 9]
    assert asked(results, page(2, 9)) == 0  # and the next page is asked for
    assert asked(results, page(4, 9, 4)) == 1
    assert given(results.take()).unit == 4
    assert asked(results, page(4, state=JobState.DONE, units_done=3)) == 0
    assert results.ended
