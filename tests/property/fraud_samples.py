"""A unit in small, its honest run, liars of every kind, and the disputes that prove them."""

from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

import msgspec
import numpy as np
from onnx import numpy_helper, parser
from strategies import ALICE, BOB

from shoal.compute import accusing
from shoal.compute.convert import convert
from shoal.compute.exact import tracing
from shoal.compute.exact.kernels import ExactError
from shoal.compute.exact.leaves import leaf_bytes
from shoal.compute.exact.reference import ReferenceKernels
from shoal.compute.exact.spec import SPEC_VERSION
from shoal.compute.exact.stages import stage_leaves, stages_of
from shoal.compute.exact.tracing import Traceable, trace
from shoal.compute.loading import load
from shoal.compute.tensor import from_blob, to_blob
from shoal.crypto.content import BlobId, blob_id_of
from shoal.crypto.envelope import Statement
from shoal.crypto.merkle import leaf_of, root_of
from shoal.protocol.codec import encode
from shoal.protocol.messages import Problem
from shoal.protocol.statements import Award, Receipt, TraceRoot, UnitError, statement_id
from shoal.protocol.verification import fraud_proof
from shoal.protocol.verification.defence import Defender, MakeTrace
from shoal.protocol.verification.dispute import Ask, Challenger, Compute
from shoal.protocol.versions import OWN

SMALL = """
<ir_version: 9, opset_import: ["" : 20]>
small (float[4, 24] x, float[24, 8] w) => (float y, float z)
<float[8] b = {1, 2, 3, 4, 5, 6, 7, 8}, int64[1] last = {1}>
{
    doubled = Add (b, b)
    product = MatMul (x, w)
    biased = Add (product, doubled)
    p = Softmax (biased)
    again = Mul (p, biased)
    z = ReduceMean (again, last)
    y = Tanh (again)
}
"""


def long_model(nodes=150):
    """Enough nodes for stages; a value of the first lives to the end."""
    lines = ["v0 = Add (x, x)"]
    lines += [f"v{n} = {('Tanh', 'Sin', 'Cos')[n % 3]} (v{n - 1})" for n in range(1, nodes)]
    lines += [f"y = Mul (v{nodes - 1}, v0)"]
    return (
        '<ir_version: 9, opset_import: ["" : 20]> long (float[2, 3] x) => (float y) {\n'
        + "\n".join(lines)
        + "}"
    )


@dataclass
class Sample:
    """A program of the class exact and one unit of it."""

    program_id: BlobId
    blobs: dict
    inputs: dict
    traceable: Traceable = field(init=False)

    def __post_init__(self):
        self.blobs |= {blob_id_of(to_blob(a)): to_blob(a) for a in self.inputs.values()}
        self.traceable = Traceable(load(self.program_id, self.blobs))

    @property
    def manifest(self):
        return load(self.program_id, self.blobs).manifest

    @property
    def graph(self):
        return self.traceable.graph

    def input_ids(self):
        return {name: blob_id_of(to_blob(array)) for name, array in self.inputs.items()}

    def leaves(self, inputs=None, span=None):
        return trace(self.traceable, inputs or self.inputs, ReferenceKernels(), span)

    def outputs(self, leaves):
        """The ids of the program's outputs by a whole trace; the code of its error, else."""
        if leaves[-1].error is not None:
            return leaves[-1].error
        made = {}
        for node, leaf in zip(self.graph.nodes, leaves, strict=True):
            made.update(zip(node.outputs, leaf.outputs, strict=True))
        return {name: made[name] for name in self.graph.outputs}

    def stages(self, leaves):
        return tuple(
            leaf_bytes(leaf) for leaf in stage_leaves(stages_of(self.graph), leaves, self.graph)
        )

    def tensors_of(self, leaf, inputs=None):
        """What an operator takes, by id, from a run with whatever lies are told now."""
        found = tracing.tensors_of(
            self.traceable, inputs or self.inputs, ReferenceKernels(), leaf.index
        )
        return dict(found.blobs)


@cache
def small():
    rng = np.random.default_rng(3)
    model = parser.parse_model(SMALL)
    model.graph.initializer.append(
        _tensor("w", rng.standard_normal((24, 8)).astype(np.float32))
    )
    x = rng.standard_normal((4, 24)).astype(np.float32)
    x[0, 0] = 1e-40  # is flushed as it enters: its id is that of what was given
    return _sample(model, {"x": x})


@cache
def long():
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    return _sample(parser.parse_model(long_model()), {"x": x})


@cache
def erring():
    """A unit that ends in an error, at its second operator."""
    model = parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]> e (float[2] x) => (float y) '
        "{ a = Neg (x)\n b = Sqrt (a)\n y = Add (a, b) }"
    )
    return _sample(model, {"x": np.asarray([1, 4], np.float32)})


def _tensor(name, array):
    return numpy_helper.from_array(array, name)


def _sample(model, inputs):
    program = convert(model.SerializeToString(), "x20")
    return Sample(program.program_id, dict(program.blobs), inputs)


# --- what is signed -------------------------------------------------------------------------


def an_award(sample, provider=BOB, **changes):
    award = Award(
        protocol=OWN,
        call="ab" * 16,
        nonce="cd" * 16,
        requester=ALICE.peer_id,
        provider=provider.peer_id,
        program=sample.program_id,
        numeric_class="exact",
        precision="x20",
        units_max=8,
        price=0.0,
        idle_s=60.0,
        issued_at_ms=1_700_000_000_000,
    )
    return ALICE.sign(Statement.AWARD, encode(msgspec.structs.replace(award, **changes)))


