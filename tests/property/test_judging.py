"""Fraud proofs: liars are convicted, honest nodes never, and no changed byte convicts."""

import random
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from effort import THOROUGH
from fraud_samples import (
    Accused,
    a_receipt,
    a_root,
    an_award,
    bit_flipped,
    blobs_for,
    data_of,
    erring,
    half_more,
    long,
    lying,
    proof_against,
    small,
)
from strategies import ALICE, BOB, CAROL

from shoal.compute import accusing
from shoal.compute.exact.leaves import leaf_bytes
from shoal.compute.exact.reference import products
from shoal.compute.judging import Outcome, judge, missing
from shoal.crypto.content import BlobId, blob_id_of
from shoal.crypto.merkle import leaf_of, root_of
from shoal.protocol.verification import fraud_proof
from shoal.protocol.verification.fraud_proof import Opening
from shoal.protocol.verification.search import Search

replace = msgspec.structs.replace


def outcome(proof, blobs):
    verdict = judge(data_of(proof), blobs)
    assert verdict.sentence
    return verdict.outcome


def convicted(proof, blobs, kind):
    data = data_of(proof)
    assert len(data) <= 100_000
    assert proof.kind == kind, proof.kind
    verdict = judge(data, blobs)
    assert verdict.outcome is Outcome.CONVICTED, verdict.sentence
    assert verdict.accused == BOB.peer_id
    return proof, blobs


# --- liars of every kind, and the proof that each ends in -----------------------------------


def an_operator_lie():
    sample = small()
    with lying("biased", bit_flipped):
        leaves = sample.leaves()
    return proof_against(Accused(sample, leaves))


def a_false_error():
    sample = small()
    with lying("p", None, error="nan"):
        leaves = sample.leaves()
    return proof_against(Accused(sample, leaves))


def an_error_passed_over():
    sample = erring()
    (first, _) = sample.leaves()
    second = replace(sample.leaves()[1], error=None, outputs=first.outputs)
    third = replace(second, index=2, operator="Add", inputs=first.outputs * 2)
    return proof_against(Accused(sample, (first, second, third)))


def another_input():
    sample = small()
    other = {"x": sample.inputs["x"] + 1}
    return proof_against(Accused(sample, sample.leaves(other)))


def a_wire_to_another_place():
    sample = small()
    leaves = list(sample.leaves())
    leaves[4] = replace(leaves[4], inputs=leaves[4].inputs[::-1])
    return proof_against(Accused(sample, tuple(leaves), said=invented(sample)))


def another_operator():
    sample = small()
    leaves = list(sample.leaves())
    leaves[3] = replace(leaves[3], operator="LogSoftmax")
    return proof_against(Accused(sample, tuple(leaves), said=invented(sample)))


def a_right_trace_of_another_result():
    sample = small()
    return proof_against(Accused(sample, sample.leaves(), said=invented(sample)))


def a_trace_that_ends_early():
    sample = small()
    return proof_against(Accused(sample, sample.leaves()[:4], said=invented(sample)))


def a_trace_that_goes_on():
    sample = small()
    leaves = sample.leaves()
    return proof_against(Accused(sample, (*leaves, leaves[-1]), said=invented(sample)))


def a_withheld_trace():
    sample = small()
    return proof_against(Accused(sample, sample.leaves(), invented(sample), traces=False))


def a_withheld_false_error():
    sample = small()
    return proof_against(Accused(sample, sample.leaves(), "nan", traces=False))


def an_equivocation():
    sample = small()
    award, outputs = an_award(sample), sample.outputs(sample.leaves())
    one = a_receipt(sample, award, outputs)
    return accusing.equivocation_proof(
        award, one, a_receipt(sample, award, "nan", alone=True)
    ), {}


def a_stage_lie(at="v80"):
    sample = long()
    with lying(at, half_more):
        leaves = sample.leaves()
    return proof_against(Accused(sample, leaves, stages=sample.stages(leaves)))


def a_stage_fed_by_something_else():
    sample = long()
    leaves = list(sample.leaves())
    leaves[70] = replace(leaves[70], inputs=leaves[3].inputs)
    with lying("v70", half_more):
        false = sample.leaves()
    mixed = (*leaves[:70], replace(false[70], inputs=leaves[3].inputs), *false[71:])
    return proof_against(Accused(sample, mixed, stages=sample.stages(mixed)))


def a_stage_that_ends_otherwise():
    sample = long()
    leaves = sample.leaves()
    with lying("v80", half_more):
        false = sample.stages(sample.leaves())
    return proof_against(Accused(sample, leaves, said={"y": blob_id_of(b"else")}, stages=false))


def right_stages_of_another_result():
    sample = long()
    leaves = sample.leaves()
    return proof_against(
        Accused(sample, leaves, said={"y": blob_id_of(b"else")}, stages=sample.stages(leaves))
    )


