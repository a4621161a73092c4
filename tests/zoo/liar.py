"""``shoal`` for a node that lies.

python -P liar.py KIND up --home=HOME …

A real daemon in which the steps of the data path that a kind lies at are replaced. Its own
user it serves as it should. Accomplices have their homes in one folder, and find there what
the others of their ring said.
"""

import importlib
import secrets
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import lies
import msgspec
import structlog
import trio
from kinds import PLAYED, Asked, InDispute, Lie

from shoal.compute.accusing import unit_proof
from shoal.compute.device_worker import Worker
from shoal.compute.exact.leaves import decode_operator_leaf, leaf_bytes
from shoal.compute.frames import UnitLimits
from shoal.compute.unit_runs import Execution
from shoal.crypto.content import BlobId, blob_id_of
from shoal.crypto.errors import ShoalError
from shoal.node import daemon, pipeline
from shoal.node.acknowledging import Acknowledging
from shoal.node.blob_transfer import BlobServer
from shoal.node.dispatch import Dispatch
from shoal.node.house import manifest_of, program_blobs
from shoal.node.provider import Provider
from shoal.node.trials import charge_of
from shoal.node.unit_messages import small_inputs
from shoal.protocol.blob_messages import WhyNot
from shoal.protocol.checking_messages import LeafWanted, NodesWanted, TraceWanted
from shoal.protocol.codec import encode
from shoal.protocol.messages import Problem
from shoal.protocol.negotiation import Answer
from shoal.protocol.negotiation_messages import UnitResult
from shoal.protocol.verification import fraud_proof
from shoal.protocol.verification.fraud_proof import Outcome, Verdict

log = structlog.get_logger("shoal.zoo")


class Ring:
    """What accomplices told each other: a folder with the outputs of each work."""

    def __init__(self, place):
        self._place = place

    def told(self, work):
        """The outputs that one of them gave for this work, or None."""
        folder = self._place / work
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        return {file.name: file.read_bytes() for file in files} or None

    def tell(self, work, outputs):
        """Tell the others, all at once."""
        unfinished = self._place / secrets.token_hex(8)
        unfinished.mkdir(parents=True)
        for name, blob in outputs.items():
            (unfinished / name).write_bytes(blob)
        try:
            unfinished.rename(self._place / work)
        except OSError:
            log.info("an accomplice was quicker", work=work)


