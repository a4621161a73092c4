"""Answering for receipts that this node signed, when their requester asks how they came about.

Part of *verify*, at the provider. What is needed to run a unit again is remembered for a
while: its program and inputs by id, and small inputs themselves; what is gone from here is
fetched from the requester again. The trace is made by the worker behind everything else, one
at a time. Which questions may come when is `protocol.verification.defence`'s.

A restart forgets nothing but inputs and traces, which are fetched and made again: receipts
are written down once a second (`node.journal_defence`).
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog
import trio

from shoal.compute.errors import ComputeError
from shoal.compute.frames import UnitLimits
from shoal.compute.in_file import InFile
from shoal.crypto.content import BlobId, blob_id_of
from shoal.crypto.envelope import Statement
from shoal.crypto.errors import VerificationError
from shoal.crypto.merkle import root_over
from shoal.crypto.peer_id import PeerId
from shoal.node.errors import StoreError
from shoal.node.evidence import PATIENCE_S, RANK
from shoal.node.house import hold, manifest_of, program_blobs
from shoal.node.journal_defence import Given
from shoal.protocol.codec import encode
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.statements import Receipt, TraceRoot, open_receipt, statement_id
from shoal.protocol.verification.defence import Defender, MakeTrace
from shoal.protocol.verification.dispute import TRACE_FACTOR, TRACE_GRACE_S
from shoal.protocol.versions import OWN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from shoal.compute.unit_runs import Traced, UnitRun
    from shoal.node.house import House
    from shoal.protocol.negotiation_messages import Call
    from shoal.protocol.verification.dispute import Answer, Question

KEPT_S: Final = 2 * 3600.0
"""A requester has its results checked within minutes; a job of hours checks as it goes."""

KEPT_LIMIT: Final = 8192
KEPT_BYTES: Final = 64 << 20
"""Receipts that are remembered, and small inputs among them: about 1 KB and these bytes."""

SMALL_BYTES: Final = 64 << 10
"""Of one unit's inputs: more are fetched again."""

WRITE_INTERVAL_S: Final = 1.0
"""Between two writes of receipts; they are written as they are gathered, in one row."""

LAST_WRITE_LIMIT_S: Final = 5.0

START_LOOK_S: Final = 0.5
"""How often a node that starts looks whether it has its kernels by now. Whoever disputes waits
a minute for a trace, and asks again: nobody is to lose standing for having restarted."""