def stages_that_are_left_out():
    sample = long()
    leaves = sample.leaves()
    stages = sample.stages(leaves)[:-1]
    return proof_against(Accused(sample, leaves, {"y": blob_id_of(b"else")}, stages=stages))


def invented(sample):
    return {name: blob_id_of(name.encode()) for name in sample.graph.outputs}


LIES = {
    an_operator_lie: "operator",
    a_false_error: "operator",
    an_error_passed_over: "operator",
    another_input: "wiring",
    a_wire_to_another_place: "wiring",
    another_operator: "wiring",
    a_right_trace_of_another_result: "wiring",
    a_trace_that_ends_early: "wiring",
    a_trace_that_goes_on: "wiring",
    a_withheld_trace: "unit",
    a_withheld_false_error: "unit",
    an_equivocation: "equivocation",
    a_stage_lie: "operator",
    a_stage_fed_by_something_else: "wiring",
    a_stage_that_ends_otherwise: "wiring",
    right_stages_of_another_result: "wiring",
    stages_that_are_left_out: "wiring",
}


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_a_liar_is_convicted(lie):
    convicted(*lie(), LIES[lie])


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_without_any_one_of_its_blobs_or_with_another_a_proof_is_undecided(lie):
    proof, blobs = lie()
    needed = set(missing(proof, {}))
    needed |= {BlobId(b) for b in blobs if proof.kind == "unit"}
    for blob_id in needed:
        without = {other: blob for other, blob in blobs.items() if other != blob_id}
        assert outcome(proof, without) is Outcome.UNDECIDED
        assert outcome(proof, without | {blob_id: b"else"}) is Outcome.UNDECIDED
        assert missing(proof, without) == (blob_id,)
    assert missing(proof, blobs) == ()


# --- no changed byte ------------------------------------------------------------------------


def changes(data, rng, places):
    """Each place with one bit turned over, with one more, and with any other value.

    In the soak in all these ways, and else in one of them, which are drawn.
    """
    for place in places:
        ways = {
            data[place] ^ (1 << rng.randrange(8)),
            (data[place] + 1) % 256,
            rng.randrange(256),
        } - {data[place]}
        for value in ways if THOROUGH else [rng.choice(sorted(ways))]:
            yield place, data[:place] + bytes([value]) + data[place + 1 :]


@pytest.mark.parametrize(
    "lie",
    [
        an_operator_lie,
        an_equivocation,
        another_input,
        a_stage_lie,
        a_stage_that_ends_otherwise,
        a_withheld_trace,
    ],
    ids=lambda lie: lie.__name__,
)
def test_no_single_changed_byte_of_a_proof_convicts(lie, capsys):
    proof, blobs = lie()
    data = data_of(proof)
    assert judge(data, blobs).outcome is Outcome.CONVICTED
    counts = dict.fromkeys(Outcome, 0)
    for place, changed in changes(data, random.Random(1), range(len(data))):
        verdict = judge(changed, blobs)
        counts[verdict.outcome] += 1
        assert verdict.outcome is not Outcome.CONVICTED, (place, changed[place])
    with capsys.disabled():
        said = ", ".join(f"{count} {what}" for what, count in counts.items())
        print(f"\n{proof.kind}, {len(data)} bytes, each changed: {said}")


def test_bytes_more_or_less_are_no_proof():
    for lie in (an_operator_lie, an_equivocation, another_input):
        proof, blobs = lie()
        data = data_of(proof)
        for changed in (data + b"\0", data[:-1], data + data, b"", b"\x80", data[1:]):
            assert judge(changed, blobs).outcome is not Outcome.CONVICTED


def test_another_encoding_of_the_same_is_no_proof():
    proof, blobs = an_operator_lie()
    value = msgspec.msgpack.decode(data_of(proof))
    turned = dict(reversed(value.items()))
    for other in (turned, value | {"more": 1}):
        data = msgspec.msgpack.encode(other)
        assert judge(data, blobs).outcome is Outcome.ACQUITTED
    for version in (fraud_proof.VERSION - 1, fraud_proof.VERSION + 1):
        other = msgspec.msgpack.encode(value | {"version": version})
        assert judge(other, blobs).outcome is Outcome.UNDECIDED