class Liar:
    """A daemon's steps, with a kind's decisions in them."""

    def __init__(self, kind, ring):
        self.kind = kind
        self.ring = ring
        self.number = 0
        self.before = {}
        """The outputs of the last unit, by program."""
        self.bent = {}
        """Ids of the true outputs, and of what it gave in their place."""
        self.second = {}
        """Answers to those who ask again, by call and unit."""
        self.write, self.take_outputs = pipeline.write_receipt, pipeline.take_outputs
        self.units, self.answer, self.trace = Provider._units, Dispatch.answer, Worker.trace

    def install(self):
        """Replace what an honest daemon does."""
        liar = self

        async def units(provider, conversation, effects):
            return await liar.units(provider, conversation, liar.otherwise(effects))

        async def answer(dispatch, peer, body):
            return liar.refusal(body) or await liar.answer(dispatch, peer, body)

        async def trace(worker, *arguments, **named):
            traced = await liar.trace(worker, *arguments, **named)
            return liar.bend(traced)

        async def believe(_worker, _memory_bytes, proof, _blobs, **_):
            accused = charge_of(proof).accused
            return Verdict(Outcome.CONVICTED, accused, "it is a bad node")

        pipeline.write_receipt = self.write_falsely
        if self.kind.accuses(0):
            daemon.judged_by = believe
            pipeline.take_outputs = self.accuse_too
        Provider._units, Dispatch.answer = units, answer
        if self.kind.answers_dispute() is InDispute.PATCHED:
            Worker.trace = trace
        if not self.kind.serves_blobs():
            BlobServer._look_up = self.refuse_blob
        if not self.kind.acknowledges():
            for name in ("owe", "asked_for"):
                getattr(Acknowledging, name)  # a step that is gone would be one it is honest at
                setattr(Acknowledging, name, lambda *_: None)

    def otherwise(self, effects):
        """What is answered from memory, said otherwise than the first time."""
        return [
            Answer(self.contradiction(effect.message))
            if isinstance(effect, Answer) and isinstance(effect.message, UnitResult)
            else effect
            for effect in effects
        ]

    def contradiction(self, result):
        """The other answer to a unit, where it has one."""
        second = self.second.get((result.call, result.unit))
        if second is not None:
            log.info("said otherwise", kind=self.kind.name, unit=result.unit)
        return second or result

    def refusal(self, body):
        """What somebody is told who disputes a receipt, where it says nothing of its work."""
        disputed = isinstance(body, TraceWanted | NodesWanted | LeafWanted)
        if disputed and self.kind.answers_dispute() is InDispute.SILENT:
            return Problem(code="no_trace", message="there is no trace of that any more")
        return None

    def bend(self, traced):
        """A trace that ends in what the receipt says: ids of true outputs are replaced."""

        def bent(ids):
            return tuple(self.bent.get(each, each) for each in ids)

        leaves = []
        for data in traced.leaves:
            leaf = decode_operator_leaf(data)
            changed = msgspec.structs.replace(
                leaf, inputs=bent(leaf.inputs), outputs=bent(leaf.outputs)
            )
            leaves.append(leaf_bytes(changed))
        return replace(traced, leaves=tuple(leaves))

    async def write_falsely(self, house, side, request, run, room=0):
        """Step 5: write down what is said to have come of a unit."""
        outcome = run.outcome
        if side.requester == house.peer_id or not isinstance(outcome, Execution):
            return await self.write(house, side, request, run, room)
        work = blob_id_of(encode((side.award.program, request.inputs)))
        told = self.ring.told(work) if self.kind.ring else None
        reply = self.kind.outputs(Asked(self.number, copied=told is not None))
        self.number += 1
        outputs = await self.made(house, side, run, reply.lie, told)
        if reply.lie is Lie.ERROR:
            run.outcome = lies.FALSE_NAN
        else:
            run.outcome = replace(outcome, outputs=outputs)
        if reply.tells:
            self.ring.tell(work, outputs)
        for name, true in outcome.outputs.items():
            self.bent[blob_id_of(true)] = blob_id_of(outputs[name])
        self.before[side.award.program] = outcome.outputs
        if reply.wait:
            ran_s = time.time() - run.started_at_ms / 1e3
            await trio.sleep(max(0.0, reply.wait * side.call.time_limit_s - ran_s))
        result = await self.write(house, side, request, run, room)
        if reply.receipts > 1:
            other = lies.with_one_bit_turned(outcome.outputs, self.number)
            run.outcome = outcome if reply.lie.is_wrong else replace(outcome, outputs=other)
            second = await self.write(house, side, request, run, room)
            self.second[request.call, request.unit], *_ = pipeline.sign(house, side, [second])
        log.info("signed", kind=self.kind.name, lie=reply.lie, unit=request.unit)
        if not self.kind.serves_blobs():
            result = replace(result, blobs=())
        if self.kind.invents(self.number):
            result = invented(result)
        return result

    async def made(self, house, side, run, lie, told):
        """The outputs that a lie gives."""
        outputs = dict(run.outcome.outputs)
        match lie:
            case Lie.RANDOM:
                return lies.drawn(outputs, self.number)
            case Lie.EARLIER:
                before = self.before.get(side.award.program)
                same = before is not None and lies.spec_of(before) == lies.spec_of(outputs)
                return dict(before) if same else lies.drawn(outputs, self.number)
            case Lie.ONE_BIT:
                return lies.with_one_bit_turned(outputs, self.number)
            case Lie.COPIED:
                return told
            case Lie.OTHER_INPUT:
                inputs = lies.reversed_inputs(run.inputs)
                return await self.run_other(house, side, inputs, lambda *same: same)
            case Lie.CHEAPER:
                return await self.run_other(house, side, run.inputs, lies.in_x8)
            case Lie.SKIPPED:
                return await self.run_other(house, side, run.inputs, lies.without_layers)
        return outputs

    async def run_other(self, house, side, inputs, change):
        """Run a changed program, or other inputs, in the worker."""
        program = BlobId(side.award.program)
        manifest = await manifest_of(house.store, program)
        ids = [program, *program_blobs(manifest)]
        held = {blob_id: await house.store.get_bytes(blob_id) for blob_id in ids}
        changed = change(manifest, held)
        if changed != (manifest, held):
            program, held = changed

        async def blobs():
            return held

        limits = UnitLimits(
            time_s=side.call.time_limit_s,
            memory_bytes=side.call.memory_bytes,
            output_bytes=side.call.memory_bytes,
        )
        ran = await house.worker.run(side.requester, program, blobs, inputs, limits)
        return dict(ran.outputs)

    async def accuse_too(self, house, need, side, unit, result, receipt):
        """Step 7 of its own jobs: take a result, and accuse whoever gave it."""
        if side.provider != house.peer_id:
            trio.lowlevel.spawn_system_task(self.accuse, house, need, side, unit, result)
        return await self.take_outputs(house, need, side, unit, result, receipt)

    async def accuse(self, house, need, side, unit, result):
        """Tell everybody that a good result is false."""
        try:
            small = await small_inputs(house, [unit])
            ids = [need.spec.program, *program_blobs(need.manifest), *unit.inputs.values()]
            blobs = {i: small.get(i) or await house.store.get_bytes(i) for i in ids}
            proof = fraud_proof.encode(unit_proof(side.award_bytes, result.receipt))
            await house.convictions.convict(proof, blobs)
            log.info("accused", peer=side.provider)
        except ShoalError as error:
            log.info("could not accuse", peer=side.provider, why=error.message)

    async def refuse_blob(self, *_):
        """Have no blob for anybody."""
        return WhyNot.NOT_HELD


def invented(written):
    """The same receipt under an award that nobody gave."""
    award = blob_id_of(secrets.token_bytes(32))
    changed = msgspec.structs.replace(written.receipt, award=award)
    return replace(written, receipt=changed)


def main():
    """Run the command with the kind that comes before it."""
    kind, *command = sys.argv[1:]
    home = next(word.partition("=")[2] for word in command if word.startswith("--home="))
    Liar(PLAYED[kind](), Ring(Path(home).parent / "ring")).install()
    sys.argv[1:] = command
    return importlib.import_module("shoal.node.cli").main()


if __name__ == "__main__":
    sys.exit(main())
