"""Claims between real daemons: measured, challenged, proven, and still so after a restart."""

from daemons import eventually, shoal

MEASURED_LIMIT_S = 120
SHOWN_LIMIT_S = 90


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
            lambda: claims_about(stranger, prover.peer), 30, "the stranger has heard of it"
        )

    challenged(stranger, prover)
    claim = eventually(
        lambda: (found := claims_about(asker, prover.peer)).verifiers and found,
        30,
        "the advert brings the stranger's word",
    )
    assert claim.verifiers == (stranger.peer,)
    assert not claim.proven

    found = challenged(asker, prover)
    assert found["rows_checked"] == 64
    assert found["shown"] >= found["claimed"] / 3
    assert claims_about(asker, prover.peer).proven
    eventually(  # by the advert, since the asker is on its allow list
        lambda: claims_about(other, prover.peer).proven, 30, "a third node counts it"
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
