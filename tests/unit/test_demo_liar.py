"""The demo's liar and what is made of it, without daemons."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from shoal.compute.exact.leaves import OperatorLeaf, decode_operator_leaf, leaf_bytes
from shoal.compute.tensor import from_blob, to_blob
from shoal.compute.unit_runs import Execution, UnitRun
from shoal.crypto.content import blob_id_of
from shoal.node.assurance import Assurance, Ground
from shoal.node.demo import liar
from shoal.node.demo.conviction import Caught, caught_in

TRUE = to_blob(np.array([[0.25, 1.5]], np.float32))


@pytest.fixture(autouse=True)
def _forget():
    yield
    liar.told.clear()


@pytest.fixture
def signed(monkeypatch):
    """What the honest step was given to sign."""
    runs = []

    async def write(_house, _side, _request, run, _room):
        runs.append(run.outcome.outputs)

    monkeypatch.setattr(liar, "write_honestly", write)
    return runs


def test_one_bit_of_a_tensor_is_turned():
    false = liar.with_one_bit_turned(TRUE)
    before, after = (np.frombuffer(blob, np.uint8) for blob in (TRUE, false))
    assert np.bitwise_count(before ^ after).sum() == 1
    np.testing.assert_allclose(from_blob(false), from_blob(TRUE), rtol=1e-6)


def test_a_tensor_without_elements_has_no_bit_to_turn():
    empty = to_blob(np.zeros((0, 3), np.float32))
    assert liar.with_one_bit_turned(empty) == empty


@pytest.mark.parametrize(("requester", "lies"), [("stranger", True), ("own", False)])
async def test_it_lies_to_others_and_bends_its_trace_to_match(signed, requester, lies):
    house, side = SimpleNamespace(peer_id="own"), SimpleNamespace(requester=requester)
    run = UnitRun({}, outcome=Execution({"y": TRUE}, 0.1, "exact"))
    await liar.write_receipt(house, side, None, run)
    (given,) = signed
    assert (given["y"] != TRUE) == lies
    true_id, given_id = blob_id_of(TRUE), blob_id_of(given["y"])
    leaf = leaf_bytes(OperatorLeaf(3, "Div", 18, (blob_id_of(b"a"), None), (true_id, None)))
    bent = decode_operator_leaf(liar.bent(leaf))
    assert bent.outputs == (given_id, None)
    assert bent.inputs == (blob_id_of(b"a"), None)


CAUGHT = Caught("liar", 32, false=2, checked_by=("bob",), proof="f", verdict="convicted")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"delivered": 1}, "1 results of the node that lies were delivered"),
        ({"false": 0}, "no result of the node that lies was found false"),
        ({"proof": ""}, "the node that lies was not convicted by a proof"),
        ({"verdict": ""}, "the proof against the node that lies was not confirmed offline"),
    ],
)
def test_what_does_not_go_as_it_must_is_a_problem(changes, problem):
    assert replace(CAUGHT, **changes).problems == (() if problem is None else (problem,))


class Told:
    """Stands for a client."""

    def __init__(self, units):
        self._units = units

    def units(self, _job, _offset, _limit):
        return [SimpleNamespace(index=i, provider=peer) for i, (peer, *_) in self._listed]

    @property
    def _listed(self):
        return list(enumerate(self._units))

    def assurance(self, _job, _offset, _limit):
        return None, [
            Assurance(i, Ground.OWN, "", "", "", "", verifiers=good, differed=bad)
            for i, (_, good, bad) in self._listed
        ]


def test_who_ran_again_what_the_liar_ran_has_caught_it():
    client = Told(
        [
            ("own", (), ()),
            ("bob", ("own",), ("liar",)),
            ("own", (), ("liar", "eve")),
            ("ann", ("bob",), ()),
        ]
    )
    caught = caught_in(client, SimpleNamespace(id="j", units_total=4), "liar")
    assert (caught.units, caught.false, caught.delivered) == (4, 2, 0)
    assert caught.checked_by == ("bob", "own")
    again = Told([("liar", ("bob",), ())])
    assert caught_in(again, SimpleNamespace(id="j", units_total=1), "liar").delivered == 1