# --- the honest ------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [small, long, erring], ids=lambda make: make.__name__)
def test_an_honest_provider_is_acquitted_whatever_of_it_is_shown(make):
    sample = make()
    leaves = sample.leaves()
    stages = sample.stages(leaves) if make is long else ()
    honest = Accused(sample, leaves, stages=stages)
    unit = accusing.unit_proof(honest.award, honest.receipt)
    assert outcome(unit, sample.blobs) is Outcome.ACQUITTED
    for stage in range(len(stages)) if stages else (None,):
        shown = honest.of_stage(stage)
        root = a_root(honest.receipt, shown, stage)
        search = fraud_search(shown)
        openings = [Opening(n, leaf, search.path_of(n)) for n, leaf in enumerate(shown)]
        program = (sample.program_id, sample.manifest.graph)
        some = openings if THOROUGH or not stages else openings[::4] + openings[-1:]
        for opening in some:
            number = opening.index
            leaf = msgspec.msgpack.decode(opening.leaf)
            reads = [i for i in leaf["inputs"] if i is not None]
            proof = replace(
                unit,
                kind="operator",
                root=root,
                leaves=(opening,),
                blobs=tuple(dict.fromkeys((*program, *reads))),
            )
            assert outcome(proof, blobs_for(sample, proof)) is Outcome.ACQUITTED
            opened = tuple(openings[max(0, number - 8) : number + 1])
            wiring = replace(unit, kind="wiring", root=root, leaves=opened, blobs=program)
            assert outcome(wiring, sample.blobs) is Outcome.ACQUITTED
    if stages:
        search = fraud_search(stages)
        opened = [Opening(n, leaf, search.path_of(n)) for n, leaf in enumerate(stages)]
        for pair in pairwise(opened):
            proof = replace(unit, kind="wiring", stages=pair, blobs=program)
            assert outcome(proof, sample.blobs) is Outcome.ACQUITTED


def fraud_search(leaves):
    digests = [leaf_of(leaf) for leaf in leaves]
    return Search(root_of(digests), len(digests), digests)


@pytest.mark.parametrize(
    "code",
    [
        "memory_limit",
        "time_limit",
        "library_failure",
        "worker_died",
        "unsupported_operator",
        "a_later_code",
    ],
)
def test_an_error_that_a_machine_alone_may_meet_convicts_nobody(code):
    sample = small()
    award, right = an_award(sample), sample.outputs(sample.leaves())
    erred = a_receipt(sample, award, code)
    unit = accusing.unit_proof(award, erred)
    assert outcome(unit, sample.blobs) is Outcome.ACQUITTED
    both = accusing.equivocation_proof(award, erred, a_receipt(sample, award, right))
    assert outcome(both, {}) is Outcome.ACQUITTED


class ErringBlas(np.ndarray):
    """A matrix of floats whose products are wrong in one place."""

    def __matmul__(self, other):
        found = np.asarray(self) @ np.asarray(other)
        if found.dtype == np.float64:
            found.flat[-1] *= 3
        return found


def test_a_machine_that_multiplies_wrongly_convicts_nobody(monkeypatch):
    sample = small()
    award = an_award(sample)
    honest = a_receipt(sample, award, sample.outputs(sample.leaves()))
    proof = accusing.unit_proof(award, honest)
    quantised = products.quantised
    monkeypatch.setattr(
        products, "quantised", lambda *given: quantised(*given).view(ErringBlas)
    )
    assert outcome(proof, sample.blobs) is Outcome.UNDECIDED


def test_one_error_in_place_of_another_convicts_nobody():
    sample = erring()
    award = an_award(sample)
    proof = accusing.unit_proof(award, a_receipt(sample, award, "infinity"))
    assert outcome(proof, sample.blobs) is Outcome.ACQUITTED


def test_two_inputs_under_one_name_are_their_requesters_doing():
    sample = small()
    award = an_award(sample)
    one = a_receipt(sample, award, invented(sample))
    others = (("x", blob_id_of(b"another input")),)
    two = a_receipt(sample, award, "nan", inputs=others)
    assert outcome(accusing.equivocation_proof(award, one, two), {}) is Outcome.ACQUITTED


