"""A thousand nodes with the real machine, in 50 minutes of virtual time; a tenth of the
network is replaced each 10 minutes.

The long form takes some 9 minutes of CPU. The short form has 250 nodes, whose adverts
live a quarter as long and are all as large as they may be, and the same limits on what it
may cost.
"""

import os

from simulated_swarm import ADVERT_BYTES, LARGEST_ADVERT_BYTES, measure, table

SOAK_S = float(os.environ.get("SHOAL_SOAK_S", "60"))
LONG = SOAK_S >= 600
NODES, CHURN_S = (1_000, 2_400) if LONG else (250, 700)
ADVERTS = ADVERT_BYTES if LONG else LARGEST_ADVERT_BYTES
GONE_LIMIT_S = 1_200 * NODES / 1_000
"""20 minutes at 1,000 nodes: the longest life of an advert there."""

WORST_LIMIT = 5
"""How much more than the mean may be the node pays that pays most: a bootstrap peer."""


def test_who_joins_is_known_and_who_dies_is_forgotten_at_a_cost_that_stays_small():
    def measured(nodes, warm_s, **how):
        return measure(nodes, warm_s=warm_s, churn_s=CHURN_S, advert_bytes=ADVERTS, **how)

    results = [
        measured(10, 60, churn_share=1.0),
        measured(100, 120),
        measured(NODES, NODES * 0.6, settle_s=60),
    ]
    print(f"\nadverts of {ADVERTS[0]} to {ADVERTS[1]} bytes\n{table(results)}")
    most = results[-1]
    for who, kinds in (("mean", most.by_kind), ("worst", most.worst_by_kind)):
        print(f"B/s sent, {who}:", {kind: round(size) for kind, size in kinds.items()})
    assert len(most.known_s) >= 0.9 * NODES * CHURN_S / 6_000 - 20
    assert max(most.known_s) <= 60
    assert most.unknown == 0
    assert len(most.gone_s) >= 10
    assert max(most.gone_s) <= GONE_LIMIT_S
    assert most.lingering == 0
    assert most.completeness > 0.99
    for result in results:
        assert max(result.sent_mean, result.received_mean) <= 2_048, result.by_kind
        assert result.sent_worst <= WORST_LIMIT * 2_048
        assert result.cpu_mean <= 0.01
        assert result.links_least >= 4
        assert result.links_most <= 30
