"""From evidence to a conviction: a requester's disputes and a provider's defence, joined.

The store and the journal are real; the worker runs in this process, by the reference.
"""

import time
from contextlib import asynccontextmanager, nullcontext
from types import SimpleNamespace

import msgspec
import pytest
import trio
import trio.testing
from ended_disputes import dispute_outcomes
from fraud_samples import (
    ALICE,
    BOB,
    a_receipt,
    an_award,
    erring,
    half_more,
    long,
    lying,
    small,
)
from journal_samples import make_job

from shoal.compute import judging
from shoal.compute.errors import ComputeError
from shoal.compute.exact import tracing
from shoal.compute.exact.leaves import leaf_bytes
from shoal.compute.exact.reference import ReferenceKernels
from shoal.compute.exact.stages import stage_leaves, stages_of
from shoal.compute.exact.tracing import Traceable, trace
from shoal.compute.loading import load
from shoal.compute.tensor import from_blob, to_blob
from shoal.compute.unit_runs import Execution, NodeTensors, Traced, UnitRun
from shoal.crypto.content import blob_id_of
from shoal.crypto.errors import ShoalError
from shoal.node import defending, disputing
from shoal.node.blob_transfer import Rights
from shoal.node.blobs import open_store
from shoal.node.defending import KEPT_S, Defence, open_defence
from shoal.node.disputing import Disputes, open_disputes
from shoal.node.errors import NetworkError, StoreError
from shoal.node.evidence import Evidence, disputes_of
from shoal.node.house import House, note_known
from shoal.node.state import open_state
from shoal.protocol.checking_messages import NodesWanted, TraceGiven, TraceWanted
from shoal.protocol.messages import Problem
from shoal.protocol.negotiation_messages import Call
from shoal.protocol.statements import open_receipt, statement_id
from shoal.protocol.verification import fraud_proof
from shoal.protocol.verification.dispute import TRACE_FACTOR, TRACE_GRACE_S

MEMORY_BYTES = 1 << 30
TIME_LIMIT_S = 60.0
JOB = "0" * 27


class InProcess:
    """A worker of the class exact, in this process; a liar's lies while it runs."""

    def __init__(self, lies=nullcontext):
        self.lies, self.traces, self.limits = lies, 0, []

    async def _program(self, program, fetch, inputs):
        loaded = load(program, await fetch())
        return Traceable(loaded), {name: from_blob(blob) for name, blob in inputs.items()}

    async def trace(self, _requester, program, fetch, inputs, limits, stage, *_place):
        self.traces += 1
        self.limits.append(limits)
        traceable, arrays = await self._program(program, fetch, inputs)
        stages = stages_of(traceable.graph)
        span = None if stage is None else stages.span(stage)
        with self.lies():
            leaves = trace(traceable, arrays, ReferenceKernels(), span)
        whole = stage_leaves(stages, leaves, traceable.graph) if stage is None else []
        return Traced(tuple(map(leaf_bytes, leaves)), tuple(map(leaf_bytes, whole)))

    async def tensors_of(self, _requester, program, fetch, inputs, _limits, index, *_place):
        traceable, arrays = await self._program(program, fetch, inputs)
        found = tracing.tensors_of(traceable, arrays, ReferenceKernels(), index)
        return NodeTensors(leaf_bytes(found.leaf), found.blobs)

    async def run(self, _requester, program, fetch, inputs, _limits, *_place):
        traceable, arrays = await self._program(program, fetch, inputs)
        made = {}
        leaves = trace(traceable, arrays, ReferenceKernels())
        for leaf in leaves:
            found = tracing.tensors_of(traceable, arrays, ReferenceKernels(), leaf.index)
            node = traceable.graph.nodes[leaf.index]
            made |= {n: found.blobs[i] for n, i in zip(node.outputs, leaf.outputs, strict=True)}
        return Execution({name: made[name] for name in traceable.graph.outputs}, 0.1, "")


