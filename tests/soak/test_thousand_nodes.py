"""A thousand nodes with the real machine, in 50 minutes of virtual time; a tenth of the
network is replaced each 10 minutes.

The long form takes some minutes of CPU. The short form has 250 nodes, whose adverts live a
quarter as long, and the same limits on what it may cost.
"""

import os

from simulated_swarm import measure, table

SOAK_S = float(os.environ.get("SHOAL_SOAK_S", "60"))
NODES, CHURN_S = (1_000, 2_400) if SOAK_S >= 600 else (250, 700)
GONE_LIMIT_S = 1_200 * NODES / 1_000
"""20 minutes at 1,000 nodes: the longest life of an advert there."""


def test_who_joins_is_known_and_who_dies_is_forgotten_at_a_cost_that_stays_small():
    results = [
        measure(10, warm_s=60, churn_s=CHURN_S, churn_share=1.0),
        measure(100, warm_s=120, churn_s=CHURN_S),
        measure(NODES, warm_s=NODES * 0.6, churn_s=CHURN_S, settle_s=60),
    ]
    print("\n" + table(results))
    most = results[-1]
    assert len(most.known_s) >= 0.9 * NODES * CHURN_S / 6_000 - 20
    assert max(most.known_s) <= 60
    assert most.unknown == 0
    assert len(most.gone_s) >= 10
    assert max(most.gone_s) <= GONE_LIMIT_S
    assert most.lingering == 0
    assert most.completeness > 0.99
    for result in results:
        assert max(result.sent_mean, result.received_mean) <= 2_048, result.by_kind
        assert result.cpu_mean <= 0.01
        assert result.links_least >= 4
        assert result.links_most <= 30
