"""How results come back: page by page, each bounded, so that a job of any size passes.

Last step of the data path, *deliver*: blobs become arrays. No IO; see `exchange`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgpack
import msgspec

from shoal.compute.tensor import from_blob
from shoal.node.client.exchange import Flow, Request
from shoal.node.client.flows import WAIT_STEP_S, failure_of, unit_failure, units
from shoal.node.client.tensors import As, Outputs, as_wanted
from shoal.node.errors import JobFailedError
from shoal.node.records import Failure, Job, Unit, UnitState

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.crypto.content import BlobId

_FETCH_LIMIT_S = 600.0


class Told(msgspec.Struct, frozen=True):
    """A unit that has ended: a map of the results' stream. Outputs are tensors or ids."""

    index: int
    state: UnitState
    outputs: dict[str, Any] | None = None
    receipt: str | None = None
    provider: str | None = None
    attempts: int = 0
    seconds: float | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Some units that have ended.

    Attributes:
        after: Where the next page begins.
        job: The job as it stood then; where it is final and the page empty, that is all.
    """

    units: tuple[Told, ...]
    after: int
    job: Job

    @property
    def last(self) -> bool:
        """Whether nothing follows."""
        return self.job.state.final and not self.units


def page(
    job_id: str, after: int = -1, *, ordered: bool = True, wait_s: float = WAIT_STEP_S
) -> Flow[Page]:
    """The next units that have ended, once there is one, or none after ``wait_s``.

    Args:
        job_id: The job.
        after: Of the page before; -1 for the first.
        ordered: By index, without gaps; otherwise in the order in which they ended.
        wait_s: How long to wait for the first.
    """
    request = Request(
        "GET",
        f"/v1/jobs/{job_id}/results",
        {"after": after, "order": "given" if ordered else "ended", "wait_s": wait_s},
        answer_limit_s=wait_s + 60,
    )
    return page_of((yield request))


def page_of(body: bytes) -> Page:
    """A page as it came."""
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(body)
    *told, end = unpacker
    return Page(
        tuple(msgspec.convert(unit, Told) for unit in told),
        end["after"],
        msgspec.convert(end["job"], Job),
    )


def outputs_of(job_id: str, unit: Told, as_: As = "numpy") -> Flow[Outputs]:
    """The outputs of one unit of a page; those that are not in it are fetched.

    Raises:
        JobFailedError: It has none.
    """
    if unit.state is not UnitState.DONE or unit.outputs is None:
        raise unit_failure(_as_unit(job_id, unit))
    found = Outputs()
    for name, output in unit.outputs.items():
        blob = output if isinstance(output, bytes) else (yield _blob(output))
        found[name] = as_wanted(from_blob(blob), as_)
    found.unit, found.provider, found.seconds = unit.index, unit.provider, unit.seconds
    found.receipt = unit.receipt  # type: ignore[assignment]  # ids are text in JSON
    return found


class Results:
    """Walks through the results of one job; as a flow for each page.

    Args:
        job_id: The job.
        ordered: As in `page`.
        as_: As what arrays are given.
        seen: Told how the job stands, after each page.
    """

    def __init__(
        self,
        job_id: str,
        *,
        ordered: bool = True,
        as_: As = "numpy",
        seen: Callable[[Job], None] = lambda _job: None,
    ) -> None:
        self.job_id = job_id
        self.ended = False
        self._ordered = ordered
        self._as = as_
        self._after = -1
        self._seen = seen
        self._waiting: list[Told] = []
        self._given = bytearray()
        """One bit for each unit that came in the order of ending: one whose outputs were lost
        ends twice there."""

    @property
    def waiting(self) -> int:
        """How many units are here and were not taken."""
        return len(self._waiting)

    def ask(self, wait_s: float = WAIT_STEP_S) -> Flow[int]:
        """Get the next page where none waits; gives how many units wait then.

        Raises:
            JobFailedError: The job ended without results for the units that follow.
        """
        if not self._waiting and not self.ended:
            got = yield from page(
                self.job_id, self._after, ordered=self._ordered, wait_s=wait_s
            )
            self._after = got.after
            fresh = got.units if self._ordered else filter(self._is_new, got.units)
            self._waiting = [*fresh][::-1]
            self._seen(got.job)
            if got.last:
                self.ended = True
                if got.job.units_done < got.job.units_total:
                    raise failure_of(got.job)
        return len(self._waiting)

    def _is_new(self, told: Told) -> bool:
        """Note a unit; False where it has come before."""
        byte, bit = told.index >> 3, 1 << (told.index & 7)
        if byte >= len(self._given):
            self._given.extend(bytes(byte + 1 - len(self._given)))
        new = not self._given[byte] & bit
        self._given[byte] |= bit
        return new

    def take(self) -> Flow[Outputs]:
        """The outputs of the next unit that waits.

        Raises:
            JobFailedError: It has none.
        """
        return (yield from outputs_of(self.job_id, self._waiting.pop(), self._as))

    def next(self) -> Flow[Outputs | None]:
        """The outputs of the next unit, once it has ended; None at the end of the job."""
        while not self.ended:
            if (yield from self.ask()):
                return (yield from self.take())
        return None


def outputs(job_id: str, index: int, as_: As = "numpy") -> Flow[Outputs]:
    """The outputs of one unit.

    Raises:
        JobFailedError: It is not done.
    """
    found = yield from units(job_id, index, 1)
    if not found:
        raise JobFailedError(
            f"job {job_id} has no unit {index}",
            code="no_such_unit",
            hint=f"`shoal job show {job_id}` lists its units; the first is 0",
        )
    (unit,) = found
    told = Told(
        index=unit.index,
        state=unit.state,
        outputs=dict(unit.outputs) if unit.outputs is not None else None,
        receipt=unit.receipt,
        provider=unit.provider,
        seconds=unit.seconds,
        failure=unit.failure,
    )
    return (yield from outputs_of(job_id, told, as_))


def _as_unit(job_id: str, told: Told) -> Unit:
    return msgspec.convert(
        {**msgspec.to_builtins(told), "job": job_id, "inputs": {}, "outputs": None}, Unit
    )


def _blob(blob_id: BlobId) -> Request:
    return Request("GET", f"/v1/blobs/{blob_id}", answer_limit_s=_FETCH_LIMIT_S, large=True)
