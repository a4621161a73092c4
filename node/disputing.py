"""Disputes: from a receipt that is not right to a proof that convicts whoever signed it.

Part of *verify*, after *deliver*: the unit was delivered with the right result before, so
nobody waits for this. Evidence comes in (`Disputes.open`), is written down, and is worked
off in the background, few at a time: this node traces the unit itself, asks the accused by
`protocol.verification.dispute`, makes a fraud proof of the end, and hands it to
`node.convictions`, which has it judged first. Where the accused gives nothing, or nothing
that helps, the proof is of the whole unit: withholding saves nobody, and costs standing.

A restart goes on with what is written down: the evidence, and how far the search was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import msgspec
import structlog
import trio

from shoal.compute import accusing
from shoal.compute.exact.leaves import decode_operator_leaf
from shoal.crypto.content import BlobId
from shoal.crypto.errors import ShoalError
from shoal.crypto.peer_id import PeerId
from shoal.node.errors import JobError
from shoal.node.evidence import (
    RUN_FACTOR,
    RUN_GRACE_S,
    Evidence,
    Exhibit,
    exhibit,
    read_evidence,
)
from shoal.protocol.checking_messages import LeafGiven, NodesGiven, TraceGiven
from shoal.protocol.errors import RemoteProtocolError, VersionError
from shoal.protocol.messages import Problem
from shoal.protocol.statements import Receipt, open_receipt, statement_id
from shoal.protocol.verification import fraud_proof
from shoal.protocol.verification.dispute import Ask, Challenger, Compute, Ending, Finding
from shoal.protocol.verification.fraud_proof import FraudProof, Outcome

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shoal.node.house import House
    from shoal.node.records import JobId
    from shoal.protocol.verification.dispute import Answer, Question

AT_ONCE: Final = 2
"""Disputes that are worked on at once; each runs the unit, behind all that waits."""

REACH_S: Final = 15.0
PAUSE_S: Final = 2.0
"""Before a question is asked again whose link broke: some of its time is left."""

OF_THE_MOMENT: Final = frozenset(
    {"worker_start", "time_limit", "no_memory", "disk_full", "quota_exceeded"}
)
AGAIN_S: Final = (10.0, 60.0, 600.0, 3600.0)
"""Errors of this machine that say nothing of a proof, as where its owner uses all of it, and
when what ended by one is tried again."""

VERDICTS: Final = frozenset(map(str, Outcome))

log = structlog.get_logger(__name__)


class Disputes:
    """Works off disputes. Made and run by `open_disputes`.

    Args:
        house: The modules.
        memory_bytes: What a run of a disputed unit may use.
        withheld: Told of who gave nothing of what a dispute asked for, and what it did.
    """

    def __init__(
        self,
        house: House,
        memory_bytes: int,
        withheld: Callable[[PeerId, str], None] = lambda _peer, _what: None,
    ) -> None:
        self._house = house
        self._memory_bytes = memory_bytes
        self._withheld = withheld
        self._room = trio.CapacityLimiter(AT_ONCE)
        self._nursery: trio.Nursery | None = None
        self._against: dict[PeerId, trio.Lock] = {}
        """Of each accused one at a time: the first that convicts it spares the others."""
        self.ended: Counter[str] = Counter()
        """How many came to which verdict; ``none``: to no verdict."""
        self._started: set[int] = set()
        """Numbers of those that run: one that is opened while `run` reads would run twice."""

    @property
    def open_now(self) -> int:
        """How many are worked on, or wait for that."""
        return len(self._started)

    async def open(self, evidence: Evidence) -> None:
        """Dispute a receipt, in the background.

        Raises:
            StoreError: It could not be written down.
        """
        number = await self._house.journal.add_dispute(msgspec.msgpack.encode(evidence))
        self._start(number, evidence)

    async def accuse(
        self, award: bytes, receipt: bytes, other: bytes | None, job: JobId, unit: int
    ) -> None:
        """The same, from its parts."""
        await self.open(Evidence(award, receipt, other, job, unit))

    async def run(self, nursery: trio.Nursery) -> None:
        """Go on with what was open when this node ended."""
        self._nursery = nursery
        for number, data in await self._house.journal.open_disputes():
            try:
                evidence = read_evidence(data)
            except ShoalError as error:
                await self._house.journal.close_dispute(number, error.code)
                continue
            self._start(number, evidence)

    def _start(self, number: int, evidence: Evidence) -> None:
        if self._nursery is not None and number not in self._started:  # else `run` will
            self._started.add(number)
            self._nursery.start_soon(self._work_off, number, evidence)

    async def _work_off(self, number: int, evidence: Evidence) -> None:
        try:
            pauses = iter(AGAIN_S)
            while (outcome := await self._outcome(number, evidence)) in OF_THE_MOMENT:
                if (pause_s := next(pauses, None)) is None:
                    break
                await trio.sleep(pause_s)
            await self._house.journal.close_dispute(number, outcome)
            self.ended[outcome if outcome in VERDICTS else "none"] += 1
        except ShoalError as error:  # written down it stays, and a restart tries again
            log.warning("a dispute is put off", number=number, why=error.message)
        except Exception:  # root of a dispute: a bug in one must not end the others
            log.exception("a dispute failed inside this node", number=number)
        finally:
            self._started.discard(number)

    @asynccontextmanager
    async def _turn_against(self, accused: PeerId) -> AsyncIterator[None]:
        """Wait until no other dispute with this peer is worked on."""
        lock = self._against.setdefault(accused, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if lock.statistics().tasks_waiting == 0 and not lock.locked():
                self._against.pop(accused, None)

    async def _outcome(self, number: int, evidence: Evidence) -> str:
        try:
            receipt = open_receipt(evidence.receipt)
            accused = PeerId(receipt.provider)
            async with self._turn_against(accused), self._room:
                if self._house.ban_of(accused) is not None:
                    return "banned"
                outcome = await self._dispute(number, evidence, receipt, accused)
        except ShoalError as error:
            log.warning("a dispute came to nothing", number=number, why=error.message)
            return error.code
        log.info("a dispute has ended", number=number, accused=accused, outcome=outcome)
        return outcome

    async def _dispute(
        self, number: int, evidence: Evidence, receipt: Receipt, accused: PeerId
    ) -> str:
        other = open_receipt(evidence.other) if evidence.other is not None else None
        if other is not None and (other.award, other.provider) == (receipt.award, accused):
            assert evidence.other is not None
            two = accusing.equivocation_proof(evidence.award, evidence.receipt, evidence.other)
            if fraud_proof.contradicted(fraud_proof.examine(two)):
                return await self._convict(evidence, two, {})
            other = None  # as where it calls what it said an error of the moment
        held = await exhibit(self._house, f"dispute/{number}", receipt, self._memory_bytes)
        try:
            proof = await self._trace_proof(number, evidence, held, other)
            if proof is not None:
                outcome = await self._convict(evidence, proof, await self._blobs(held, proof))
                if outcome == Outcome.CONVICTED:
                    return outcome
            whole = accusing.unit_proof(evidence.award, evidence.receipt)
            inputs = await held.read([*dict.fromkeys(held.inputs.values())])
            return await self._convict(evidence, whole, await held.blobs() | inputs)
        finally:
            held.let_go()

    async def _convict(
        self, evidence: Evidence, proof: FraudProof, blobs: dict[BlobId, bytes]
    ) -> str:
        assert self._house.convictions is not None
        verdict = await self._house.convictions.convict(
            fraud_proof.encode(proof), blobs, private=await self._is_private(evidence.job)
        )
        return str(verdict.outcome)

    async def _is_private(self, job_id: JobId) -> bool:
        """Whether proofs about a job are for this node alone; so where it was forgotten."""
        try:
            return (await self._house.journal.spec(job_id)).proofs == "private"
        except JobError:
            return True

    # --- the search -------------------------------------------------------------------

    async def _trace_proof(
        self, number: int, evidence: Evidence, held: Exhibit, other: Receipt | None
    ) -> FraudProof | None:
        """Ask the accused; gives a proof about its trace, or None where there is none."""
        receipt = held.receipt
        started_s = trio.current_time()
        try:
            own = await held.trace()
        except ShoalError as error:  # the unit errs before its first operator, or has no trace
            log.info("a disputed unit has no trace here", number=number, why=error.message)
            return None
        took_s = (receipt.ended_at_ms - receipt.started_at_ms) / 1000
        challenger = Challenger(
            receipt=statement_id(evidence.receipt),
            accused=PeerId(receipt.provider),
            trace=bytes.fromhex(receipt.trace) if receipt.trace is not None else None,
            stages=receipt.stages,
            unit_s=believable_s(took_s, trio.current_time() - started_s),
            own_stages=own.stages,
        )
        if evidence.so_far:
            try:
                challenger.restore(evidence.so_far)
            except ShoalError as error:
                log.warning("a dispute begins anew", number=number, why=error.message)
        finding = await self._search(number, evidence, held, challenger, own.leaves)
        if finding.reason:
            log.info("an accused did not help", peer=receipt.provider, what=finding.reason)
        if finding.ending in {Ending.WITHHELD, Ending.FALSE_ANSWER}:
            self._withheld(PeerId(receipt.provider), finding.reason)
        if other is not None and other.outputs is not None:
            outputs = {name: BlobId(blob_id) for name, blob_id in other.outputs}
        elif finding.ending is Ending.TRACE and receipt.outputs is not None:
            outputs = await held.output_ids()
        else:
            outputs = {}
        return accusing.trace_proof(
            evidence.award, evidence.receipt, challenger, held.manifest, outputs
        )

    async def _search(
        self,
        number: int,
        evidence: Evidence,
        held: Exhibit,
        challenger: Challenger,
        leaves: tuple[bytes, ...],
    ) -> Finding:
        while True:
            match challenger.next():
                case Finding() as finding:
                    return finding
                case Compute(stage=None):
                    challenger.know(leaves)
                case Compute(stage=stage):
                    challenger.know((await held.trace(stage)).leaves)
                case Ask(question=question):
                    await self._ask(challenger, question)
            saved = msgspec.structs.replace(evidence, so_far=challenger.encode())
            await self._house.journal.keep_dispute(number, msgspec.msgpack.encode(saved))

    async def _ask(self, challenger: Challenger, question: Question) -> None:
        """Ask once; where no answer comes the machine says whether to ask again."""
        peer = challenger.accused
        challenger.send(question, trio.current_time())
        deadline = challenger.next_deadline
        assert deadline is not None
        answer: Answer | None = None
        with trio.move_on_at(deadline):
            while answer is None:
                try:
                    with trio.fail_after(REACH_S):
                        await self._house.reach(peer)
                    left_s = max(0.1, deadline - trio.current_time())
                    got = await self._house.control.request(peer, question, left_s)
                except VersionError as error:
                    challenger.abandon(error.message)
                    return
                except RemoteProtocolError as error:  # it says that it gives nothing
                    got = Problem(error.code, error.message)
                except (ShoalError, trio.TooSlowError):
                    await trio.sleep(PAUSE_S)
                    continue
                answer = got if isinstance(got, _ANSWERS) else Problem("unfitting", "")
        if answer is not None:
            challenger.receive(question, answer, trio.current_time())
        else:
            challenger.expire(max(deadline, trio.current_time()))

    # --- what a proof rests on ----------------------------------------------------------

    async def _blobs(self, held: Exhibit, proof: FraudProof) -> dict[BlobId, bytes]:
        """The blobs that a proof about a trace names."""
        blobs = await held.read([held.program, held.manifest.blob_ids[0]])  # its graph
        if proof.kind == "operator":
            index = decode_operator_leaf(proof.leaves[0].leaf).index
            tensors = (await held.tensors_of(index)).blobs
            blobs |= {i: blob for i, blob in tensors.items() if i in proof.blobs}
        return blobs


def believable_s(said_s: float, own_s: float) -> float:
    """How long a unit ran, of which the accused has only its own word.

    Its time to answer goes by that: who says that it computed for a thousand years would
    never have to, and nobody else would be disputed with meanwhile.

    Args:
        said_s: How long by the receipt.
        own_s: How long it took here.
    """
    return max(own_s, min(said_s, RUN_GRACE_S + RUN_FACTOR * own_s))


_ANSWERS = (NodesGiven, TraceGiven, LeafGiven, Problem)


@asynccontextmanager
async def open_disputes(disputes: Disputes) -> AsyncIterator[Disputes]:
    """Work disputes off for as long as the block runs."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disputes.run, nursery)
        yield disputes
        nursery.cancel_scope.cancel()
