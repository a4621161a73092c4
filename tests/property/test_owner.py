"""Pauses in any order, and stepping back under any use, held against what was promised."""

from hypothesis import given
from hypothesis import strategies as st

from shoal.node.owner import (
    RETURN_AFTER_S,
    RETURN_BELOW,
    STEP_BACK_SAMPLES,
    WHOLE_NODE,
    Courtesy,
    Pause,
    after_pause,
    after_resume,
    after_use,
    stance,
)

DEVICES = ("cpu", "gpu0", "gpu1")
THRESHOLD, STEP_S = 0.25, 2.0

named = st.sampled_from((WHOLE_NODE, *DEVICES))
acts = st.one_of(
    st.tuples(st.just("pause"), named, st.none() | st.integers(1, 50)),
    st.tuples(st.just("resume"), named, st.none()),
    st.tuples(st.just("wait"), st.just(""), st.integers(0, 60)),
)


@given(st.lists(acts, max_size=12))
def test_a_device_is_paused_exactly_while_a_pause_of_it_or_of_the_node_lasts(sequence):
    pauses, now_s = (), 1_000_000.0
    ends = {}  # by device, as a person would keep them
    for act, device, time_s in sequence:
        match act:
            case "pause":
                until_s = None if time_s is None else now_s + time_s
                pauses = after_pause(pauses, Pause(device, until_s), now_s)
                ends[device] = until_s
            case "resume":
                pauses = after_resume(pauses, device, now_s)
                ends = {} if device == WHOLE_NODE else {**ends}
                ends.pop(device, None)
            case "wait":
                now_s += time_s
        lasting = {d for d, end in ends.items() if end is None or now_s < end}
        for each in DEVICES:
            found = stance(each, pauses, (), (), now_s)
            assert (found.cause is not None) == bool(lasting & {each, WHOLE_NODE})
            assert found.own == (each not in lasting)
            if found.until_s is not None:
                assert stance(each, pauses, (), (), found.until_s).cause is None


@given(st.lists(st.sampled_from([0.0, 0.15, 0.22, 0.25, 0.9]), max_size=60))
def test_stepping_back_begins_and_ends_only_by_measurements_that_last(uses):
    courtesy = Courtesy()
    for number, use in enumerate(uses):
        before, courtesy = courtesy, after_use(courtesy, use, THRESHOLD, number * STEP_S)
        seen = uses[: number + 1]
        lately_over = all(u >= THRESHOLD for u in seen[-STEP_BACK_SAMPLES:])
        if lately_over and len(seen) >= STEP_BACK_SAMPLES:
            assert courtesy.stepping_back
        if courtesy.stepping_back and not before.stepping_back:
            assert lately_over
        if before.stepping_back and not courtesy.stepping_back:
            quiet = seen[-int(RETURN_AFTER_S / STEP_S) - 1 :]
            assert all(u < THRESHOLD * RETURN_BELOW for u in quiet)