@pytest.mark.parametrize(
    "changes",
    [
        {"unit": "job/1"},
        {"award": an_award(small(), price=1.0)},
        {"provider": CAROL},
        {"exact_spec": "2"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_receipts_of_two_things_contradict_nothing(changes):
    sample = small()
    award = an_award(sample)
    one = a_receipt(sample, award, invented(sample))
    two = a_receipt(sample, **({"award": award, "said": "nan"} | changes))
    assert outcome(accusing.equivocation_proof(award, one, two), {}) is not Outcome.CONVICTED


def test_the_same_result_signed_twice_contradicts_nothing():
    sample = small()
    award = an_award(sample)
    one = a_receipt(sample, award, invented(sample))
    two = a_receipt(sample, award, invented(sample), ended_at_ms=1_700_000_002_000)
    assert outcome(accusing.equivocation_proof(award, one, two), {}) is Outcome.ACQUITTED


def test_of_another_class_or_version_nothing_is_proved():
    sample = small()
    said = invented(sample)
    award = an_award(sample, numeric_class="fp32", precision=None)
    receipt = a_receipt(
        sample, award, said, numeric_class="fp32", precision=None, exact_spec=""
    )
    assert outcome(accusing.unit_proof(award, receipt), sample.blobs) is Outcome.ACQUITTED
    other = a_receipt(sample, award, "nan", numeric_class="fp32", precision=None, exact_spec="")
    both = accusing.equivocation_proof(award, receipt, other)
    assert outcome(both, {}) is Outcome.ACQUITTED
    award = an_award(sample)
    receipt = a_receipt(sample, award, said, exact_spec="2")
    assert outcome(accusing.unit_proof(award, receipt), sample.blobs) is Outcome.UNDECIDED


def test_a_program_that_is_none_leaves_it_undecided():
    sample = small()
    nonsense = b"no manifest"
    award = an_award(sample, program=blob_id_of(nonsense))
    receipt = a_receipt(sample, award, invented(sample), program=blob_id_of(nonsense))
    proof = accusing.unit_proof(award, receipt)
    blobs = sample.blobs | {blob_id_of(nonsense): nonsense}
    assert outcome(proof, blobs) is Outcome.UNDECIDED


def test_inputs_that_do_not_fit_the_program_leave_it_undecided():
    sample = small()
    award = an_award(sample)
    stranger = (("x", blob_id_of(b"no tensor")),)
    receipt = a_receipt(sample, award, invented(sample), inputs=stranger)
    blobs = sample.blobs | {blob_id_of(b"no tensor"): b"no tensor"}
    assert outcome(accusing.unit_proof(award, receipt), blobs) is Outcome.UNDECIDED


@pytest.mark.parametrize(
    "spoil",
    [
        lambda proof, sample: replace(proof, award=an_award(sample, provider=CAROL)),
        lambda proof, sample: replace(proof, award=an_award(sample, price=1.0)),
        lambda proof, sample: replace(
            proof, receipt=a_receipt(sample, proof.award, "nan", provider=CAROL)
        ),
        lambda proof, _: replace(proof, root=None),
        lambda proof, _: replace(proof, root=a_root(proof.receipt, [b"a", b"b"])),
        lambda proof, _: replace(proof, leaves=()),
        lambda proof, _: replace(proof, leaves=proof.leaves * 2),
        lambda proof, _: replace(proof, kind="unit"),
        lambda proof, _: replace(proof, kind="wiring", root=None),
        lambda proof, _: replace(proof, other=proof.receipt),
        lambda proof, _: replace(proof, blobs=proof.blobs[:-1]),
        lambda proof, _: replace(proof, blobs=(*proof.blobs, "ab" * 32)),
        lambda proof, _: replace(proof, blobs=proof.blobs[::-1]),
        lambda proof, _: replace(proof, blobs=()),
        lambda proof, _: replace(
            proof, root=a_root(proof.receipt, [proof.leaves[0].leaf], provider=CAROL)
        ),
        lambda proof, sample: replace(
            proof, root=a_root(a_receipt(sample, proof.award, "nan"), [proof.leaves[0].leaf])
        ),
    ],
)
def test_a_proof_whose_parts_do_not_belong_together_convicts_nobody(spoil):
    proof, blobs = an_operator_lie()
    assert outcome(spoil(proof, small()), blobs | small().blobs) is not Outcome.CONVICTED


def test_a_trace_of_a_newer_protocol_is_not_judged():
    proof, blobs = an_operator_lie()
    (opening,) = proof.leaves
    only = Opening(0, opening.leaf, b"")
    root = a_root(proof.receipt, [opening.leaf], protocol=(1, 99))
    newer = replace(proof, root=root, leaves=(only,))
    assert outcome(newer, blobs) is Outcome.UNDECIDED


def test_a_leaf_that_is_none_is_undecided_and_never_raises():
    sample = small()
    honest = Accused(sample, sample.leaves())
    for nonsense in (b"x", b"\xc1", leaf_bytes(sample.leaves()[0]) + b"\0"):
        root = a_root(honest.receipt, [nonsense])
        proof = fraud_proof.FraudProof(
            version=fraud_proof.VERSION,
            kind="operator",
            award=honest.award,
            receipt=honest.receipt,
            other=None,
            root=root,
            leaves=(Opening(0, nonsense, b""),),
            stages=(),
            blobs=(sample.program_id, sample.manifest.graph),
        )
        assert outcome(proof, sample.blobs) is Outcome.UNDECIDED


def test_a_requester_cannot_convict_by_what_it_signs_itself():
    sample = small()
    award = an_award(sample, provider=ALICE)
    receipt = a_receipt(sample, award, invented(sample), provider=ALICE)
    verdict = judge(data_of(accusing.unit_proof(award, receipt)), sample.blobs)
    assert (verdict.outcome, verdict.accused) == (Outcome.CONVICTED, ALICE.peer_id)
