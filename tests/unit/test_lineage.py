"""Who has inputs of a unit already, and how often one is made anew."""

from shoal.crypto.content import blob_id_of
from shoal.crypto.peer_id import PeerId
from shoal.node.lineage import (
    COUNTED_LIMIT,
    RECOMPUTED_LIMIT,
    Left,
    Lineage,
    bytes_with,
    nearest,
)
from shoal.node.records import JobId, Unit, UnitState

JOB = JobId("0001")
ANNA, BERT = PeerId("anna"), PeerId("bert")
A, B, C = (blob_id_of(name) for name in (b"a", b"b", b"c"))
LEFT = {A: Left(ANNA, JOB, 0, 100), B: Left(BERT, JOB, 1, 60), C: Left(BERT, JOB, 2, 50)}


def unit(index, **inputs):
    return Unit(JobId("0002"), index, UnitState.QUEUED, inputs)


def test_the_peer_with_most_bytes_of_the_inputs_is_nearest():
    units = [unit(0, x=A, y=B), unit(1, x=A, y=B, z=C), unit(2, x=blob_id_of(b"here"))]
    assert bytes_with(LEFT, units[1:2]) == {ANNA: 100, BERT: 110}
    assert nearest(LEFT, units) == {0: ANNA, 1: BERT}


def test_a_unit_is_made_anew_so_often_and_no_more():
    lineage = Lineage()
    assert [lineage.again(JOB, 0) for _ in range(RECOMPUTED_LIMIT + 2)] == [
        True
    ] * RECOMPUTED_LIMIT + [False] * 2
    assert lineage.again(JOB, 1)


def test_of_very_many_units_those_are_forgotten_that_were_made_anew_first():
    lineage = Lineage()
    for index in range(COUNTED_LIMIT + 10):
        lineage.again(JOB, index)
    assert len(lineage._times) == COUNTED_LIMIT
    assert (JOB, 0) not in lineage._times
