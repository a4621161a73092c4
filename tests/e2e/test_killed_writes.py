"""Kill -9 at some of the writes of a job's life, with real daemons; `make soak` has all."""

import pytest
from journal_samples import check_sound
from killed_daemon import KillingSwarm

KILLS = [(1, "before"), (1, "after"), (4, "after"), (7, "before")]


@pytest.fixture(scope="module")
def swarm():
    with KillingSwarm() as swarm:
        swarm.start_all()
        yield swarm


@pytest.mark.parametrize("kill", KILLS)
def test_a_job_is_delivered_once_through_a_kill_of_its_daemon_at_a_write(swarm, kill):
    assert swarm.live(kill)
    swarm.nodes[0].kill()
    check_sound(swarm.nodes[0].home / "state.sqlite")
