"""A job as the command line follows it, and how it says that one has ended."""

import msgspec
import numpy as np
import pytest
from cli_in_process import home, shoal

from shoal.crypto.content import BlobId
from shoal.node.cli.follow import DetachedError, follow
from shoal.node.errors import (
    DaemonError,
    DaemonUnreachableError,
    JobFailedError,
    WaitTimeoutError,
)
from shoal.node.records import Failure, Job, JobId, JobState, Policy

__all__ = ["home"]  # the fixture

M = np.arange(12, dtype=np.float32).reshape(3, 4)
JOB = Job(
    id=JobId("1a20"),
    policy=Policy.RUN,
    program=BlobId("00" * 32),
    numeric_class="fp32",
    label="",
    state=JobState.RUNNING,
    created_at=0.0,
    ended_at=None,
    units_total=1,
    units_done=0,
    units_failed=0,
)


class Waiting:
    """Stands for a client's `wait` and `why` alone."""

    def __init__(self, answer):
        self.answer = answer
        self.asked_why = 0

    def why(self, job_id):
        self.asked_why += 1
        return [], "one\ntwo\nthree\nfour"

    def wait(self, job_id, timeout_s):
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def test_ctrl_c_lets_the_job_go_on_and_says_how_to_come_back():
    with pytest.raises(DetachedError) as caught:
        follow(Waiting(KeyboardInterrupt()), JOB)
    assert (caught.value.code, caught.value.hint) == (
        "interrupted",
        "come back with `shoal job wait 1a20`, or end it with `shoal job cancel 1a20`",
    )


def test_a_daemon_that_ends_meanwhile_keeps_the_job_and_that_is_said():
    with pytest.raises(DaemonUnreachableError) as caught:
        follow(Waiting(DaemonUnreachableError("it is gone")), JOB)
    assert "it is gone; job 1a20 is kept" in caught.value.message
    assert caught.value.hint == "`shoal up`, then `shoal job wait 1a20`"


def test_a_job_over_its_time_raises_the_time_out():
    with pytest.raises(WaitTimeoutError, match="job 1a20 still runs after 0 s"):
        follow(Waiting(JOB), JOB, timeout_s=0)


def test_a_job_that_makes_no_progress_says_why_once(capsys, monkeypatch):
    monkeypatch.setattr("shoal.node.cli.follow.NO_PROGRESS_S", 0.01)
    client = Waiting(JOB)
    with pytest.raises(WaitTimeoutError):
        follow(client, JOB, timeout_s=0.1)
    assert client.asked_why == 1
    assert capsys.readouterr().err.splitlines() == [
        *("one", "two", "three"),
        "  next: `shoal job why 1a20` tells more; Ctrl-C lets the job go on",
    ]


def test_a_job_that_makes_progress_is_not_explained(capsys, monkeypatch):
    monkeypatch.setattr("shoal.node.cli.follow.NO_PROGRESS_S", 60)
    with pytest.raises(WaitTimeoutError):
        follow(Waiting(JOB), JOB, timeout_s=0.05)
    assert capsys.readouterr().err == ""


def test_off_a_terminal_a_line_tells_of_progress_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr("shoal.node.cli.follow.LINE_INTERVAL_S", 0.0)
    job = msgspec.structs.replace(JOB, units_done=40, units_failed=2, units_total=250)
    with pytest.raises(WaitTimeoutError):
        follow(Waiting(job), JOB, timeout_s=0.01)
    assert "running: 42 of 250 units after " in capsys.readouterr().err


def test_a_failed_job_raises_its_failure():
    failed = msgspec.structs.replace(
        JOB, state=JobState.FAILED, failure=Failure("no_bids", "nobody bid", "wait")
    )
    with pytest.raises(JobFailedError, match="nobody bid"):
        follow(Waiting(failed), JOB)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DetachedError("detached"), 130),
        (KeyboardInterrupt(), 130),
        (WaitTimeoutError("late"), 5),
        (JobFailedError("failed"), 1),
        (PermissionError(13, "Permission denied", "f"), 4),
    ],
)
def test_each_way_to_end_has_its_exit_code(capsys, monkeypatch, error, code):
    from shoal.node.cli.options import Daemon

    def fail(self):
        raise error

    monkeypatch.setattr(Daemon, "client", fail)
    assert shoal(capsys, "status")[0] == code