class Convictions:
    """Judges at once, in this process."""

    def __init__(self):
        self.verdicts, self.proofs, self.banned = [], [], {}

    def is_banned(self, peer):
        return self.banned.get(peer)

    async def convict(self, proof, blobs, *, private=False):
        verdict = judging.judge(proof, blobs)
        self.verdicts.append(verdict)
        self.proofs.append((fraud_proof.decode(proof), blobs))
        self.private = private
        return verdict


class Link:
    """What the requester asks goes to the provider's defence, as long as it is there."""

    def __init__(self):
        self.defence, self.asked, self.lose = None, 0, set()

    async def request(self, _peer, question, _timeout_s):
        self.asked += 1
        if self.asked in self.lose or self.defence is None:
            raise NetworkError("the link is gone", code="link_lost")
        try:
            return await self.defence.answer(ALICE.peer_id, question)
        except ShoalError as error:
            return Problem(code=error.code, message=error.message[:256])


async def reach(_peer):
    pass


@asynccontextmanager
async def a_house(home, key, worker, control=None):
    async with (
        open_state(home / "state.sqlite") as journal,
        open_store(home / "blobs", 1 << 30) as store,
    ):
        yield House(
            identity=key,
            network=None,
            control=control,
            store=store,
            rights=Rights(),
            journal=journal,
            worker=worker,
            reach=reach,
            terms=None,
            convictions=Convictions(),
        )


class Scene:
    """A requester and a provider, a unit, and the receipt that the provider gave."""

    def __init__(self, house, provider, link, sample, lies):
        self.house, self.provider, self.link, self.sample = house, provider, link, sample
        self.lies = lies
        self.withheld = []

    async def signed(self, said=None, *, stages=False):
        sample = self.sample
        for house in (self.house, self.provider):
            for blob in sample.blobs.values():
                await house.store.put_bytes(blob)
            note_known(house, ALICE.peer_id, sample.blobs)
            note_known(house, BOB.peer_id, sample.blobs)
        with self.lies():
            leaves = sample.leaves()
        said = sample.outputs(leaves) if said is None else said
        committed = sample.stages(leaves) if stages else ()
        self.award = an_award(sample)
        self.receipt = a_receipt(sample, self.award, said, stages=committed)
        self.defence = self.link.defence = Defence(self.provider)
        self.stages, self.receipts = committed, []
        self.give(self.receipt)

    def again(self):
        """Another receipt of the provider's, for the same work."""
        self.give(a_receipt(self.sample, self.award, {}, unit=f"{JOB}/1"))

    def give(self, receipt):
        run = UnitRun({name: to_blob(array) for name, array in self.sample.inputs.items()})
        run.outcome = Execution({}, 1.0, "", self.stages)
        call = Call(
            call="ab" * 16,
            program=self.sample.program_id,
            numeric_class="exact",
            precision="x20",
            units=1,
            input_bytes=0,
            program_bytes=0,
            time_limit_s=TIME_LIMIT_S,
            memory_bytes=MEMORY_BYTES,
        )
        self.defence.signed(call, run, open_receipt(receipt), receipt)
        self.receipts.append(receipt)

    @property
    def right(self):
        return a_receipt(
            self.sample, self.award, self.sample.outputs(self.sample.leaves()), provider=BOB
        )

    async def disputed(self, other=None):
        evidence = Evidence(self.award, self.receipt, other, JOB, 0)
        disputes = Disputes(
            self.house, MEMORY_BYTES, lambda peer, what: self.withheld.append((peer, what))
        )
        async with open_disputes(disputes):
            await disputes.open(evidence)
            return await self.ended(disputes)

    async def ended(self, disputes):
        with trio.fail_after(60.0):
            while disputes.open_now or await self.house.journal.open_disputes():  # noqa: ASYNC110
                await trio.sleep(0.01)
        outcomes = await dispute_outcomes(self.house.journal)
        return outcomes[max(outcomes)]

    @property
    def proof(self):
        return self.house.convictions.proofs[-1][0]


