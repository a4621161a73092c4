"""A requester whose own worker is made up, and peers that are honest, or not, in one way.

What a unit gives is `right` of its input, whatever the program: what is tested is who is
asked, what is delivered and who is found out.
"""

import secrets
import time
from contextlib import AsyncExitStack, asynccontextmanager

import models
import numpy as np
import trio
from attacker import HELLO, Liar

from shoal.compute.convert import convert
from shoal.compute.errors import ProgramError
from shoal.compute.kernel_manifest import Argument, Extent, KernelManifest, program_of
from shoal.compute.manifest import Port
from shoal.compute.tensor import from_blob, to_blob
from shoal.compute.unit_runs import Execution
from shoal.crypto import identity
from shoal.crypto.content import blob_id_of
from shoal.crypto.envelope import Statement
from shoal.node import house, jobs
from shoal.node.bidding import Terms
from shoal.node.blob_transfer import Rights
from shoal.node.blobs import open_store
from shoal.node.control import open_control
from shoal.node.network import open_network
from shoal.node.provider import open_provider
from shoal.node.records import JobSpec, Policy
from shoal.node.result_standing import NEW, StandingNow
from shoal.node.state import open_state
from shoal.protocol.checking_messages import Reveal
from shoal.protocol.codec import encode
from shoal.protocol.messages import Done
from shoal.protocol.negotiation_messages import (
    AwardOffer,
    Call,
    Reason,
    Refusal,
    Release,
    UnitRequest,
    UnitsRequest,
    UnitsResult,
)
from shoal.protocol.statements import Receipt, UnitError, open_award, statement_id

LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]
LIMIT_S = 20.0
TEXT = b"module {}"  # a daemon reads no kernel's text
KERNEL = program_of(
    KernelManifest(
        kernel=blob_id_of(TEXT),
        triton="3.7.0",
        entry="f",
        inputs=(Port("x", "float32", ("rows", models.WIDTH)),),
        outputs=(Port("y", "float32", ("rows", models.WIDTH)),),
        arguments=(Argument("x", "*fp32", None), Argument("y", "*fp32", None)),
        grid=(Extent("rows"),),
    ),
    TEXT,
)
PROGRAM = {
    "exact": convert(models.dense(), "x20"),
    "fp32": convert(models.dense()),
    "kernel": KERNEL,
}


def given(number):
    """The input of a unit: a small tensor of its own."""
    return to_blob(np.full((1, models.WIDTH), number, dtype=np.float32))


def right(blob):
    """What a unit gives for it; an input of negative numbers is an error."""
    rows = from_blob(blob)
    if (rows < 0).any():
        return None
    return to_blob(rows * np.float32(2) + np.float32(1))


def wrong(blob):
    return to_blob(from_blob(blob) * np.float32(3) + np.float32(2))


def nearly_right(blob):
    return to_blob(from_blob(right(blob)) * np.float32(1 + 1e-6))


NAN = ProgramError("it gave NaN", code="nan", node="xw", operator="MatMul")


class MadeUpWorker:
    """Runs any unit at once."""

    def __init__(self):
        self.ran = 0
        self.fails = False

    async def run_many(self, _requester, _program, _blobs, units, _limits, ended, *_):
        for unit in units:
            await trio.lowlevel.checkpoint()
            self.ran += 1
            output = right(unit.inputs["x"])
            unit.end(NAN if output is None else Execution({"y": output}, 0.001, "made up"))
            ended(unit)


class Standings:
    """Of peers: whether they verify, and how often they are checked."""

    def __init__(self):
        self.able = set()
        self.p = {}
        self.notes = []

    def note(self, peer, deed, weight=1.0, detail=""):
        self.notes.append((peer, deed))

    def may_verify(self, peer):
        return peer in self.able

    def of(self, peer):
        return NEW if peer not in self.able else StandingNow(0.9, 20, newcomer=False)

    def probability(self, peer):
        return self.p.get(peer, 1.0)


