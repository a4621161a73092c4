"""Kill -9 at each write of a job's life, right before and right after, with real daemons."""

from itertools import count

from journal_samples import check_sound
from killed_daemon import KillingSwarm

WRITES_LIMIT = 100
"""Of a job of six units: far more than it takes."""


def test_a_job_is_delivered_once_wherever_its_daemon_is_killed():
    with KillingSwarm() as swarm:
        swarm.start_all()
        for at in count(1):
            assert at < WRITES_LIMIT
            killed = [swarm.live((at, when)) for when in ("before", "after")]
            swarm.nodes[0].kill()
            check_sound(swarm.nodes[0].home / "state.sqlite")
            if not any(killed):  # the job ended with fewer writes
                break
        assert at > 6
