"""What `shoal run` and `shoal map` say when they have given what came out."""

import pytest

from shoal.node.assurance import Ground, JobAssurance
from shoal.node.cli.jobs import _print_job
from shoal.node.cli.work import Into, deliver
from shoal.node.records import Job, JobState, Policy


class Client:
    def __init__(self, counted):
        self.counted = counted

    def assurance(self, _job, _offset, _limit):
        return self.counted, []


def make_job(verify):
    counters = {"units_total": 4, "units_done": 4, "units_failed": 0}
    state, times = JobState.DONE, {"created_at": 10.0, "ended_at": 12.0}
    program = "a" * 64
    return Job("j", Policy.MAP, program, "fp32", "", state, **times, **counters, verify=verify)


@pytest.mark.parametrize(("verify", "below"), [("quorum:7", 3), ("quorum:2", 0), ("auto", 0)])
def test_a_quorum_that_this_nodes_own_runs_stood_for_is_told(capsys, verify, below):
    counted = JobAssurance({Ground.OWN: 4}, quorum=7, below_quorum=below)
    deliver(Client(counted), make_job(verify), Into(None), as_json=False)
    said = capsys.readouterr().err
    assert ("3 units were run by fewer than the 7 nodes" in said) == bool(below)


def test_a_job_is_shown_with_how_its_results_are_checked(capsys):
    _print_job(make_job("quorum:7"))
    (line,) = [one for one in capsys.readouterr().out.splitlines() if "verify" in one]
    assert line.split() == ["verify", "quorum:7"]
