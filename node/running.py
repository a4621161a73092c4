"""Units at a provider, from when they are handed over until each has its answer.

Those that come in one message go through the steps together (`node.pipeline`: fetch,
execute, sign): the program is fetched once for its lease, they run in few exchanges with
the worker, while it runs one the last one's receipt is written, and one signature is over
those of all that end together. Each ends with an answer of its own.
What they are answered by, and when they are given up, is `node.provider`'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import structlog
import trio

from shoal.compute.errors import ProgramError
from shoal.compute.unit_runs import Execution, UnitRun
from shoal.crypto.errors import ShoalError
from shoal.node import pipeline, unit_messages
from shoal.node.errors import InputMissingError, StoreError
from shoal.node.house import House, inputs_of
from shoal.protocol.limits import INLINE_LIMIT_BYTES, UNIT_TIME_LIMIT_S
from shoal.protocol.negotiation_messages import (
    Reason,
    Refusal,
    UnitRequest,
    UnitResult,
    UnitTimes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from shoal.compute.programs import AnyManifest
    from shoal.protocol.negotiation import ProviderSide

HELD_LIMIT_BYTES = 8 << 20
"""Inputs of one message's units that are in memory at once, but for one unit's own."""

HELD_BATCHES_LIMIT = 2
"""Messages of one lease whose inputs are in memory: one runs while the next one's arrive. More
on a device that runs several at a time."""

SIGNED_WITHIN_S = 1.0
"""How long a unit that has ended waits for others to be signed with it."""

UNKNOWN_UNIT_S = 1.0
"""How long a unit is taken to run before one of its lease has."""

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Running:
    """A unit that was handed over and has not ended.

    Attributes:
        refusal: What it is answered by where it was given up.
        unwanted_since_s: Since when this node would not take it any more.
        asked_s: When it came; then when its inputs were here, and when it had run.
    """

    request: UnitRequest
    ended: trio.Event = field(default_factory=trio.Event)
    answer: UnitResult | Refusal | None = None
    refusal: Refusal | None = None
    unwanted_since_s: float | None = None
    run: UnitRun | None = None
    batch: Batch | None = None
    asked_s: float = field(default_factory=trio.current_time)
    ready_s: float = 0.0
    ran_s: float = 0.0

    def times(self, run: UnitRun) -> UnitTimes:
        """Where its time went until now, when it is signed."""
        executed_s = run.outcome.compute_s if isinstance(run.outcome, Execution) else 0.0
        spent = (
            self.ready_s - self.asked_s,
            self.ran_s - self.ready_s - executed_s,
            executed_s,
            trio.current_time() - self.ran_s,
        )
        return UnitTimes(*(min(max(0.0, each), UNIT_TIME_LIMIT_S) for each in spent))

    async def end(self) -> UnitResult | Refusal:
        """Wait for its answer."""
        await self.ended.wait()
        assert self.answer is not None
        return self.answer

    def give_up(self, refusal: Refusal) -> None:
        """End it without a result, as soon as may be."""
        self.refusal = self.refusal or refusal
        if self.run is not None:
            self.run.cancel()
        if self.batch is not None:
            self.batch.give_up_if_all_are()


@dataclass(slots=True, eq=False)
class Conversation:
    """A machine, and the units that run because of it.

    Attributes:
        unit_s: How long its units run, as measured lately.
        ran_s: How long they have run, all together.
        unwanted: Names of units that were cancelled: of what they give nobody waits.
    """

    side: ProviderSide
    running: dict[str, Running] = field(default_factory=dict)
    unit_s: float = UNKNOWN_UNIT_S
    ran_s: float = 0.0
    unwanted: set[str] = field(default_factory=set)
    room: trio.CapacityLimiter = field(
        default_factory=lambda: trio.CapacityLimiter(HELD_BATCHES_LIMIT)
    )
    """For messages whose units' inputs are in memory: one more for each that runs beside."""
    _manifest: AnyManifest | None = None
    _fetching: trio.Lock = field(default_factory=trio.Lock)

    @property
    def device(self) -> str:
        """The device that this node has bid with; "" before it has."""
        return self.side.bid.device if self.side.bid is not None else ""

    async def program(self, house: House) -> AnyManifest:
        """The program's manifest, when all of its blobs are held: fetched once."""
        async with self._fetching:
            if self._manifest is None:
                self._manifest = await pipeline.fetch_program(house, self.side)
            return self._manifest

    def forget_program(self) -> None:
        """Have it fetched again: a blob of it is gone."""
        self._manifest = None

    def measured(self, run: UnitRun) -> None:
        """Note how long a unit ran."""
        if isinstance(run.outcome, Execution):
            first = self.unit_s == UNKNOWN_UNIT_S
            weight = 1.0 if first else 0.1
            self.unit_s += weight * (run.outcome.compute_s - self.unit_s)
            self.ran_s += run.outcome.compute_s


