"""`Future`: a unit that was submitted through an `Executor`, and where it is."""

from __future__ import annotations

import concurrent.futures
import threading
from typing import TYPE_CHECKING

from shoal.crypto.errors import ShoalError
from shoal.node.client import flows
from shoal.node.client.tensors import Outputs
from shoal.node.errors import JobFailedError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from shoal.crypto.content import BlobId
    from shoal.node.client.submitting import Encoded


class Future(concurrent.futures.Future[Outputs]):
    """The outputs of one unit, once they are there.

    `cancel` succeeds as long as nobody runs the unit, and `running` stays False: who runs
    it is known to the daemon (``shoal job show``), which is not asked all the time.
    """

    def __init__(self, where: Submitted) -> None:
        super().__init__()
        self._where = where

    @property
    def job_id(self) -> str:
        """The job that the unit is in; waits the milliseconds until it is in one.

        Raises:
            JobFailedError: It never came into one: it was cancelled, or the daemon is gone.
        """
        return self._wait_for_place()[0]

    @property
    def unit(self) -> int:
        """The unit's index in the job; waits and raises as `job_id`."""
        return self._wait_for_place()[1]

    def receipt(self, timeout: float | None = None) -> bytes:
        """The signed receipt of whoever ran it, for ``shoal receipt verify``.

        Waits for the unit to end; that of a unit that failed may be there too.

        Raises:
            TimeoutError: It has not ended within ``timeout`` seconds.
            CancelledError: It was cancelled.
            JobFailedError: It ended without one.
        """
        self.exception(timeout)
        if self._where.receipt_id is None:
            raise JobFailedError("nobody signed a receipt for this unit", code="no_receipt")
        return self._where.drive(flows.receipt(self._where.receipt_id))

    def cancel(self) -> bool:
        """Cancel the unit if nobody runs it; says whether it is cancelled."""
        if self.done():
            return self.cancelled()
        if self._where.withdraw():
            return self._where.never_runs()
        self._where.placed.wait()
        if self._where.place is None:
            return self.cancelled()
        job_id, index = self._where.place
        try:
            cancelled = self._where.drive(flows.cancel_units(job_id, [index]))
        except ShoalError:
            return False  # the daemon is away, or has forgotten the job
        return self._where.never_runs() if cancelled else self.cancelled()

    def _wait_for_place(self) -> tuple[str, int]:
        self._where.placed.wait()
        if self._where.place is None:
            if self.done() and not self.cancelled() and (error := self.exception()):
                raise error
            raise JobFailedError("this unit was never handed over", code="not_handed_over")
        return self._where.place


class Submitted:
    """A unit on its way, beside its future.

    Attributes:
        future: Of its outputs.
        unit: By input a small tensor or an id; nothing once it was sent.
        large: Arrays that are put before it, by id; likewise.
        size_bytes: Of all of its inputs.
        placed: Set once it is known where it is, or that it is nowhere.
        place: Its job and its index there.
        receipt_id: Once it has ended.
        withdraw: Takes it back; False where it is on its way, or there.
    """

    __slots__ = (
        "_settling",
        "drive",
        "future",
        "large",
        "place",
        "placed",
        "receipt_id",
        "size_bytes",
        "unit",
        "withdraw",
    )

    def __init__(
        self,
        drive: flows.Drive,
        unit: Encoded,
        large: dict[BlobId, np.ndarray],
        size_bytes: int,
    ) -> None:
        self.drive = drive
        self.unit, self.large, self.size_bytes = unit, large, size_bytes
        self._settling = threading.RLock()
        self.placed = threading.Event()
        self.place: tuple[str, int] | None = None
        self.receipt_id: str | None = None
        self.withdraw: Callable[[], bool] = lambda: False
        self.future = Future(self)

    def settle(self, place: tuple[str, int] | None) -> None:
        """Note where it is now; what was sent of it is not needed any more."""
        self.unit, self.large = {}, {}
        self.place = place
        self.placed.set()

    def never_runs(self) -> bool:
        """Note that it was cancelled where it waited, and tell whoever waits for it."""
        with self._settling:
            if not concurrent.futures.Future.cancel(self.future):
                return False
            if not concurrent.futures.wait([self.future], 0).done:
                self.future.set_running_or_notify_cancel()
        return True

    def fails(self, error: BaseException) -> None:
        """End its future by an error, unless it has ended."""
        with self._settling:
            if not self.future.done() and self.future.set_running_or_notify_cancel():
                self.future.set_exception(error)

    def succeeds(self, outputs: Outputs) -> None:
        """Give its future the outputs, unless it has ended."""
        with self._settling:
            if not self.future.done() and self.future.set_running_or_notify_cancel():
                self.future.set_result(outputs)
