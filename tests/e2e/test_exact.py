"""The class exact over the swarm: whoever runs a unit, the same bits come back."""

from daemons import eventually
from models import dense, rows

from shoal.compute.exact.spec import SPEC_VERSION
from shoal.node.records import JobState
from shoal.protocol.statements import open_receipt


def offering_exact(node):
    """The peers that, as ``node`` has heard, offer the class exact."""
    with node.client() as client:
        return {view.peer for view in client.peers() if "exact" in view.numeric_classes}


def test_two_providers_give_the_same_bits_and_their_receipts_show_it(swarm):
    others = {node.peer for node in swarm.nodes[1:]}
    eventually(lambda: others <= offering_exact(swarm.nodes[0]), 120, "kernels are compiled")
    row = rows(3)
    units = [{"x": row}] * 24
    with swarm.nodes[0].client() as client:
        job = client.submit(dense(), units, numeric_class="exact", precision="x20")
        ended = client.wait(job.id, 120)
        assert (ended.state, ended.units_done) == (JobState.DONE, 24), ended.failure
        done = client.units(job.id, 0, 24)
        receipts = [open_receipt(client.receipt(unit.receipt)) for unit in done]
    assert len({receipt.provider for receipt in receipts}) >= 2
    assert len({receipt.outputs for receipt in receipts}) == 1
    assert {(r.numeric_class, r.precision, r.exact_spec) for r in receipts} == {
        ("exact", "x20", SPEC_VERSION)
    }
    assert len({receipt.program for receipt in receipts}) == 1