class Requester:
    """A node that gives work to peers and, where ``own`` says so, to itself."""

    def __init__(self, key, network, control, store, journal):
        self.key, self.network, self.store, self.journal = key, network, store, journal
        self.worker, self.standings = MadeUpWorker(), Standings()
        self.offering, self.accused = [], []
        self.runs_itself = True
        self.house = house.House(
            identity=key,
            network=network,
            control=control,
            store=store,
            rights=Rights(),
            journal=journal,
            worker=self.worker,
            reach=self.reach,
            terms=self.terms,
            standings=self.standings,
            accuse=self.accuse,
        )

    @property
    def peer(self):
        return self.key.peer_id

    async def reach(self, _peer):
        pass

    async def accuse(self, award, receipt, other, job, unit):
        self.accused.append((open_award(award).provider, other is not None, unit))

    def terms(self):
        return Terms(
            device="cpu",
            executors=dict.fromkeys(PROGRAM, "made up") if self.runs_itself else {},
            memory_bytes=1 << 40,
            providing=False,
            own=self.peer,
            draining=False,
            allowed=(),
            leases=self.provider.leases,
            units_waiting=self.provider.units_waiting,
        )

    async def submit(self, units, numeric_class="exact", **fields):
        """A job of units with these inputs."""
        program = PROGRAM[numeric_class]
        blobs = [given(number) for number in units]
        for blob in (*program.blobs.values(), *blobs):
            await self.store.put_bytes(blob)
        named = tuple({"x": blob_id_of(blob)} for blob in blobs)
        spec = JobSpec(Policy.MAP, program.program_id, named, numeric_class, **fields)
        return await self.jobs.submit(spec)

    async def run(self, units, numeric_class="exact", **fields):
        """Run a job to its end; gives its units."""
        job = await self.submit(units, numeric_class, **fields)
        with trio.fail_after(LIMIT_S):
            async with self.jobs.watch(job.id) as changes:
                async for _ in changes:
                    pass
        return await self.journal.units(job.id, 0, len(units))

    async def output(self, unit):
        tensors = await self.journal.tensors(unit.outputs.values())
        return tensors[unit.outputs["y"]]


@asynccontextmanager
async def open_requester(home):
    key = identity.generate()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        network = await enter(open_network(key, LOOPBACK))
        control = await enter(open_control(network, "test/1"))
        store = await enter(open_store(home / "blobs", 1 << 30))
        journal = await enter(open_state(home / "state.sqlite"))
        node = Requester(key, network, control, store, journal)
        node.provider = await enter(open_provider(node.house))
        node.jobs = await enter(jobs.open_jobs(node.house, lambda _: list(node.offering)))
        control.answer_with(node.provider.answer)
        yield node


class Peer(Liar):
    """An honest provider; each kind replaces what it gives for an input.

    Asked again for a unit under the same lease it answers from memory.

    Attributes:
        asked: The names of the units that it was given, and how often.
        repeated: How often it was asked for a unit again.
        revealed: What it was told when a lease was over.
        price: The one that asks least is given units first.
    """

    price = 1.0
    exact_spec = "1"

    def __init__(self, key, network):
        super().__init__(key, network)
        self.asked, self.revealed, self.releases = [], [], 0
        self.answers, self.repeated = {}, 0

    async def answer(self, peer, body):
        match body:
            case Call():
                self.calls[body.call] = body
                return self.bid(
                    body, price=self.price, batch_max=8, in_flight_max=32, units_max=256
                )
            case AwardOffer():
                self.awards[body.call] = body.award
                return self.lease(body)
            case UnitRequest():
                return await self.once(body)
            case UnitsRequest():
                answers = [await self.once(unit) for unit in body.units]
                return UnitsResult(body.call, tuple(answers))
            case Reveal():
                self.revealed.append(body)
            case Release():
                self.releases += 1
        return Done()

    async def once(self, request):
        key = request.call, request.unit  # under another lease it runs again
        if key not in self.answers:
            self.answers[key] = await self.ran(request)
        else:
            self.repeated += 1
        return self.answers[key]

    async def ran(self, request):
        self.asked.append(request.unit)
        (blob,) = request.blobs
        output = self.gives(blob)
        if output is None:
            error = UnitError(NAN.code, NAN.message, NAN.node, NAN.operator)
            receipt = self.signed(request, outputs=None, error=error)
            return self.result(request, blobs=(), receipt=receipt)
        receipt = self.signed(request, outputs=(("y", blob_id_of(output)),), error=None)
        return self.result(request, blobs=(output,), receipt=receipt)

    def signed(self, request, outputs, error):
        envelope = self.awards[request.call]
        award = open_award(envelope)
        now_ms = time.time_ns() // 1_000_000
        receipt = Receipt(
            protocol=HELLO.protocol,
            exact_spec=self.exact_spec,
            award=statement_id(envelope),
            unit=request.unit,
            program=award.program,
            numeric_class=award.numeric_class,
            precision=award.precision,
            inputs=request.inputs,
            outputs=outputs,
            error=error,
            trace=None,
            provider=self.key.peer_id,
            requester=award.requester,
            started_at_ms=now_ms,
            ended_at_ms=now_ms,
            device="cpu",
            runtime="made up",
        )
        return self.key.sign(Statement.RECEIPT, encode(receipt))

    def gives(self, blob):
        return right(blob)

    @property
    def peer(self):
        return self.key.peer_id


