"""Units end, and what that means for those that await them: within one transaction.

A unit ends once, whoever says so again. Counters of its job change with it, and the units
that await an output of it get that as an input; where there is none to come they fail,
and so do those that await them. The edges between units stay as long as the unit that
awaits, since an output can be lost with the peer that it was left with
(`node.journal_units.reopen`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from shoal.crypto.content import BlobId
from shoal.node.journal_verdicts import add_checks
from shoal.node.records import (
    Ended,
    Failure,
    JobId,
    OutputRef,
    Unit,
    UnitState,
)
from shoal.node.state_tables import (
    KEY_OF_ID,
    from_json,
    id_key,
    insert,
    to_json,
    unit_row,
)

EDGES_AT_ONCE = 1000
"""Edges of one unit in memory: it may feed any number of others."""


class Source(NamedTuple):
    """A unit that others await: how it stands."""

    job: JobId
    place: int
    state: UnitState
    outputs: dict[str, BlobId] | None


@dataclass(slots=True)
class _Tally:
    """What changes in a job's row."""

    next_ending: int
    done: int = 0
    failed: int = 0
    size_bytes: int = 0
    blobs: int = 0


class Endings:
    """Ends units in the transaction that is open; `close` writes the counters of their jobs.

    Attributes:
        touched: Jobs of which units that await others became ready or failed.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._tallies: dict[JobId, _Tally] = {}
        self.touched: set[JobId] = set()

    def end(self, ended: Ended) -> bool:
        """Write a unit's end; False, and nothing is written, where it had ended before."""
        unit, tally = ended.unit, self._tally(ended.unit.job)
        if tally is None or not self._put(unit, tally):
            return False
        tally.done += unit.state is UnitState.DONE
        tally.failed += unit.state is UnitState.FAILED
        if ended.receipt is not None:
            row = {"id": unit.receipt, "job": unit.job, "place": unit.index}
            insert(self._database, "receipts", [{**row, "envelope": ended.receipt}])
            tally.size_bytes += len(ended.receipt)
        for tensor, data in ended.tensors.items():
            tally.size_bytes += keep_tensor(self._database, unit.job, tensor, data)
        left = [
            {
                "tensor": tensor,
                "job": unit.job,
                "place": unit.index,
                "peer": unit.provider,
                "size_bytes": size_bytes,
            }
            for tensor, size_bytes in ended.left.items()
        ]
        insert(self._database, "left_outputs", left)
        add_checks(self._database, ended.checks)
        tally.blobs += len(
            set((unit.outputs or {}).values()) - ended.tensors.keys() - ended.left.keys()
        )
        self._settle(Source(unit.job, unit.index, unit.state, unit.outputs))
        return True

    def cancel_rest(self, job_id: JobId) -> None:
        """Cancel what is open of a job."""
        tally = self._tally(job_id)
        assert tally is not None
        cancelled = self._database.execute(
            "UPDATE units SET state = 'cancelled', awaits = NULL, ended = ? + place"
            " WHERE job = ? AND state = 'queued'",
            (tally.next_ending, job_id),
        )
        if not cancelled.rowcount:
            return
        (highest,) = self._database.execute(
            "SELECT max(ended) FROM units WHERE job = ?", (job_id,)
        ).fetchone()
        tally.next_ending = highest + 1
        rows = self._database.execute(
            "SELECT DISTINCT from_place FROM edges JOIN units"
            " ON units.job = from_job AND units.place = from_place"
            " WHERE from_job = :job AND edges.job <> :job AND state = 'cancelled'",
            {"job": job_id},
        ).fetchall()
        for row in rows:
            self._settle(Source(job_id, row["from_place"], UnitState.CANCELLED, None))

    def meet(
        self, job: JobId, place: int, input_name: str, source: Source, output: str
    ) -> None:
        """Give a unit an input that it awaits, now that ``source`` has ended, or fail it."""
        self._settle_from([*self._meet(job, place, input_name, source, output)])

    def close(self) -> None:
        """Write the counters."""
        for job, tally in self._tallies.items():
            self._database.execute(
                "UPDATE jobs SET endings = ?, units_done = units_done + ?,"
                " units_failed = units_failed + ?, size_bytes = size_bytes + ?,"
                " blobs = blobs + ? WHERE id = ?",
                (
                    tally.next_ending,
                    tally.done,
                    tally.failed,
                    tally.size_bytes,
                    tally.blobs,
                    job,
                ),
            )

    def _tally(self, job: JobId) -> _Tally | None:
        tally = self._tallies.get(job)
        if tally is None:
            row = self._database.execute(
                "SELECT endings FROM jobs WHERE id = ?", (job,)
            ).fetchone()
            if row is None:
                return None
            tally = self._tallies[job] = _Tally(row["endings"])
        return tally

    def _put(self, unit: Unit, tally: _Tally) -> bool:
        """Write a unit over its row, unless that has ended; says whether it was written."""
        row = unit_row(unit) | {"ended": tally.next_ending, "awaits": None}
        written = self._database.execute(_PUT_UNIT, row)
        tally.next_ending += written.rowcount
        return written.rowcount > 0

    # --- units that await others ------------------------------------------------------

    def _settle(self, source: Source) -> None:
        self._settle_from([source])

    def _settle_from(self, ended: list[Source]) -> None:
        """Go on from units that have ended to those that await them, and on from there."""
        while ended:
            source = ended.pop()
            for job, place, input_name, output in self._edges_from(source):
                ended += self._meet(job, place, input_name, source, output)

    def _edges_from(self, source: Source) -> Iterator[tuple[JobId, int, str, str]]:
        last: tuple[str, int, str] = ("", -1, "")
        while True:
            rows = self._database.execute(
                "SELECT job, place, input, output FROM edges WHERE from_job = ?"
                " AND from_place = ? AND (job, place, input) > (?, ?, ?)"
                " ORDER BY job, place, input LIMIT ?",
                (source.job, source.place, *last, EDGES_AT_ONCE),
            ).fetchall()
            for row in rows:
                yield (row["job"], row["place"], row["input"], row["output"])
            if len(rows) < EDGES_AT_ONCE:
                return
            last = (rows[-1]["job"], rows[-1]["place"], rows[-1]["input"])

    def _meet(
        self, job: JobId, place: int, input_name: str, source: Source, output: str
    ) -> Iterator[Source]:
        """As `meet`; gives the unit itself where it has failed by it."""
        row = self._database.execute(
            "SELECT inputs, awaits FROM units WHERE job = ? AND place = ?"
            " AND state = 'queued' AND awaits IS NOT NULL",
            (job, place),
        ).fetchone()
        awaits = from_json(row["awaits"], dict[str, OutputRef]) if row else {}
        if input_name not in awaits:
            return
        self.touched.add(job)
        tensor = (source.outputs or {}).get(output)
        if source.state is UnitState.DONE and tensor is not None:
            inputs = from_json(row["inputs"], dict[str, BlobId])
            del awaits[input_name]
            self._database.execute(
                "UPDATE units SET inputs = ?, awaits = ? WHERE job = ? AND place = ?",
                (
                    to_json({**inputs, input_name: tensor}),
                    to_json(awaits) if awaits else None,
                    job,
                    place,
                ),
            )
            tally = self._tally(job)
            assert tally is not None
            tally.size_bytes += share_tensors(self._database, job, [tensor])
            return
        self._fail(job, place, _lacks(input_name, source, output))
        yield Source(job, place, UnitState.FAILED, None)

    def _fail(self, job: JobId, place: int, failure: Failure) -> None:
        tally = self._tally(job)
        assert tally is not None
        self._database.execute(
            "UPDATE units SET state = 'failed', awaits = NULL, failure = ?, ended = ?"
            " WHERE job = ? AND place = ?",
            (to_json(failure), tally.next_ending, job, place),
        )
        tally.next_ending += 1
        tally.failed += 1


