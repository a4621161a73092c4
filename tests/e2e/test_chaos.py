"""The faults of `tests/soak/test_chaos.py` for less than half a minute, by one seed."""

import os

from chaos import NODES, run_chaos, whose
from faults import COMMON, RARE, plan_faults

LENGTH_S = 25.0
FIXED_SEED = 5697
"""By it so short a time has every kind of fault but one, and every daemon is hurt."""

SEED = int(os.environ.get("SHOAL_SOAK_SEED", FIXED_SEED))


def test_every_unit_is_delivered_once_and_right_whatever_happens_to_daemons():
    run_chaos(SEED, LENGTH_S, units_wanted=400, units_per_job=50, jobs_limit_s=180, rest_s=1.5)


def test_so_short_a_time_has_all_faults_but_a_clock_that_goes_back_and_hurts_every_daemon():
    plan = plan_faults(FIXED_SEED, LENGTH_S, NODES, *whose(FIXED_SEED))
    assert {fault.kind for fault in plan} == {*COMMON, *RARE} - {"behind"}
    assert {fault.node for fault in plan} == set(range(1, NODES + 1))
    assert len(plan) >= 8


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