@asynccontextmanager
async def a_scene(tmp_path, sample, lies=nullcontext):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    link = Link()
    async with (
        a_house(tmp_path / "one", ALICE, InProcess(), link) as house,
        a_house(tmp_path / "two", BOB, InProcess(lies)) as provider,
    ):
        yield Scene(house, provider, link, sample, lies)


def lie(at, change=half_more, error=None):
    return lambda: lying(at, change, error)


@pytest.mark.parametrize(
    ("sample", "lies", "stages", "kind"),
    [
        (small, lie("biased"), False, "operator"),
        (small, lie("p", None, "nan"), False, "operator"),
        (long, lie("v80"), True, "operator"),
    ],
    ids=["a short unit", "a false error", "a long unit"],
)
async def test_a_liar_that_shows_its_trace_is_convicted_by_one_operator(
    tmp_path, sample, lies, stages, kind
):
    async with a_scene(tmp_path, sample(), lies) as scene:
        await scene.signed(stages=stages)
        assert await scene.disputed() == "convicted"
        assert scene.proof.kind == kind
        assert scene.withheld == []
        assert len(fraud_proof.encode(scene.proof)) < 10_000


async def test_a_right_trace_beside_a_false_receipt_is_evidence_by_itself(tmp_path):
    async with a_scene(tmp_path, small()) as scene:
        await scene.signed({name: blob_id_of(b"made up") for name in ("y", "z")})
        assert await scene.disputed() == "convicted"
        assert scene.proof.kind == "wiring"


async def test_who_withholds_is_convicted_by_the_whole_unit_and_noted(tmp_path):
    async with a_scene(tmp_path, small(), lie("biased")) as scene:
        await scene.signed()
        scene.provider.worker.trace = refuses
        assert await scene.disputed() == "convicted"
        assert scene.proof.kind == "unit"
        assert [peer for peer, _ in scene.withheld] == [BOB.peer_id]


async def refuses(*_args):
    raise ComputeError("it will not", code="no")


async def test_who_says_that_its_unit_took_ages_has_no_ages_to_answer(tmp_path, autojump_clock):
    async with a_scene(tmp_path, small(), lie("biased")) as scene:
        await scene.signed()
        said = open_receipt(scene.receipt).outputs
        scene.receipt = a_receipt(scene.sample, scene.award, dict(said), ended_at_ms=1 << 48)
        scene.link.request = hangs
        evidence = Evidence(scene.award, scene.receipt, None, JOB, 0)
        autojump_clock.autojump_threshold = 0.2  # the worker that judges is a real process
        async with open_disputes(disputes := Disputes(scene.house, MEMORY_BYTES)):
            await disputes.open(evidence)
            with trio.fail_after(24 * 3600.0):
                while disputes.open_now:  # noqa: ASYNC110
                    await trio.sleep(600.0)
        assert set((await dispute_outcomes(scene.house.journal)).values()) == {"convicted"}


async def hangs(*_args):
    await trio.sleep_forever()


async def test_an_honest_provider_is_acquitted(tmp_path):
    for number, sample in enumerate((small(), erring())):
        home = tmp_path / str(number)
        home.mkdir()
        async with a_scene(home, sample) as scene:
            await scene.signed()
            assert await scene.disputed() == "acquitted"


async def test_two_receipts_under_one_award_convict_without_a_question(tmp_path):
    async with a_scene(tmp_path, small(), lie("biased")) as scene:
        await scene.signed()
        assert await scene.disputed(scene.right) == "convicted"
        assert scene.proof.kind == "equivocation"
        assert scene.link.asked == 0


@pytest.mark.parametrize("change", [{"said": "time_limit"}, {"exact_spec": "99"}], ids=str)
async def test_who_says_another_thing_that_contradicts_nothing_is_convicted_by_the_first(
    tmp_path, change
):
    async with a_scene(tmp_path, small(), lie("biased")) as scene:
        await scene.signed()
        right = dict(open_receipt(scene.right).outputs)
        other = a_receipt(scene.sample, scene.award, **({"said": right} | change))
        assert await scene.disputed(other) == "convicted"
        assert scene.proof.kind == "operator"


