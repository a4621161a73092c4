"""What a lying daemon does at each step, with a real worker and nothing else of a daemon."""

from contextlib import asynccontextmanager
from types import SimpleNamespace

import lies
import pytest
import whole_models
from kinds import PLAYED, Asked, Lie
from liar import Liar, Ring

from shoal.compute.convert import convert
from shoal.compute.errors import ProgramError
from shoal.compute.exact.leaves import decode_operator_leaf
from shoal.compute.frames import UnitLimits
from shoal.compute.supervisor import open_worker
from shoal.compute.tensor import to_blob
from shoal.compute.unit_runs import UnitRun
from shoal.crypto import identity
from shoal.crypto.content import blob_id_of
from shoal.crypto.envelope import Statement
from shoal.node.peer_versions import PeerVersions
from shoal.protocol.codec import encode
from shoal.protocol.negotiation_messages import UnitRequest
from shoal.protocol.statements import Award, open_receipt, statement_id

LIMITS = UnitLimits(60.0, 2 << 30, 1 << 30)
MEMBERS = [
    ("colluder", "a"),
    ("colluding_verifier", "a"),
    ("honest", "a"),
    ("colluding_verifier", "b"),
]
PROVIDER, REQUESTER = identity.generate(), identity.generate()


@pytest.fixture(scope="module")
def program():
    return convert(whole_models.onnx_bytes("magika"), "x20")


class Store:
    """The blobs of one program."""

    def __init__(self, blobs):
        self.blobs = dict(blobs)

    def size_bytes(self, blob_id):
        return len(self.blobs[blob_id])

    async def get_bytes(self, blob_id):
        return self.blobs[blob_id]

    async def put_bytes(self, blob):
        self.blobs[blob_id_of(blob)] = blob


@asynccontextmanager
async def open_house(program):
    async with open_worker(threads=1) as worker:
        await worker.enable_exact()
        yield SimpleNamespace(
            peer_id=PROVIDER.peer_id,
            identity=PROVIDER,
            worker=worker,
            store=Store(program.blobs),
            known=SimpleNamespace(note=lambda *_: None),
            signed=lambda *_: None,
            control=SimpleNamespace(versions=PeerVersions()),
        )


def make_side(program):
    award = Award(
        protocol=(1, 4),
        call="ab" * 16,
        nonce="cd" * 16,
        requester=REQUESTER.peer_id,
        provider=PROVIDER.peer_id,
        program=program.program_id,
        numeric_class="exact",
        precision="x20",
        units_max=64,
        price=0.0,
        idle_s=10.0,
        issued_at_ms=1,
    )
    envelope = REQUESTER.sign(Statement.AWARD, encode(award))
    return SimpleNamespace(
        requester=REQUESTER.peer_id,
        award=award,
        award_id=statement_id(envelope),
        call=SimpleNamespace(time_limit_s=0.5, memory_bytes=2 << 30),
        bid=SimpleNamespace(device="cpu"),
    )


async def fetch(program):
    return program.blobs


async def run_unit(house, program, number):
    """A unit that ran as it should, and its request."""
    inputs = {
        name: to_blob(array[number : number + 1])
        for name, array in whole_models.inputs("magika", number + 1).items()
    }
    run = UnitRun(inputs)
    await house.worker.run_many(
        "r", program.program_id, lambda: fetch(program), [run], LIMITS, lambda _: None
    )
    named = tuple((name, blob_id_of(blob)) for name, blob in inputs.items())
    return run, UnitRequest(call="ab" * 16, unit=f"job/{number}", inputs=named)


@pytest.mark.soak
async def test_each_kind_gives_what_it_says_it_gives(program, tmp_path):
    async with open_house(program) as house:
        for name, kind in PLAYED.items():
            liar = Liar(kind(), Ring(tmp_path / name))
            for number in range(5):  # some lie only when they have earned trust
                run, request = await run_unit(house, program, number)
                true = dict(run.outcome.outputs)
                written = await liar.write_falsely(
                    house, make_side(program), request, run, 1 << 20
                )
            receipt = written.receipt
            lie = kind().outputs(Asked(4)).lie
            if lie is Lie.ERROR:
                assert isinstance(run.outcome, ProgramError), name
                assert receipt.error.code == "nan"
                continue
            ids = dict(receipt.outputs)
            assert (ids != {n: blob_id_of(b) for n, b in true.items()}) == lie.is_wrong, name
            if not kind().serves_blobs():
                assert written.blobs == ()
                continue
            (given,) = written.blobs
            assert lies.spec_of({"target_label": given}) == lies.spec_of(true), name
            awarded = receipt.award == make_side(program).award_id
            assert awarded != kind().invents(5), name
            assert bool(liar.second) == (kind().outputs(Asked(4)).receipts > 1)
            for second in liar.second.values():
                assert open_receipt(second.receipt).outputs != receipt.outputs, name


async def test_accomplices_give_the_same_lie_and_a_stranger_to_them_does_not(program, tmp_path):
    async with open_house(program) as house:
        given = []
        for kind, ring in MEMBERS:
            liar = Liar(PLAYED[kind](), Ring(tmp_path / ring))
            run, request = await run_unit(house, program, 1)
            written = await liar.write_falsely(house, make_side(program), request, run, 1 << 20)
            given.append(written.receipt.outputs)
    first, second, honest, other = given
    assert first == second != honest == other


async def test_a_bent_trace_ends_in_what_the_receipt_says(program, tmp_path):
    async with open_house(program) as house:
        liar = Liar(PLAYED["one_bit"](), Ring(tmp_path))
        run, request = await run_unit(house, program, 2)
        written = await liar.write_falsely(house, make_side(program), request, run, 1 << 20)
        traced = await house.worker.trace(
            "r", program.program_id, lambda: fetch(program), run.inputs, LIMITS
        )
    outputs = {i for leaf in traced.leaves for i in decode_operator_leaf(leaf).outputs}
    bent = {i for leaf in liar.bend(traced).leaves for i in decode_operator_leaf(leaf).outputs}
    ((_, given),) = written.receipt.outputs
    assert given not in outputs
    assert bent - outputs == {given}


async def test_its_own_user_is_served_as_should_be(program, tmp_path):
    async with open_house(program) as house:
        run, request = await run_unit(house, program, 0)
        true = run.outcome
        side = make_side(program)
        side.requester = house.peer_id
        liar = Liar(PLAYED["lazy"](), Ring(tmp_path))
        await liar.write_falsely(house, side, request, run, 1 << 20)
    assert run.outcome is true