class Lies(Peer):
    price = 0.1

    def gives(self, blob):
        return wrong(blob)


class CallsItNaN(Peer):
    price = 0.1

    def gives(self, blob):
        return None


class SaysAnotherThingEachTime(Peer):
    price = 0.1

    async def once(self, request):
        return await self.ran(request)

    def gives(self, blob):
        noise = secrets.randbelow(1 << 20)
        return to_blob(from_blob(blob) + np.float32(noise + 100))


class ThinksTwice(Peer):
    """Gives what is right, and another thing when it is asked for the same unit again."""

    price = 0.1

    async def once(self, request):
        return await self.ran(request)

    async def ran(self, request):
        self.again = request.unit in self.asked
        return await super().ran(request)

    def gives(self, blob):
        return wrong(blob) if self.again else right(blob)


class KeepsOutputs(Peer):
    """Signs what is right, and then gives none of it."""

    price = 0.1

    def result(self, request, *, blobs=(), unit=None, receipt=None):
        return super().result(request, blobs=(), unit=unit, receipt=receipt)


class RefusesToVerify(Peer):
    """It bids, and takes no award."""

    async def answer(self, peer, body):
        if isinstance(body, AwardOffer):
            return Refusal(call=body.call, reason=Reason.BUSY)
        return await super().answer(peer, body)


class Roughly(Peer):
    """Its library rounds in another way."""

    price = 0.1

    def gives(self, blob):
        return nearly_right(blob)


class Colludes(Peer):
    """Lies, and says the same lie of what its friends ran."""

    def gives(self, blob):
        return wrong(blob)


class Waits(Peer):
    """Answers nothing before it is told to go."""

    def __init__(self, key, network):
        super().__init__(key, network)
        self.go = trio.Event()

    async def ran(self, request):
        await self.go.wait()
        return await super().ran(request)


class TurnsFalse(Peer):
    """Honest for as long as ``honest`` units, then not."""

    price = 0.1
    honest = 6

    def gives(self, blob):
        return right(blob) if len(self.asked) <= self.honest else wrong(blob)


@asynccontextmanager
async def open_peers(node, *kinds, verify=True):
    """Peers of these kinds that offer to work; those of kind `Peer` may verify."""
    async with AsyncExitStack() as stack:
        peers = []
        for kind in kinds:
            key = identity.generate()
            network = await stack.enter_async_context(open_network(key, LOOPBACK))
            control = await stack.enter_async_context(open_control(network, "test/1"))
            peer = kind(key, network)
            control.answer_with(peer.answer)
            await network.connect(node.peer, node.network.addresses(), 5)
            node.offering.append(peer.peer)
            if verify:
                node.standings.able.add(peer.peer)
            peers.append(peer)
        yield peers
