"""The class exact over the swarm: whoever runs a unit, the same bits come back.

And what is claimed of it: measured, challenged, proven, and still so after a restart.
"""

import pytest
from daemons import eventually, shoal
from models import dense, rows

from shoal.compute.exact.spec import SPEC_VERSION
from shoal.node.records import JobState
from shoal.protocol.statements import open_receipt

pytestmark = pytest.mark.usefixtures("exact_swarm")
MEASURED_LIMIT_S = 120
SHOWN_LIMIT_S = 90


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
        job = client.submit(dense(), units, precision="x20")  # which no other class takes
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


# --- what is claimed ---------------------------------------------------------------------


def claims_about(node, peer):
    """What ``node`` lists of the class exact that ``peer`` claims."""
    with node.client() as client:
        views = [view for view in client.peers() if view.peer == peer]
    return next(
        (claim for view in views for claim in view.claims if claim.numeric_class == "exact"),
        None,
    )


def challenged(verifier, prover):
    """Challenge until it is shown: a machine that tests share may be busy for a while."""

    def shown():
        ended = shoal("challenge", prover.peer, "--json", node=verifier)
        found = ended.json.get("challenge", {})
        return found if (ended.code, found.get("outcome")) == (0, "shown") else None

    return eventually(shown, SHOWN_LIMIT_S, "the claim is shown")


def test_a_claim_is_measured_then_shown_and_counts_by_who_has_seen_it(swarm, stranger):
    asker, prover, other = swarm.nodes
    eventually(lambda: claims_about(asker, prover.peer), MEASURED_LIMIT_S, "it has measured")
    with stranger.client() as client:
        client.connect(asker.address)
        eventually(
            lambda: claims_about(stranger, prover.peer), 60, "the stranger has heard of it"
        )

    challenged(stranger, prover)
    claim = eventually(
        lambda: (found := claims_about(asker, prover.peer)).verifiers and found,
        60,
        "the advert brings the stranger's word",
    )
    assert claim.verifiers == (stranger.peer,)
    assert not claim.proven

    found = challenged(asker, prover)
    assert found["rows_checked"] == 64
    assert found["shown"] >= found["claimed"] / 3
    assert claims_about(asker, prover.peer).proven
    eventually(  # by the advert, since the asker is on its allow list
        lambda: claims_about(other, prover.peer).proven, 60, "a third node counts it"
    )
    table = shoal("peers", node=asker).stdout
    assert "GMAC/s proven" in table

    with prover.client() as client:
        before = client.capability()
    prover.kill()
    swarm.start(prover)
    swarm.wait_ready(prover)
    with prover.client() as client:
        after = eventually(
            lambda: (view := client.capability()).claims and view, 60, "the figures are back"
        )
    assert after.measured_at == before.measured_at
    exact = {claim.numeric_class: claim for claim in after.claims}["exact"]
    assert set(exact.verifiers) >= {asker.peer}


def test_a_node_vouches_neither_for_itself_nor_for_who_is_unknown(swarm):
    node = swarm.nodes[0]
    itself = shoal("challenge", node.peer, "--json", node=node)
    assert (itself.code, itself.json["error"]["code"]) == (1, "own_claim")
    unknown = shoal("challenge", "nobody", "--json", node=node)
    assert (unknown.code, unknown.json["error"]["code"]) == (1, "no_such_peer")
