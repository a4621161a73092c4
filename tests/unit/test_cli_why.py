"""``shoal job why --watch`` without a daemon: what is told anew, and how it ends."""

import json

import msgspec
import pytest

from shoal.node.causes import Cause, Explanation, Remedy
from shoal.node.cli import why
from shoal.node.records import Job, JobState, Policy

JOB = Job(
    id="j",
    policy=Policy.MAP,
    program="a" * 64,
    numeric_class="fp32",
    label="",
    state=JobState.RUNNING,
    created_at=10.0,
    ended_at=None,
    units_total=2,
    units_done=0,
    units_failed=0,
)
DONE = msgspec.structs.replace(JOB, state=JobState.DONE, units_done=2, ended_at=20.0)


def busy(again_s, job=JOB):
    cause = Cause("busy", "peer is busy", f"asked again in {again_s} s", Remedy.WAIT, ("peer",))
    return Explanation(job, f"{job.units_done} have ended.", (cause,))


class Told:
    """Stands for a client that is told one thing after another."""

    def __init__(self, *things):
        self.things = iter(things)

    def explanation(self, job_id, unit):
        thing = next(self.things)
        if isinstance(thing, BaseException):
            raise thing
        return thing


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(why, "_LOOK_INTERVAL_S", 0.0)


def watched(capsys, *things, as_json=False):
    why._watch(Told(*things), "j", None, as_json=as_json)
    return capsys.readouterr().out.splitlines()


def test_where_it_is_piped_only_what_changed_is_told_and_no_countdown(capsys):
    one_done = busy(1, msgspec.structs.replace(JOB, units_done=1))
    end = Explanation(DONE, "The job is done.")
    lines = watched(capsys, busy(3), busy(2), one_done, end)
    assert [line.split("  ")[1] for line in lines if line[2] == ":"] == [
        "0 have ended.",
        "1 have ended.",
        "The job is done.",
    ]


def test_as_json_each_change_is_a_line(capsys):
    lines = watched(capsys, busy(3), Explanation(DONE, "The job is done."), as_json=True)
    told = [json.loads(line)["headline"] for line in lines]
    assert told == ["0 have ended.", "The job is done."]


def test_ctrl_c_ends_the_watching_without_a_word(capsys):
    assert len(watched(capsys, busy(3), KeyboardInterrupt())) == 2
