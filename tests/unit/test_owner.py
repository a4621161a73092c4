"""What a device takes: pauses, the schedule, and stepping back, as decisions alone."""

from datetime import datetime

import pytest

from shoal.node.owner import (
    OPEN,
    RETURN_AFTER_S,
    STEP_BACK_SAMPLES,
    WHOLE_NODE,
    Cause,
    Courtesy,
    Pause,
    after_pause,
    after_resume,
    after_use,
    announces_open,
    sentence,
    stance,
)
from shoal.node.schedule import parse_window

NOON_S = datetime.fromisoformat("2026-06-03 12:00").timestamp()  # a Wednesday, by the wall
NIGHTS = (parse_window("mon-fri 18:00-08:00"),)


def takes(device, pauses=(), schedule=(), stepping_back=(), now_s=NOON_S):
    found = stance(device, pauses, schedule, stepping_back, now_s)
    return found.cause, found.own


# --- pauses -------------------------------------------------------------------------


def test_a_device_that_nothing_closes_takes_everybodys_work():
    assert stance("cpu", (), (), (), NOON_S) == OPEN


def test_a_pause_of_a_device_empties_that_device_only_and_for_everybody():
    pauses = [Pause("gpu0")]
    assert takes("gpu0", pauses) == (Cause.PAUSED, False)
    assert takes("cpu", pauses) == (None, True)
    assert announces_open([stance(d, pauses, (), (), NOON_S) for d in ("cpu", "gpu0")])


def test_a_pause_of_the_node_keeps_peers_off_every_device_and_leaves_the_owners_work():
    pauses = [Pause(WHOLE_NODE)]
    for device in ("cpu", "gpu0"):
        assert takes(device, pauses) == (Cause.PAUSED, True)
    assert not announces_open([stance(d, pauses, (), (), NOON_S) for d in ("cpu", "gpu0")])


def test_a_pause_with_a_time_ends_by_itself_at_that_time():
    pauses = [Pause("cpu", NOON_S + 60)]
    found = stance("cpu", pauses, (), (), NOON_S + 59.9)
    assert (found.cause, found.until_s) == (Cause.PAUSED, NOON_S + 60)
    assert stance("cpu", pauses, (), (), NOON_S + 60) == OPEN


def test_of_two_pauses_the_later_end_counts_and_one_without_end_has_none():
    both = [Pause(WHOLE_NODE, NOON_S + 10), Pause("cpu", NOON_S + 90)]
    assert stance("cpu", both, (), (), NOON_S).until_s == NOON_S + 90
    endless = [Pause(WHOLE_NODE), Pause("cpu", NOON_S + 90)]
    assert stance("cpu", endless, (), (), NOON_S).until_s is None


def test_a_new_pause_takes_the_place_of_the_last_one_of_that_device():
    pauses = after_pause([Pause("cpu"), Pause("gpu0")], Pause("cpu", NOON_S + 5), NOON_S)
    assert set(pauses) == {Pause("gpu0"), Pause("cpu", NOON_S + 5)}


def test_resuming_a_device_leaves_other_pauses_and_resuming_the_node_leaves_none():
    pauses = (Pause(WHOLE_NODE), Pause("cpu"), Pause("gpu0"))
    assert after_resume(pauses, "cpu", NOON_S) == (Pause(WHOLE_NODE), Pause("gpu0"))
    assert after_resume(pauses, WHOLE_NODE, NOON_S) == ()


def test_pauses_that_have_ended_are_not_kept_for_ever():
    old = Pause("gpu0", NOON_S - 1)
    assert after_pause([old], Pause("cpu"), NOON_S) == (Pause("cpu"),)
    assert after_resume([old], "cpu", NOON_S) == ()


# --- what goes before what ------------------------------------------------------------


def test_outside_the_schedule_only_the_owners_work_is_taken_until_it_opens():
    found = stance("cpu", (), NIGHTS, (), NOON_S)
    assert (found.cause, found.own) == (Cause.SCHEDULE, True)
    assert found.until_s == datetime.fromisoformat("2026-06-03 18:00").timestamp()
    assert stance("cpu", (), NIGHTS, (), NOON_S + 8 * 3600) == OPEN


def test_a_pause_goes_before_an_open_schedule_and_is_told_before_a_closed_one():
    for now_s in (NOON_S, NOON_S + 8 * 3600):
        assert takes("cpu", [Pause(WHOLE_NODE)], NIGHTS, (), now_s) == (Cause.PAUSED, True)


def test_stepping_back_closes_the_device_in_use_to_peers_only():
    assert takes("cpu", stepping_back={"cpu"}) == (Cause.STEPPING_BACK, True)
    assert takes("gpu0", stepping_back={"cpu"}) == (None, True)


def test_the_advert_follows_a_pause_and_a_schedule_and_not_stepping_back():
    assert announces_open([stance("cpu", (), (), {"cpu"}, NOON_S)])
    assert not announces_open([stance("cpu", (), NIGHTS, (), NOON_S)])


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (stance("cpu", [Pause("cpu", NOON_S)], (), (), NOON_S - 1), "2026-06-03 12:00"),
        (stance("cpu", (), NIGHTS, (), NOON_S), "schedule until Wed 2026-06-03 18:00"),
        (stance("cpu", (), (), {"cpu"}, NOON_S), "stepping back"),
    ],
)
def test_each_cause_is_told_with_its_end_where_it_has_one(found, words):
    assert words in sentence(found)
    assert sentence(OPEN) == ""


# --- stepping back ----------------------------------------------------------------------


def after(uses, before=None, threshold=0.25, step_s=2.0):
    """The courtesy after each of some measurements, one every ``step_s``."""
    found, states = before or Courtesy(), []
    for number, use in enumerate(uses):
        found = after_use(found, use, threshold, number * step_s)
        states.append(found)
    return states


def test_use_over_the_threshold_makes_the_node_step_back_within_ten_seconds():
    states = after([1.0] * STEP_BACK_SAMPLES)
    assert [state.stepping_back for state in states] == [False] * (STEP_BACK_SAMPLES - 1) + [
        True
    ]
    assert (STEP_BACK_SAMPLES + 1) * 2.0 < 10.0  # one more: the use begins between two


def test_one_burst_alone_does_not():
    assert not any(state.stepping_back for state in after([1.0, 0.1] * 20))


def test_use_below_the_threshold_never_does():
    assert not any(state.stepping_back for state in after([0.24] * 50))


def test_the_node_is_back_only_after_the_machine_was_quiet_for_long_enough():
    states = after([0.0] * 20, before=Courtesy(stepping_back=True))
    back = [state.stepping_back for state in states].index(False)
    assert back * 2.0 == RETURN_AFTER_S


def test_a_burst_begins_the_quiet_time_anew():
    uses = [0.0, 0.0, 0.0, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert all(
        state.stepping_back for state in after(uses, before=Courtesy(stepping_back=True))
    )


def test_use_that_sways_around_the_threshold_does_not_open_and_close_the_node():
    states = after([0.3, 0.3] + [0.22, 0.26] * 30)
    assert all(state.stepping_back for state in states[1:])


def test_a_node_that_is_back_steps_back_again_as_it_did_before():
    states = after([0.0] * 6 + [1.0] * STEP_BACK_SAMPLES, before=Courtesy(stepping_back=True))
    assert [state.stepping_back for state in states[-STEP_BACK_SAMPLES - 1 :]] == [
        False,
        *[False] * (STEP_BACK_SAMPLES - 1),
        True,
    ]