async def test_of_several_disputes_with_one_peer_the_first_that_convicts_spares_the_others(
    tmp_path,
):
    async with a_scene(tmp_path, small(), lie("biased")) as scene:
        await scene.signed()
        convictions = scene.house.convictions
        convict = convictions.convict

        async def convict_and_ban(proof, blobs, **how):
            await trio.sleep(0.05)
            verdict = await convict(proof, blobs, **how)
            convictions.banned[BOB.peer_id] = "a ban"
            return verdict

        convictions.convict = convict_and_ban
        evidence = Evidence(scene.award, scene.receipt, None, JOB, 0)
        async with open_disputes(disputes := Disputes(scene.house, MEMORY_BYTES)):
            for _ in range(3):
                await disputes.open(evidence)
            await scene.ended(disputes)
        outcomes = await dispute_outcomes(scene.house.journal)
        assert sorted(outcomes.values()) == ["banned", "banned", "convicted"]
        assert scene.house.worker.traces == 1
        assert len(convictions.proofs) == 1


async def test_a_trace_may_take_longer_than_its_unit_and_as_long_as_it_is_waited_for(tmp_path):
    async with a_scene(tmp_path, small(), lie("biased")) as scene:
        await scene.signed()
        assert await scene.disputed() == "convicted"
        (limits,) = scene.provider.worker.limits
        assert limits.time_s == TRACE_GRACE_S + TRACE_FACTOR * TIME_LIMIT_S
        assert limits.memory_bytes == MEMORY_BYTES


@pytest.mark.parametrize(("failures", "outcome"), [(2, "convicted"), (9, "worker_start")])
async def test_what_this_machine_is_too_busy_to_judge_is_judged_later(
    tmp_path, monkeypatch, failures, outcome
):
    monkeypatch.setattr(disputing, "AGAIN_S", (0.01, 0.01, 0.01))
    async with a_scene(tmp_path, small(), lie("biased")) as scene:
        await scene.signed()
        convict, failed = scene.house.convictions.convict, []

        async def too_busy(*proof, **kept):
            if len(failed) < failures:
                failed.append(proof)
                if len(failed) == 1:
                    raise StoreError("there is no room", code="quota_exceeded")
                raise ComputeError("the worker does not start", code="worker_start")
            return await convict(*proof, **kept)

        scene.house.convictions.convict = too_busy
        assert await scene.disputed() == outcome
        assert len(failed) == min(failures, 4)


async def test_broken_links_are_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr(disputing, "PAUSE_S", 0.01)
    async with a_scene(tmp_path, small(), lie("biased")) as scene:
        await scene.signed()
        scene.link.lose = {1, 3, 4}
        assert await scene.disputed() == "convicted"
        assert scene.proof.kind == "operator"


async def test_a_restart_goes_on_where_the_dispute_was(tmp_path):
    async with a_scene(tmp_path, long(), lie("v80")) as scene:
        await scene.signed(stages=True)
        stop = trio.Event()
        asked, answer = [], scene.defence.answer

        async def interrupted(peer, question):
            asked.append(question)
            if len(asked) == 3:
                stop.set()
                await trio.sleep_forever()
            return await answer(peer, question)

        scene.defence.answer = interrupted
        evidence = Evidence(scene.award, scene.receipt, None, JOB, 0)
        async with open_disputes(disputes := Disputes(scene.house, MEMORY_BYTES)):
            await disputes.open(evidence)
            await stop.wait()
        scene.defence.answer = answer
        asked.clear()

        async def noted(peer, question):
            asked.append(question)
            return await answer(peer, question)

        scene.defence.answer = noted
        async with open_disputes(disputes := Disputes(scene.house, MEMORY_BYTES)):
            await trio.testing.wait_all_tasks_blocked()
            assert await scene.ended(disputes) == "convicted"
        assert asked
        assert not any(isinstance(q, NodesWanted) and q.stage is None for q in asked)


