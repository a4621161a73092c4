"""Units that await others: whatever ends, fails, is lost or added in whatever order.

What has to hold is said of the states alone, with no second implementation: a unit that
has not ended awaits exactly those that have not ended, has the outputs that the others have
now, and is gone with the first that failed.
"""

import sys
from contextlib import closing
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "net"))

from journal_samples import check_job, done, failed, make_job, make_unit, tensor_id

from shoal.node import journal_jobs, journal_units
from shoal.node.records import Failure, JobId, JobState, UnitState
from shoal.node.state_file import open_database, transaction

JOBS = (JobId("0001"), JobId("0002"))

UNITS = st.lists(
    st.tuples(
        st.sampled_from(JOBS),
        # which of the units before it, and by which name it calls their output
        st.lists(st.tuples(st.integers(0, 30), st.sampled_from("yyyyyz")), max_size=3),
    ),
    min_size=1,
    max_size=12,
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["done", "done", "done", "fail", "lose", "add"]), st.integers(0, 30)
    ),
    max_size=40,
)


class Chains:
    """Two open jobs in a database in memory, with units that await each other's outputs."""

    def __init__(self, database, wanted):
        self.database, self.wanted = database, list(wanted)
        self.places = []
        self.ends = 0
        for job_id in JOBS:
            with transaction(database):
                journal_jobs.add_job(database, *make_job(job_id, opened=True), (), {})

    def add(self):
        """Add the next of the units that are wanted."""
        if not self.wanted:
            return
        job_id, refs = self.wanted.pop(0)
        index = sum(job == job_id for job, _ in self.places)
        awaits = {
            f"in{n}": (*self.places[which % len(self.places)], output)
            for n, (which, output) in enumerate(refs)
            if self.places
        }
        unit = make_unit(index, job=job_id, **awaits)
        with transaction(self.database):
            journal_jobs.add_units(self.database, job_id, [unit], {})
        self.places.append((job_id, index))

    def step(self, what, which):
        if what == "add":
            self.add()
            return
        if what == "lose":
            if self.places:
                place = self.places[which % len(self.places)]
                with transaction(self.database):
                    journal_units.reopen(self.database, *place)
            return
        ready = [u for job in JOBS for u in journal_units.ready(self.database, job, -1, None)]
        if not ready:
            return
        unit = ready[which % len(ready)]
        self.ends += 1
        end = (
            done(unit, 1000 + self.ends) if what == "done" else failed(unit, Failure("nan", ""))
        )
        with transaction(self.database):
            assert journal_units.end_units(self.database, [end]).new == (True,)
            assert journal_units.end_units(self.database, [end]).new == (False,)

    def units(self):
        pages = (journal_units.page(self.database, job, 0, 100) for job in JOBS)
        return {(unit.job, unit.index): unit for page in pages for unit in page}

    def refs(self, unit):
        rows = self.database.execute(
            "SELECT * FROM edges WHERE job = ? AND place = ?", (unit.job, unit.index)
        )
        return {r["input"]: (r["from_job"], r["from_place"], r["output"]) for r in rows}

    def check(self):
        units = self.units()
        for unit in units.values():
            refs = self.refs(unit)
            sources = {name: units[ref[:2]] for name, ref in refs.items()}
            if unit.state is UnitState.QUEUED:
                waiting = {n for n, s in sources.items() if s.state is UnitState.QUEUED}
                assert set(unit.awaits) == waiting
                given = {n: s.outputs for n, s in sources.items() if n not in waiting}
                assert all(outputs is not None for outputs in given.values())
                inputs = {n: outputs[refs[n][2]] for n, outputs in given.items()}
                assert unit.inputs == {"x": tensor_id(unit.index), **inputs}
            elif unit.failure is not None and unit.failure.code == "input_failed":
                assert unit.receipt is None
            elif unit.failure is not None and unit.failure.code == "no_such_output":
                assert "z" in {output for _, _, output in refs.values()}
        for row in self.database.execute("SELECT * FROM jobs").fetchall():
            check_job(self.database, row)


@settings(deadline=None, max_examples=60)
@given(UNITS, STEPS, st.integers(0, 12))
def test_no_unit_waits_for_what_has_ended_or_has_what_was_lost(wanted, steps, at_once):
    with closing(open_database(Path(":memory:"))) as database:
        chains = Chains(database, wanted)
        for _ in range(at_once):
            chains.add()
        for step in steps:
            chains.step(*step)
            chains.check()


@settings(deadline=None, max_examples=40)
@given(UNITS, STEPS)
def test_whatever_happened_all_units_end_once_those_that_are_ready_do(wanted, steps):
    with closing(open_database(Path(":memory:"))) as database:
        chains = Chains(database, wanted)
        for step in steps:
            chains.step(*step)
        while chains.wanted:
            chains.add()
        for _ in range(len(wanted)):
            chains.step("done", 0)
        assert all(unit.state is not UnitState.QUEUED for unit in chains.units().values())
        chains.check()


@settings(deadline=None, max_examples=40)
@given(UNITS, STEPS)
def test_what_awaits_a_job_that_is_cancelled_fails_and_nothing_hangs(wanted, steps):
    with closing(open_database(Path(":memory:"))) as database:
        chains = Chains(database, wanted)
        for _ in wanted:
            chains.add()
        for step in steps:
            chains.step(*step)
        with transaction(database):
            journal_jobs.end_job(database, JOBS[0], JobState.CANCELLED, 2000.0, None)
        chains.check()
        for _ in range(len(wanted)):
            chains.step("done", 0)
        assert all(unit.state is not UnitState.QUEUED for unit in chains.units().values())
