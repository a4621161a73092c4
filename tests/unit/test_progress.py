"""What a notebook shows of a job: escaped, and without widgets."""

import sys
import types

import pytest

from shoal.node.client.progress import Progress
from shoal.node.records import Failure, Job, JobId, JobState, Policy

JOB = Job(
    id=JobId("1a20"),
    policy=Policy.MAP,
    program="00" * 32,
    numeric_class="fp32",
    label="",
    state=JobState.RUNNING,
    created_at=0.0,
    ended_at=None,
    units_total=10,
    units_done=3,
    units_failed=0,
    open=True,
)


def changed(**fields):
    return Job(**{name: getattr(JOB, name) for name in JOB.__struct_fields__} | fields)


def test_a_job_shows_how_far_it_is():
    shown = JOB._repr_html_()
    assert "3 of 10 units done" in shown
    assert "more units are to come" in shown
    assert "<progress value='3' max='10'>" in shown
    done = changed(state=JobState.DONE, units_done=10)._repr_html_()
    assert "more units" not in done


def test_whatever_a_job_says_of_itself_is_escaped():
    nasty = "<script>alert('x')</script>&\""
    failure = Failure("nan", nasty, nasty)
    shown = changed(label=nasty, id=JobId(nasty), failure=failure)._repr_html_()
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown


class Displayed:
    def __init__(self):
        self.shown = []

    def __call__(self, value, *, display_id):
        assert display_id
        self.shown.append(value._repr_html_())
        return self

    def update(self, value):
        self.shown.append(value._repr_html_())


@pytest.fixture
def notebook(monkeypatch):
    """IPython as it is in a notebook, without widgets."""
    displayed = Displayed()
    shell = types.SimpleNamespace(kernel=object())
    package = types.ModuleType("IPython")
    package.get_ipython = lambda: shell
    display = types.ModuleType("IPython.display")
    display.display = displayed
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    return displayed


def test_in_a_notebook_one_display_is_replaced_and_the_end_always_shown(notebook):
    with Progress() as progress:
        for done in range(11):
            state = JobState.DONE if done == 10 else JobState.RUNNING
            progress.show(changed(units_done=done, state=state))
    assert "0 of 10" in notebook.shown[0]
    assert "10 of 10" in notebook.shown[-1]
    assert len(notebook.shown) < 11  # not at every change


def test_nothing_is_shown_where_it_is_off_or_nobody_looks(notebook, capsys, monkeypatch):
    with Progress(off=True) as progress:
        progress.show(JOB)
    assert notebook.shown == []
    monkeypatch.delitem(sys.modules, "IPython")
    with Progress() as progress:
        progress.show(JOB)
    assert capsys.readouterr().err == ""
    assert repr(progress) == "job 1a20 running: 3 of 10 units done"


def test_on_a_terminal_there_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress() as progress:
        progress.show(JOB)
        progress.show(changed(state=JobState.DONE))
    assert "3/10" in capsys.readouterr().err
