"""What the demo makes of a job that ended, with units and receipts made up for it."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from shoal.compute.tensor import to_blob
from shoal.crypto import identity
from shoal.crypto.content import blob_id_of
from shoal.crypto.envelope import Statement
from shoal.node.demo.account import busy_s, shares_of
from shoal.node.demo.spread import (
    Delivered,
    Killed,
    Spread,
    choose_victim,
    files_per_unit,
)
from shoal.node.records import Job, JobState, Policy, Unit, UnitState
from shoal.protocol.codec import encode
from shoal.protocol.statements import Receipt

KEYS = [identity.generate() for _ in range(3)]
PEERS = [key.peer_id for key in KEYS]
REQUESTER = PEERS[0]
PROGRAM = blob_id_of(b"program")
UNITS = 12
ROWS = 2


def unit_of(index, key, **changes):
    """A delivered unit of two files that the node of ``key`` has run."""
    sent = np.full((ROWS, 3), index, np.int32)
    came = np.full((ROWS, 5), index, np.float32)
    inputs = {"bytes": blob_id_of(to_blob(sent))}
    output_ids = {"target_label": blob_id_of(to_blob(came))}
    said = {
        "protocol": (1, 0),
        "exact_spec": "",
        "award": blob_id_of(b"award"),
        "unit": f"job/{index}",
        "program": PROGRAM,
        "numeric_class": "fp32",
        "precision": None,
        "inputs": tuple(inputs.items()),
        "outputs": tuple(output_ids.items()),
        "error": None,
        "trace": None,
        "provider": key.peer_id,
        "requester": REQUESTER,
        "started_at_ms": 1000 * index,
        "ended_at_ms": 1000 * index + 500,
        "device": "cpu",
        "runtime": "",
    }
    envelope = key.sign(Statement.RECEIPT, encode(Receipt(**said | changes)))
    unit = Unit(
        job="job",
        index=index,
        state=UnitState.DONE,
        inputs=inputs,
        outputs=output_ids,
        receipt=blob_id_of(envelope),
        provider=key.peer_id,
    )
    return Delivered(unit, ROWS, inputs, {"target_label": came}, output_ids, envelope)


def spread_of(units):
    job = Job(
        id="job",
        policy=Policy.MAP,
        program=PROGRAM,
        numeric_class="fp32",
        label="",
        state=JobState.DONE,
        created_at=0,
        ended_at=1,
        units_total=UNITS,
        units_done=UNITS,
        units_failed=0,
    )
    receipts = tuple(each.unit.receipt for each in units)
    return Spread(job, tuple(units), receipts, Killed(PEERS[1], 6, UNITS, 2))


@pytest.fixture
def units():
    return [unit_of(index, KEYS[index % 3]) for index in range(UNITS)]


def problems_of(spread):
    return shares_of(spread, PEERS, UNITS * ROWS)[1]


def test_a_job_that_adds_up_has_no_problems(units):
    shares, problems = shares_of(spread_of(units), PEERS, UNITS * ROWS)
    assert problems == ()
    assert [share.peer for share in shares] == PEERS
    assert [(s.files, s.units, s.receipts_verified) for s in shares] == [(8, 4, 4)] * 3
    assert [share.killed for share in shares] == [False, True, False]
    assert shares[0].seconds == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"unit": "job/4"}, "unit"),
        ({"program": blob_id_of(b"another")}, "program"),
        ({"requester": PEERS[1]}, "requester"),
        ({"inputs": (("bytes", blob_id_of(b"another")),)}, "inputs"),
        ({"outputs": (("target_label", blob_id_of(b"another")),)}, "outputs"),
    ],
)
def test_a_receipt_about_something_else_is_a_problem(units, changes, word):
    units[3] = unit_of(3, KEYS[0], **changes)
    shares, problems = shares_of(spread_of(units), PEERS, UNITS * ROWS)
    (problem,) = problems
    assert problem.startswith(f"unit 3: its receipt's {word} is ")
    assert shares[0].receipts_verified == shares[0].units - 1


def test_a_receipt_with_a_changed_byte_is_a_problem(units):
    envelope = bytearray(units[3].envelope)
    envelope[-1] ^= 1
    units[3] = replace(units[3], envelope=bytes(envelope))
    (problem,) = problems_of(spread_of(units))
    assert problem.startswith("unit 3: the signature ")


def test_a_receipt_of_another_provider_than_the_units_is_a_problem(units):
    other = unit_of(3, KEYS[1])
    unit = msgspec.structs.replace(other.unit, provider=PEERS[2])
    units[3] = replace(other, unit=unit)
    assert any("receipt's provider" in problem for problem in problems_of(spread_of(units)))


def test_a_delivered_output_that_no_receipt_names_is_a_problem(units):
    changed = {"target_label": blob_id_of(b"what came instead")}
    units[3] = replace(units[3], output_ids=changed)
    (problem,) = problems_of(spread_of(units))
    assert problem.startswith("unit 3: its receipt's outputs are"[:-3])


def test_an_output_with_too_few_rows_is_a_problem(units):
    units[3] = replace(units[3], outputs={"target_label": np.zeros((1, 5), np.float32)})
    assert problems_of(spread_of(units)) == (
        "unit 3: its output target_label has 1 rows for 2 files",
    )


def test_a_lost_unit_is_a_problem(units):
    del units[3]
    assert any("exactly once" in problem for problem in problems_of(spread_of(units)))
    assert any("do not sum" in problem for problem in problems_of(spread_of(units)))


def test_a_unit_that_came_twice_is_a_problem(units):
    units.append(units[3])
    assert any("exactly once" in problem for problem in problems_of(spread_of(units)))


def test_a_second_receipt_for_a_unit_is_a_problem(units):
    spread = spread_of(units)
    spread = replace(spread, receipt_ids=(*spread.receipt_ids, blob_id_of(b"one more")))
    assert problems_of(spread) == (
        "the requester does not hold exactly one receipt for each unit",
    )


def test_a_node_that_ran_nothing_is_a_problem():
    units = [unit_of(index, KEYS[index % 2]) for index in range(UNITS)]
    assert problems_of(spread_of(units)) == (f"{PEERS[2]} ran no unit",)


@pytest.mark.parametrize("killed", [None, Killed(PEERS[1], UNITS, UNITS, 4)])
def test_a_large_job_during_which_nobody_was_killed_is_a_problem(units, killed):
    spread = replace(spread_of(units), killed=killed)
    assert problems_of(spread) == ("the job was over before a provider could be killed",)


def test_the_victim_is_a_provider_that_has_run_most_and_never_the_requester(units):
    ran = [each.unit for each in units]
    assert choose_victim(ran, REQUESTER) == max(PEERS[1:])  # both have run as many
    assert choose_victim([ran[0], ran[1], ran[2], ran[4]], REQUESTER) == PEERS[1]
    assert choose_victim([ran[0], ran[3]], REQUESTER) is None


def test_units_that_still_run_choose_no_victim(units):
    leased = msgspec.structs.replace(units[1].unit, state=UnitState.LEASED)
    assert choose_victim([leased], REQUESTER) is None


def test_time_in_which_two_units_overlap_counts_once():
    assert busy_s([(0, 1000), (500, 1500), (600, 700), (3000, 3250)]) == pytest.approx(1.75)
    assert busy_s([]) == 0


@pytest.mark.parametrize(("files", "each"), [(1, 1), (100, 1), (200, 3), (1000, 8)])
def test_more_files_make_larger_units_up_to_a_bound(files, each):
    assert files_per_unit(files) == each