def a_receipt(sample, award, said, provider=BOB, stages=(), *, alone=False, **changes):
    """``said`` are output ids by name, or the code of an error; it is signed with another."""
    receipt = Receipt(
        protocol=OWN,
        exact_spec=SPEC_VERSION,
        award=statement_id(award),
        unit="job/0",
        program=sample.program_id,
        numeric_class="exact",
        precision="x20",
        inputs=tuple(sorted(sample.input_ids().items())),
        outputs=None if isinstance(said, str) else tuple(sorted(said.items())),
        error=UnitError(code=said, message="it says") if isinstance(said, str) else None,
        trace=root_of([leaf_of(leaf) for leaf in stages]).hex() if stages else None,
        provider=provider.peer_id,
        requester=ALICE.peer_id,
        started_at_ms=1_700_000_000_000,
        ended_at_ms=1_700_000_001_000,
        device="cpu",
        runtime="",
        stages=len(stages),
    )
    changed = msgspec.structs.replace(receipt, **changes)
    payload = encode(changed)
    if alone:
        return provider.sign(Statement.RECEIPT, payload)
    return provider.sign_many(Statement.RECEIPT, [b"another", payload])[1]


def a_root(receipt, leaves, stage=None, provider=BOB, **changes):
    root = TraceRoot(
        protocol=OWN,
        receipt=statement_id(receipt),
        stage=stage,
        root=root_of([leaf_of(leaf) for leaf in leaves]),
        leaves=len(leaves),
        provider=provider.peer_id,
    )
    changed = msgspec.structs.replace(root, **changes)
    return provider.sign(Statement.TRACE_ROOT, encode(changed))


# --- lies -----------------------------------------------------------------------------------


@contextmanager
def lying(at, change, error=None):
    """Within it, the node that gives ``at`` gives something else, and so do all after it."""
    honest = tracing.run_node

    def run_node(node, arrays, kernels):
        if at not in node.outputs:
            return honest(node, arrays, kernels)
        if error is not None:
            raise ExactError("made up", code=error)
        return tuple(change(array) for array in honest(node, arrays, kernels))

    tracing.run_node = run_node
    try:
        yield
    finally:
        tracing.run_node = honest


def bit_flipped(array):
    """Its last element with the lowest bit turned over."""
    blob = bytearray(to_blob(array))
    blob[-4] ^= 1
    return from_blob(bytes(blob))


def half_more(array):
    """So much that functions of functions of it are something else too."""
    return array + np.asarray(0.5, array.dtype)


# --- disputes -------------------------------------------------------------------------------


@dataclass
class Accused:
    """A provider with a receipt, and the leaves that it will show."""

    sample: Sample
    leaves: tuple
    said: object = None
    stages: tuple = ()
    traces: bool = True
    award: bytes = b""
    receipt: bytes = b""

    def __post_init__(self):
        self.award = an_award(self.sample)
        if self.said is None:
            self.said = self.sample.outputs(self.leaves)
        self.receipt = a_receipt(self.sample, self.award, self.said, stages=self.stages)
        self.side = Defender(statement_id(self.receipt), ALICE.peer_id, self.stages)

    def of_stage(self, stage):
        span = stages_of(self.sample.graph).span(stage) if stage is not None else slice(None)
        places = slice(span.start, span.stop)
        return tuple(leaf_bytes(leaf) for leaf in self.leaves[places])

    def answer(self, question):
        if not self.traces:
            return Problem(code="no", message="not today")
        answer = self.side.receive(ALICE.peer_id, question)
        if isinstance(answer, MakeTrace):
            leaves = self.of_stage(answer.stage)
            root = a_root(self.receipt, leaves, answer.stage)
            answer = self.side.traced(answer.stage, leaves, root)
        return answer


def proof_against(accused, narrow=None):
    """The fraud proof that a dispute with this provider ends in, and its blobs."""
    sample = accused.sample
    own = sample.leaves()
    own_stages = sample.stages(own) if accused.stages else ()
    challenger = Challenger(
        receipt=statement_id(accused.receipt),
        accused=BOB.peer_id,
        trace=root_of([leaf_of(each) for each in accused.stages]) if accused.stages else None,
        stages=len(accused.stages),
        unit_s=1.0,
        own_stages=own_stages,
    )
    honest = Accused(sample, own, stages=own_stages)
    while True:
        match challenger.next():
            case Ask(question=question):
                challenger.send(question, 0.0)
                challenger.receive(question, accused.answer(question), 0.1)
            case Compute(stage=stage):
                challenger.know(honest.of_stage(stage))
            case _:
                break
    outputs = sample.outputs(own)
    proof = accusing.trace_proof(
        accused.award,
        accused.receipt,
        challenger,
        sample.manifest,
        outputs if isinstance(outputs, dict) else {},
    )
    if proof is None:
        proof = accusing.unit_proof(accused.award, accused.receipt)
    return proof, blobs_for(sample, proof)


def blobs_for(sample, proof):
    """Just the blobs that a proof needs, from an honest run."""
    blobs = dict(sample.blobs)
    if proof.kind == "operator":
        leaf = msgspec.msgpack.decode(proof.leaves[0].leaf)
        blobs |= sample.tensors_of(sample.leaves()[leaf["index"]])
    if proof.kind == "unit":
        return blobs
    return {blob_id: blobs[blob_id] for blob_id in proof.blobs if blob_id in blobs}


def data_of(proof):
    return fraud_proof.encode(proof)