def source_at(database: sqlite3.Connection, job: JobId, place: int) -> Source | None:
    """A unit as those that await it see it; None where there is none."""
    row = database.execute(
        "SELECT state, outputs FROM units WHERE job = ? AND place = ?", (job, place)
    ).fetchone()
    if row is None:
        return None
    outputs = from_json(row["outputs"], dict[str, BlobId])
    return Source(job, place, UnitState(row["state"]), outputs)


def keep_tensor(database: sqlite3.Connection, job: JobId, tensor: BlobId, data: bytes) -> int:
    """Keep a small tensor for a job; gives the bytes that are new."""
    row = {"job": job, "id": tensor, "key": id_key(tensor), "data": data}
    kept = database.execute(_KEEP_TENSOR, row)
    return len(data) * kept.rowcount


def share_tensors(database: sqlite3.Connection, job: JobId, tensors: list[BlobId]) -> int:
    """Keep for a job those of the tensors that another has; gives the bytes that are new.

    Each job has its own, so that one can be forgotten without a look at the others.
    """
    size_bytes = 0
    for tensor in tensors:
        kept = database.execute(
            _SHARE_TENSOR, {"job": job, "id": tensor, "key": id_key(tensor)}
        ).fetchone()
        size_bytes += kept[0] if kept else 0
    return size_bytes


def _lacks(input_name: str, source: Source, output: str) -> Failure:
    unit = f"unit {source.place} of job {source.job}"
    if source.state is UnitState.DONE:
        return Failure(
            "no_such_output",
            f"the input {input_name[:64]!r} is the output {output[:64]!r} of {unit}, and it"
            f" has none of that name, but {', '.join(sorted(source.outputs or {}))[:200]}",
            f"name one of these, or see `shoal job show {source.job} --unit {source.place}`",
        )
    ended = "was cancelled" if source.state is UnitState.CANCELLED else "failed"
    return Failure(
        "input_failed",
        f"the input {input_name[:64]!r} is an output of {unit}, which {ended}",
        f"`shoal job show {source.job}` says why; submit both again",
    )


_SAME_ID = f"tensors INDEXED BY tensors_by_id WHERE {KEY_OF_ID} = :key AND +id = :id"
_KEPT = f"SELECT 1 FROM {_SAME_ID} AND job = :job"  # noqa: S608  # names are ours
"""A job has each of its tensors once."""

_KEEP_TENSOR = (
    f"INSERT INTO tensors (job, id, data) SELECT :job, :id, :data WHERE NOT EXISTS ({_KEPT})"
)
_SHARE_TENSOR = (
    f"INSERT INTO tensors (job, id, data) SELECT :job, id, data FROM {_SAME_ID}"  # noqa: S608  # ours
    f" AND NOT EXISTS ({_KEPT}) LIMIT 1 RETURNING length(data)"
)

_COLUMNS = ", ".join(
    f"{name} = :{name}"
    for name in unit_row(Unit(JobId(""), 0, UnitState.QUEUED, {}))
    if name not in {"job", "place"}
)
_PUT_UNIT = (
    f"UPDATE units SET {_COLUMNS}"  # noqa: S608  # names are ours
    " WHERE job = :job AND place = :place AND state = 'queued'"
)