class Ended(Waiting):
    """Stands for a client whose one job has ended."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def job(self, job_id):
        return self.answer


@pytest.mark.parametrize(("units_done", "told"), [(3, True), (0, False)])
def test_what_is_done_of_a_cancelled_job_can_be_fetched_and_is_said_to_be(
    capsys, monkeypatch, tmp_path, units_done, told
):
    job = msgspec.structs.replace(
        JOB, state=JobState.CANCELLED, units_total=9, units_done=units_done
    )
    monkeypatch.setattr("shoal.node.cli.options.Daemon.client", lambda _: Ended(job))
    code, _, err = shoal(capsys, "job", "fetch", "1a20", "--output", tmp_path)
    assert code == 1
    assert "job 1a20 was cancelled" in err
    assert ("`shoal job fetch 1a20 --output DIR --unit N`" in err) is told


class Open(Ended):
    """Stands for a client whose one job is open."""

    def jobs(self, limit):
        return [self.answer]

    def seal(self, job_id):
        return msgspec.structs.replace(self.answer, open=False)


def test_an_open_job_is_shown_as_open_with_the_ways_to_end_it(capsys, monkeypatch):
    job = msgspec.structs.replace(JOB, state=JobState.RUNNING, open=True)
    monkeypatch.setattr("shoal.node.cli.options.Daemon.client", lambda _: Open(job))
    code, out, err = shoal(capsys, "jobs")
    assert (code, " open " in out) == (0, True)
    assert "`shoal job seal 1a20`" in err
    assert "`shoal job cancel 1a20`" in err
    code, out, _ = shoal(capsys, "job", "seal", "1a20")
    assert code == 0
    assert "state    running\n" in out
    ended = msgspec.structs.replace(job, state=JobState.CANCELLED)
    monkeypatch.setattr("shoal.node.cli.options.Daemon.client", lambda _: Open(ended))
    assert " cancelled " in shoal(capsys, "jobs")[1]


class Interrupted(Open):
    """Its user presses Ctrl-C while units are handed over, or results are fetched."""

    there = True
    chosen = ""
    cancelled: tuple[str, ...] = ()

    def submit(self, *_arguments, **options):
        type(self).chosen = options["id"]
        raise KeyboardInterrupt

    def cancel(self, job_id):
        assert job_id == self.chosen
        if isinstance(self.there, Exception):
            raise self.there
        type(self).cancelled += (job_id,)

    def results(self, job_id, *, ordered):
        raise KeyboardInterrupt


def test_ctrl_c_says_what_becomes_of_the_job_wherever_it_comes(capsys, monkeypatch, tmp_path):
    np.save(tmp_path / "x.npy", M)
    done = msgspec.structs.replace(JOB, state=JobState.DONE)
    monkeypatch.setattr("shoal.node.cli.options.Daemon.client", lambda _: Interrupted(done))
    monkeypatch.setattr(Interrupted, "cancelled", ())
    run = ("run", "m.onnx", "--input", f"x={tmp_path}/x.npy")
    code, _, err = shoal(capsys, *run)
    chosen = Interrupted.chosen
    assert (code, f"job {chosen} was handed over; it is cancelled" in err) == (130, True)
    assert Interrupted.cancelled == (chosen,)
    none = DaemonError("there is no job", code="no_such_job", status=404)
    monkeypatch.setattr(Interrupted, "there", none)
    code, _, err = shoal(capsys, *run)
    assert (code, "was handed over; nothing of it goes on" in err) == (130, True)
    monkeypatch.setattr(Interrupted, "there", DaemonUnreachableError("it is gone"))
    code, _, err = shoal(capsys, *run)
    assert (code, "may have been handed over, and go on" in err) == (130, True)
    assert f"`shoal job cancel {Interrupted.chosen}` ends it" in err
    code, _, err = shoal(capsys, "job", "fetch", "1a20", "--output", tmp_path / "out")
    assert (code, "the outputs of job 1a20 are kept" in err) == (130, True)
    assert "`shoal job fetch 1a20" in err
    assert list((tmp_path / "out").iterdir()) == []


def test_ctrl_c_lets_a_job_be_whose_id_the_user_named(capsys, monkeypatch, tmp_path):
    np.save(tmp_path / "x.npy", M)
    monkeypatch.setattr("shoal.node.cli.options.Daemon.client", lambda _: Interrupted(JOB))
    monkeypatch.setattr(Interrupted, "cancelled", ())
    job_id = "1a2" * 9
    code, _, err = shoal(
        capsys, "run", "m.onnx", "--input", f"x={tmp_path}/x.npy", "--job-id", job_id
    )
    assert (code, Interrupted.chosen, Interrupted.cancelled) == (130, job_id, ())
    assert f"stopped while job {job_id} was handed over" in err
    assert f"`shoal job cancel {job_id}` ends it; the same command again goes on" in err


@pytest.mark.parametrize("state", [JobState.DONE, JobState.FAILED, JobState.CANCELLED])
def test_to_cancel_a_job_that_has_ended_changes_nothing_and_says_so(capsys, monkeypatch, state):
    job = msgspec.structs.replace(JOB, state=state)
    monkeypatch.setattr("shoal.node.cli.options.Daemon.client", lambda _: Ended(job))
    code, out, err = shoal(capsys, "job", "cancel", "1a20")
    assert code == 0
    assert f"state    {state}" in out
    assert err == "job 1a20 had ended already; nothing was changed\n"
