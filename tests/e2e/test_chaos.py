"""The faults of `tests/soak/test_chaos.py` for two minutes, by seeds that stay the same."""

import os

from chaos import NODES, run_chaos
from faults import COMMON, RARE, plan_faults

LENGTH_S = 60.0
SEED = int(os.environ.get("SHOAL_SOAK_SEED", "6"))


def test_every_unit_is_delivered_once_and_right_whatever_happens_to_daemons():
    run_chaos(
        SEED, LENGTH_S, units_wanted=2000, units_per_job=100, jobs_limit_s=120, rest_s=1.5
    )


def test_a_seed_gives_its_faults_again_and_another_one_others():
    args = (LENGTH_S, NODES, 2, 3)
    assert plan_faults(SEED, *args) == plan_faults(SEED, *args) != plan_faults(8, *args)


def test_faults_are_of_every_kind_and_hurt_every_daemon_the_first_among_them():
    for seed in range(20):
        plan = plan_faults(seed, 300.0, NODES, 2, 3)
        assert {fault.kind for fault in plan} == {*COMMON, *RARE}
        assert {fault.node for fault in plan} == set(range(1, NODES + 1))
        assert max(fault.over_s for fault in plan) <= 300.0
        for one in plan:
            beside = [o for o in plan if o is not one and o.at_s <= one.at_s < o.over_s]
            assert one.node not in {other.node for other in beside}
            assert len(beside) < NODES / 2