async def test_what_is_needed_and_gone_ends_the_dispute(tmp_path):
    async with a_scene(tmp_path, small(), lie("biased")) as scene:
        await scene.signed()
        scene.house.store.holds = lambda _blob_id: False
        assert await scene.disputed() == "blob_missing"


async def test_a_receipt_is_answered_for_to_its_requester_alone_and_for_a_while(
    tmp_path, autojump_clock
):
    async with a_scene(tmp_path, small()) as scene:
        await scene.signed()
        question = TraceWanted(receipt=statement_id(scene.receipt), stage=None)
        with pytest.raises(ShoalError, match="no such receipt"):
            await scene.defence.answer(BOB.peer_id, question)
        async with trio.open_nursery() as nursery:  # both wait for one run
            for _ in range(2):
                nursery.start_soon(scene.defence.answer, ALICE.peer_id, question)
        assert scene.provider.worker.traces == 1
        await trio.sleep(KEPT_S + 1)
        with pytest.raises(ShoalError, match="no such receipt"):
            await scene.defence.answer(ALICE.peer_id, question)
        assert len(scene.defence) == 0


async def test_traces_of_others_take_no_answer_from_whom_one_is_being_made_for(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(defending, "TRACED_LIMIT", 1)
    async with a_scene(tmp_path, long()) as scene:
        await scene.signed(stages=True)
        scene.again()
        first, other = (statement_id(receipt) for receipt in scene.receipts)
        worker, go, given = scene.provider.worker, trio.Event(), {}

        async def asks(receipt, stage):
            wanted = TraceWanted(receipt=receipt, stage=stage)
            given[receipt, stage] = await scene.defence.answer(ALICE.peer_id, wanted)

        await asks(first, 0)
        trace = worker.trace

        async def slow(*arguments):
            await go.wait()
            return await trace(*arguments)

        worker.trace = slow
        async with trio.open_nursery() as nursery:
            for receipt, stage in ((other, 0), (first, 1), (first, 1)):
                nursery.start_soon(asks, receipt, stage)
                await trio.testing.wait_all_tasks_blocked()
            go.set()
        assert {type(answer) for answer in given.values()} == {TraceGiven}
        assert given.keys() == {(first, 0), (other, 0), (first, 1)}


@asynccontextmanager
async def restarted(scene):
    """The provider after a restart: what was in memory is gone."""
    async with open_defence(scene.defence):
        pass
    scene.defence = scene.link.defence = Defence(scene.provider)
    async with open_defence(scene.defence):
        yield


@pytest.mark.parametrize(
    ("sample", "lies", "stages"),
    [(small, lie("biased"), False), (long, lie("v80"), True)],
    ids=["a short unit", "a long unit"],
)
async def test_a_provider_that_restarted_answers_for_what_it_signed_before(
    tmp_path, sample, lies, stages
):
    async with a_scene(tmp_path, sample(), lies) as scene:
        await scene.signed(stages=stages)
        async with restarted(scene):
            assert len(scene.defence) == 1
            assert await scene.disputed() == "convicted"
        assert scene.proof.kind == "operator"
        assert scene.withheld == []


async def test_an_honest_provider_that_restarted_is_acquitted_and_has_withheld_nothing(
    tmp_path,
):
    async with a_scene(tmp_path, small()) as scene:
        await scene.signed()
        async with restarted(scene):
            assert await scene.disputed() == "acquitted"
        assert scene.withheld == []


async def test_who_has_no_kernels_yet_after_its_start_answers_when_it_has(
    tmp_path, autojump_clock
):
    async with a_scene(tmp_path, small()) as scene:
        await scene.signed()
        worker, terms = scene.provider.worker, SimpleNamespace(starting=True)
        object.__setattr__(scene.provider, "terms", lambda: terms)
        trace, worker.trace = worker.trace, compiles
        question = TraceWanted(receipt=statement_id(scene.receipt), stage=None)
        async with trio.open_nursery() as nursery:
            answered = trio.Event()

            async def ask():
                await scene.defence.answer(ALICE.peer_id, question)
                answered.set()

            nursery.start_soon(ask)
            await trio.sleep(30.0)
            assert not answered.is_set()
            worker.trace = trace
            with trio.fail_after(2.0):
                await answered.wait()
        terms.starting = False
        worker.trace = compiles
        scene.again()
        other = TraceWanted(receipt=statement_id(scene.receipts[-1]), stage=None)
        with pytest.raises(ComputeError):
            await scene.defence.answer(ALICE.peer_id, other)


async def compiles(*_args):
    raise ComputeError("no executor of the class exact works here", code="no_executor")


async def test_receipts_go_from_the_journal_with_their_time(tmp_path, autojump_clock):
    async with a_scene(tmp_path, small()) as scene:
        await scene.signed()
        await scene.defence.write()
        await trio.sleep(KEPT_S + 1)
        scene.again()
        await scene.defence.write()
        rows = await scene.provider.journal.given_receipts()
        assert [(row, len(given)) for row, given in rows] == [(2, 1)]


async def test_receipts_whose_time_is_over_are_not_remembered_after_a_restart(
    tmp_path, monkeypatch
):
    async with a_scene(tmp_path, small()) as scene:
        await scene.signed()
        await scene.defence.write()
        later = time.time() + KEPT_S + 1
        monkeypatch.setattr(defending.time, "time", lambda: later)
        await (defence := Defence(scene.provider)).load()
        assert len(defence) == 0


async def test_receipts_that_find_no_room_are_written_down_later(tmp_path, monkeypatch):
    async def full(*_args):
        raise StoreError("the disk is full", code="disk_full")

    async with a_scene(tmp_path, small()) as scene:
        await scene.signed()
        with monkeypatch.context() as patch:
            patch.setattr(scene.provider.journal, "save_given_receipts", full)
            await scene.defence.write()
        scene.again()
        await scene.defence.write()
        ((_, given),) = await scene.provider.journal.given_receipts()
        assert [each.receipt for each in given] == scene.receipts


@pytest.mark.parametrize("proofs", ["public", "private"])
async def test_a_proof_goes_to_whom_its_job_says(tmp_path, proofs):
    async with a_scene(tmp_path, small(), lie("biased")) as scene:
        job, spec = make_job(JOB)
        spec = msgspec.structs.replace(spec, proofs=proofs)
        await scene.house.journal.add_job(job, spec)
        await scene.signed()
        assert await scene.disputed() == "convicted"
        assert scene.house.convictions.private == (proofs == "private")


async def test_proofs_about_a_job_that_was_forgotten_are_for_this_node_alone(tmp_path):
    async with a_scene(tmp_path, small(), lie("biased")) as scene:
        await scene.signed()
        assert await scene.disputed() == "convicted"
        assert scene.house.convictions.private


async def test_disputes_that_are_open_are_told_of_their_job_alone(tmp_path):
    async with a_scene(tmp_path, small(), lie("biased")) as scene:
        await scene.signed()
        journal = scene.house.journal
        disputes = Disputes(scene.house, MEMORY_BYTES)  # not run: they stay open
        await disputes.open(Evidence(scene.award, scene.receipt, None, JOB, 3))
        await disputes.open(Evidence(scene.award, scene.receipt, None, "1" * 27, 4))
        await journal.add_dispute(b"no evidence")
        signed_at = 1_700_000_001.0
        (told,) = await disputes_of(journal, JOB, signed_at + 90.0)
        assert (told.peer, told.unit, told.ago_s) == (BOB.peer_id, 3, 90.0)
        (told,) = await disputes_of(journal, JOB, signed_at - 5.0)  # of a clock that is ahead
        assert told.ago_s == 0.0
