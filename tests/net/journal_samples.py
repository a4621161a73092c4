"""Jobs, units and their ends for tests of the journal, and what has to hold of it."""

import sqlite3

import msgspec

from shoal.crypto.content import blob_id_of
from shoal.crypto.peer_id import PeerId
from shoal.node.records import (
    Ended,
    Job,
    JobId,
    JobSpec,
    JobState,
    OutputRef,
    Policy,
    Unit,
    UnitState,
)

PROGRAM = blob_id_of(b"program")
PEER = PeerId("12D3KooWpeer")


def make_spec(units=(), **changes):
    return JobSpec(policy=Policy.MAP, program=PROGRAM, units=tuple(units), **changes)


def make_job(name="0001", *, opened=False, **changes):
    """A job that begins, with no units yet, and its spec."""
    spec = make_spec(open=opened, label="évaluation")
    job = Job(
        id=JobId(name),
        policy=spec.policy,
        program=PROGRAM,
        numeric_class=spec.numeric_class,
        label=spec.label,
        state=JobState.RUNNING,
        created_at=1000.5,
        ended_at=None,
        units_total=0,
        units_done=0,
        units_failed=0,
        open=opened,
    )
    return msgspec.structs.replace(job, **changes), spec


def make_unit(index, *, job="0001", inputs=None, **awaits):
    """A unit with one input of its own, which awaits ``name=(job, unit, output)``."""
    return Unit(
        job=JobId(job),
        index=index,
        state=UnitState.QUEUED,
        inputs={"x": tensor_id(index)} if inputs is None else inputs,
        awaits={name: OutputRef(JobId(ref[0]), *ref[1:]) for name, ref in awaits.items()},
    )


def make_units(count, first=0, **changes):
    return [make_unit(index, **changes) for index in range(first, first + count)]


def tensor_of(number):
    return number.to_bytes(8)


def tensor_id(number):
    return blob_id_of(tensor_of(number))


def done(unit, number=None, *, left=None, outputs=None, **changes):
    """The end of a unit whose one output ``y`` is kept in the journal, with a receipt."""
    number = unit.index if number is None else number
    receipt = f"receipt of {unit.job}/{unit.index} giving {number}".encode()
    if outputs is None:
        outputs = {"y": tensor_id(number)}
    ended = msgspec.structs.replace(
        unit,
        state=UnitState.DONE,
        outputs=outputs,
        receipt=blob_id_of(receipt),
        provider=PEER,
        attempts=1,
        seconds=0.5,
        awaits={},
        **changes,
    )
    tensors = {} if left else {tensor_id(number): tensor_of(number)}
    return Ended(ended, receipt, tensors, left or {})


def failed(unit, failure=None):
    return Ended(msgspec.structs.replace(unit, state=UnitState.FAILED, failure=failure))


def check_sound(path):
    """What has to hold of every state, whatever was done and where it was killed."""
    database = sqlite3.connect(path)
    database.row_factory = sqlite3.Row
    try:
        assert database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        if database.execute("PRAGMA user_version").fetchone()[0] == 0:
            assert database.execute("SELECT * FROM sqlite_schema").fetchall() == []
            return
        for job in database.execute("SELECT * FROM jobs WHERE NOT forgotten").fetchall():
            check_job(database, job)
    finally:
        database.close()


def check_job(database, job):
    """A job's counters are what counting its units gives, and so is all that hangs on them."""
    count = {
        row["state"]: row["n"]
        for row in database.execute(
            "SELECT state, count(*) AS n FROM units WHERE job = ? GROUP BY state", (job["id"],)
        )
    }

    def one(query):
        return database.execute(query, {"job": job["id"]}).fetchone()[0]

    assert job["units_total"] == sum(count.values())
    assert job["units_done"] == count.get("done", 0)
    assert job["units_failed"] == count.get("failed", 0)
    highest = one("SELECT coalesce(max(place), -1) FROM units WHERE job = :job")
    assert job["units_total"] == highest + 1
    fetched = "SELECT count(*) FROM units WHERE job = :job AND fetched"
    assert job["units_fetched"] == one(fetched)
    size = "SELECT coalesce(sum(length({})), 0) FROM {} WHERE job = :job"
    assert job["size_bytes"] == one(size.format("envelope", "receipts")) + one(
        size.format("data", "tensors")
    )
    if job["state"] != "running":
        assert not count.get("queued")
        assert job["ended_at"] is not None
    units = database.execute("SELECT * FROM units WHERE job = ?", (job["id"],)).fetchall()
    numbers = [unit["ended"] for unit in units if unit["ended"] is not None]
    assert len(set(numbers)) == len(numbers)
    assert all(number < job["endings"] for number in numbers)
    receipts = {
        row["place"]: row["id"]
        for row in database.execute("SELECT * FROM receipts WHERE job = ?", (job["id"],))
    }
    for unit in units:
        assert (unit["ended"] is None) == (unit["state"] == "queued")
        assert unit["awaits"] is None or unit["state"] == "queued"
        assert unit["receipt"] == receipts.get(unit["place"])


async def end_one(state, unit, receipt=None):
    """Write one unit's end; False if it had ended before."""
    return (await state.end_units([Ended(unit, receipt)])).new[0]