TRACED_LIMIT: Final = 16
TRACED_BYTES: Final = 64 << 20
"""Traces that are held to be asked about."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Signed:
    """A receipt, and what it takes to run its unit again."""

    requester: PeerId
    receipt: Receipt
    tensors: Mapping[BlobId, bytes]
    limits: UnitLimits
    stages: tuple[bytes, ...]
    until_s: float
    size_bytes: int
    row: int
    """Of the journal, that has it or is going to."""
    defender: Defender | None = None
    traced_bytes: int = 0


class Defence:
    """Answers for this node's receipts.

    Args:
        house: The modules.
    """

    def __init__(self, house: House) -> None:
        self._house = house
        self._signed: OrderedDict[BlobId, _Signed] = OrderedDict()  # oldest first
        self._bytes = 0
        self._row = 1
        self._unwritten: deque[Given] = deque(maxlen=KEPT_LIMIT)
        self._tracing = trio.CapacityLimiter(1)
        self._making: dict[tuple[BlobId, int | None], trio.Event] = {}

    def __len__(self) -> int:
        """How many receipts are remembered."""
        return len(self._signed)

    def signed(self, call: Call, run: UnitRun, receipt: Receipt, envelope: bytes) -> None:
        """Remember a receipt of the class exact that was just signed for another peer."""
        if receipt.numeric_class != "exact" or receipt.requester == self._house.peer_id:
            return
        size_bytes = sum(map(len, run.inputs.values()))
        small = size_bytes <= SMALL_BYTES
        whole = [t for t in run.inputs.values() if small and not isinstance(t, InFile)]
        tensors = {blob_id_of(tensor): bytes(tensor) for tensor in whole}
        stages = getattr(run.outcome, "stages", ())
        until = time.time() + KEPT_S
        given = Given(envelope, call.time_limit_s, call.memory_bytes, stages, until)
        self._remember(given, receipt, tensors, KEPT_S, self._row)
        self._unwritten.append(given)
        self._forget()

    async def load(self) -> None:
        """Remember what is written down.

        Raises:
            StoreError: It cannot be read.
        """
        now = time.time()
        for row, receipts in await self._house.journal.given_receipts():
            self._row = row + 1
            for given in receipts:
                left_s = min(KEPT_S, given.until - now)  # the clock may have been set
                try:
                    receipt = open_receipt(given.receipt)
                except VerificationError as error:
                    log.warning("a receipt cannot be answered for", why=error.message)
                    continue
                if left_s > 0:
                    self._remember(given, receipt, {}, left_s, row)
        self._forget()

    async def write(self) -> None:
        """Write down what was signed since; what there is no room for is tried again."""
        self._forget()
        if not self._unwritten:
            return
        row, given = self._row, [*self._unwritten]
        self._unwritten.clear()
        self._row += 1
        oldest = next((each.row for each in self._signed.values()), row)
        try:
            await self._house.journal.save_given_receipts(row, given, oldest)
        except StoreError as error:
            log.warning("receipts are not written down", why=error.message)
            self._unwritten.extendleft(reversed(given[len(self._unwritten) :]))

    async def run(self) -> None:
        """Write once a second, until cancelled."""
        while True:
            await trio.sleep(WRITE_INTERVAL_S)
            await self.write()

    def _remember(
        self,
        given: Given,
        receipt: Receipt,
        tensors: Mapping[BlobId, bytes],
        left_s: float,
        row: int,
    ) -> None:
        size_bytes = sum(map(len, (*tensors.values(), *given.stages)))
        self._signed[statement_id(given.receipt)] = _Signed(
            requester=PeerId(receipt.requester),
            receipt=receipt,
            tensors=tensors,
            # As long as the accuser waits: a unit that was just in time, and all of it hashed.
            limits=UnitLimits(
                TRACE_GRACE_S + TRACE_FACTOR * given.time_limit_s,
                given.memory_bytes,
                given.memory_bytes,
            ),
            stages=given.stages,
            until_s=trio.current_time() + left_s,
            size_bytes=size_bytes,
            row=row,
        )
        self._bytes += size_bytes

    async def answer(self, peer: PeerId, question: Question) -> Answer:
        """Answer one question of a dispute.

        Raises:
            RemoteProtocolError: ``no_such_receipt``, or as `Defender.receive`.
            ProgramError, ComputeError, NetworkError, StoreError: The unit cannot be run
                again here.
        """
        self._forget()
        receipt_id = BlobId(question.receipt)
        signed = self._signed.get(receipt_id)
        if signed is None or signed.requester != peer:
            raise RemoteProtocolError(
                "no such receipt of yours is remembered here", code="no_such_receipt"
            )
        while True:
            answer = self._defender(receipt_id, signed).receive(peer, question)
            if not isinstance(answer, MakeTrace):
                return answer
            await self._make(receipt_id, signed, answer.stage)

    @staticmethod
    def _defender(receipt_id: BlobId, signed: _Signed) -> Defender:
        """Who answers for a receipt: anew where others' traces have taken its room."""
        if signed.defender is None:
            signed.defender = Defender(receipt_id, signed.requester, signed.stages)
        return signed.defender

    async def _make(self, receipt_id: BlobId, signed: _Signed, stage: int | None) -> None:
        """Make a trace, once for all who ask for it meanwhile."""
        key = (receipt_id, stage)
        if (making := self._making.get(key)) is not None:
            await making.wait()
            return
        self._making[key] = trio.Event()
        try:
            async with self._tracing:
                traced = await self._trace(receipt_id, signed, stage)
            root = TraceRoot(
                protocol=OWN,
                receipt=receipt_id,
                stage=stage,
                root=root_over(traced.leaves),
                leaves=len(traced.leaves),
                provider=self._house.peer_id,
            )
            envelope = self._house.identity.sign(Statement.TRACE_ROOT, encode(root))
            self._defender(receipt_id, signed).traced(stage, traced.leaves, envelope)
            signed.traced_bytes += sum(map(len, traced.leaves))
            self._forget_traces(receipt_id)
        finally:
            self._making.pop(key).set()

    async def _trace(self, receipt_id: BlobId, signed: _Signed, stage: int | None) -> Traced:
        house, peer, name = self._house, signed.requester, f"defence/{receipt_id}"
        program = BlobId(signed.receipt.program)
        fetch = partial(hold, house, peer, pin_by=name)
        limit_bytes = signed.limits.memory_bytes
        try:
            await fetch(program, limit_bytes=limit_bytes)
            blob_ids = [program, *program_blobs(await manifest_of(house.store, program))]
            for blob_id in blob_ids:
                await fetch(blob_id, limit_bytes=limit_bytes)
            inputs: dict[str, bytes] = {}
            for port, text in signed.receipt.inputs:
                blob_id = BlobId(text)
                if blob_id not in signed.tensors:
                    await fetch(blob_id, limit_bytes=limit_bytes)
                inputs[port] = signed.tensors.get(blob_id) or await house.store.get_bytes(
                    blob_id
                )

            async def blobs() -> dict[BlobId, bytes]:
                return {each: await house.store.get_bytes(each) for each in blob_ids}

            log.info("a receipt is disputed", requester=peer, unit=signed.receipt.unit)
            while True:
                try:
                    return await house.worker.trace(
                        peer, program, blobs, inputs, signed.limits, stage, RANK, PATIENCE_S
                    )
                except ComputeError as error:
                    if error.code != "no_executor" or not house.terms().starting:
                        raise
                await trio.sleep(START_LOOK_S)  # its kernels are compiled at each start
        finally:
            house.store.unpin(name)

    def _forget(self) -> None:
        now_s = trio.current_time()
        while self._signed:
            oldest = next(iter(self._signed.values()))
            full = len(self._signed) > KEPT_LIMIT or self._bytes > KEPT_BYTES
            if not full and oldest.until_s > now_s:
                return
            self._signed.popitem(last=False)
            self._bytes -= oldest.size_bytes

    def _forget_traces(self, newest: BlobId) -> None:
        """Let the traces of older disputes go, where those that are held are too many."""
        held = [
            (each, signed)
            for each, signed in self._signed.items()
            if signed.traced_bytes and each != newest
        ]
        total = sum(signed.traced_bytes for _, signed in held)
        while held and (len(held) >= TRACED_LIMIT or total > TRACED_BYTES):
            _, oldest = held.pop(0)
            total -= oldest.traced_bytes
            oldest.defender, oldest.traced_bytes = None, 0


@asynccontextmanager
async def open_defence(defence: Defence) -> AsyncIterator[Defence]:
    """Have receipts remembered, and written down for as long as the block runs."""
    await defence.load()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(defence.run)
        try:
            yield defence
        finally:
            with trio.move_on_after(LAST_WRITE_LIMIT_S, shield=True):
                await defence.write()
            nursery.cancel_scope.cancel()