class Batch:
    """The units of one message that were not handed over before.

    Args:
        house: The modules that the steps call.
        conversation: Of which lease they are.
        units: Their answers are in them at the end.
        ended: Told of each that has its answer.
    """

    def __init__(
        self,
        house: House,
        conversation: Conversation,
        units: Sequence[Running],
        ended: Callable[[Running], None],
    ) -> None:
        self._house, self._conversation, self._side = house, conversation, conversation.side
        self._units = units
        self._ended = ended
        self._scope = trio.CancelScope()
        self._inline_room = INLINE_LIMIT_BYTES
        for unit in units:
            unit.batch = self

    def give_up_if_all_are(self) -> None:
        """Stop at once where nobody waits for any of them."""
        if all(unit.refusal is not None or unit.answer is not None for unit in self._units):
            self._scope.cancel()

    async def run(self) -> None:
        """Take all of them through fetch, execute and sign; raises nothing."""
        failed = "this node failed to run the unit"
        try:
            with self._scope:
                await self._run()
        except Exception:  # root of units: a bug here must not end those of other messages
            log.exception("a unit failed inside this node", unit=self._units[0].request.unit)
        finally:
            for unit in self._units:
                if unit.answer is None:
                    call = unit.request.call
                    internal = Refusal(call=call, reason=Reason.INTERNAL, detail=failed)
                    self._end(unit, unit.refusal or internal)

    async def _run(self) -> None:
        try:
            manifest = await self._conversation.program(self._house)
        except ShoalError as error:
            self._refuse(self._units, error)
            return
        async with self._conversation.room:
            await self._run_with(manifest)

    async def _run_with(self, manifest: AnyManifest) -> None:
        fits = max(1, unit_messages.units_per_message(manifest))
        for unit in self._units[fits:]:
            detail = f"of this program {fits} units fit into one message"
            refusal = Refusal(unit.request.call, Reason.TOO_LARGE, detail)
            self._end(unit, refusal)
        ready: list[Running] = []
        held_bytes = 0
        for unit in self._units[:fits]:
            try:
                inputs = await pipeline.fetch_inputs(
                    self._house, self._side, manifest, unit.request
                )
            except ShoalError as error:
                self._refuse([unit], error)
                continue
            unit.run = UnitRun(inputs, trace=unit.request.trace)
            unit.ready_s = trio.current_time()
            ready.append(unit)
            held_bytes += sum(map(len, inputs.values()))
            if held_bytes > HELD_LIMIT_BYTES:
                await self._execute(manifest, ready)
                ready, held_bytes = [], 0
        if ready:
            await self._execute(manifest, ready)

    async def _execute(self, manifest: AnyManifest, units: Sequence[Running]) -> None:
        """Run units whose inputs are here; each is signed while the next one runs."""
        by_run = {u.run: u for u in units if u.run is not None and u.refusal is None}
        failure: StoreError | None = None
        send, receive = trio.open_memory_channel[UnitRun](len(by_run))

        def ran(run: UnitRun) -> None:
            by_run[run].ran_s = trio.current_time()
            send.send_nowait(run)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sign_all, receive, by_run)
            with send:
                try:
                    await pipeline.execute(self._house, self._side, manifest, list(by_run), ran)
                except StoreError as error:
                    self._conversation.forget_program()
                    failure = error
        if failure is not None:
            self._refuse([unit for unit in units if unit.answer is None], failure)
        for unit in units:
            unit.run = None  # its tensors go

    async def _sign_all(
        self, ended: trio.MemoryReceiveChannel[UnitRun], units: Mapping[UnitRun, Running]
    ) -> None:
        """Write receipts as runs end; those that do within one time are signed together."""
        written: list[tuple[Running, pipeline.Unsigned]] = []
        sign_at_s = math.inf
        while True:
            run = None
            with trio.move_on_at(sign_at_s):
                try:
                    run = await ended.receive()
                except trio.EndOfChannel:
                    break
            if run is None:
                self._sign(written)
                written, sign_at_s = [], math.inf
            elif (one := await self._write_receipt(units[run], run)) is not None:
                written.append((units[run], one))
                sign_at_s = min(sign_at_s, trio.current_time() + SIGNED_WITHIN_S)
        self._sign(written)

    async def _write_receipt(self, unit: Running, run: UnitRun) -> pipeline.Unsigned | None:
        if unit.refusal is not None:
            return None
        self._conversation.measured(run)
        try:
            written = await pipeline.write_receipt(
                self._house, self._side, unit.request, run, self._inline_room
            )
        except ShoalError as error:
            self._refuse([unit], error)
            return None
        self._inline_room -= sum(map(len, written.blobs))
        return written

    def _sign(self, written: Sequence[tuple[Running, pipeline.Unsigned]]) -> None:
        wanted = [(unit, one) for unit, one in written if unit.refusal is None]
        try:
            results = pipeline.sign(self._house, self._side, [one for _, one in wanted])
        except ShoalError as error:
            self._refuse([unit for unit, _ in wanted], error)
            return
        for (unit, _), result in zip(wanted, results, strict=True):
            assert unit.run is not None
            self._end(unit, msgspec.structs.replace(result, times=unit.times(unit.run)))

    def _refuse(self, units: Sequence[Running], error: ShoalError) -> None:
        match error:
            case ProgramError():
                reason = Reason.PROGRAM_REFUSED
            case StoreError(code="blob_too_large"):
                # Over what the unit may have of memory: it fits no disk of any node.
                reason = Reason.PROGRAM_REFUSED
            case StoreError():
                reason = Reason.NO_ROOM
            case _:
                reason = Reason.DATA_MISSING
        missing = error.blob_id if isinstance(error, InputMissingError) else None
        for unit in units:
            call = unit.request.call
            self._end(unit, Refusal(call, reason, error.message[:256], missing))

    def _end(self, unit: Running, answer: UnitResult | Refusal) -> None:
        self._house.store.unpin(inputs_of(self._side, unit.request.unit))
        unit.answer = answer
        self._ended(unit)
        unit.ended.set()
