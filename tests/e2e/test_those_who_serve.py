"""`serve = "those-who-serve"` among two daemons that are strangers to each other."""

from contextlib import contextmanager

import models
import pytest
from daemons import eventually, shoal
from prometheus_client.parser import text_string_to_metric_families

from shoal.node.demo.swarm import Swarm
from shoal.node.ledger import ALLOWANCE_CREDITS
from shoal.node.records import JobState

UNITS = 256
JOBS_LIMIT = 8
"""A unit is about one credit on an idle device, and more on one that others use."""

JOB_LIMIT_S = 60.0
REFUSED_LIMIT_S = 60.0
OPTIONS = {"verify": "receipt", "time_limit_s": 60.0}


class Strangers(Swarm):
    """Daemons that have nobody on their allow lists."""

    def _friends(self, _node):
        return []


@pytest.fixture
def swarm():
    with Strangers(2, settings=["--serve=those-who-serve"]) as swarm:
        swarm.start_all()
        swarm.wait_acquainted(offering="fp32")
        yield swarm


@contextmanager
def paused(node):
    """A node that runs nothing, its own units neither, so that others get them."""
    assert shoal("pause", "--device=cpu", node=node).code == 0
    yield
    assert shoal("resume", "--device=cpu", node=node).code == 0


def submitted(node):
    with node.client() as client:
        units = ({"x": models.rows(1)} for _ in range(UNITS))
        return client.submit(models.dense(), units, **OPTIONS).id


def has_run(node, job_id, limit_s=JOB_LIMIT_S):
    with node.client() as client:
        return client.wait(job_id, limit_s).state is JobState.DONE


def credits_of(node, peer, direction):
    rows = shoal("ledger", peer, "--json", node=node).json["ledger"]["rows"]
    return sum(row["credits"] for row in rows if row["direction"] == direction)


def metric(node, name, **labels):
    with node.client() as client:
        text = client.metrics()
    (found,) = (
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if (sample.name, sample.labels) == (name, labels)
    )
    return found


def test_who_only_takes_is_refused_with_the_next_step_until_it_has_served(swarm):
    server, taker = swarm.nodes
    with paused(taker):
        for _ in range(JOBS_LIMIT):  # until its allowance is used up
            job_id = submitted(taker)
            if not has_run(taker, job_id, 20.0):
                break
        assert credits_of(server, taker.peer, "given") > ALLOWANCE_CREDITS
        refused = eventually(lambda: refusal(taker, job_id), REFUSED_LIMIT_S, "it is refused")
        assert "serves those who serve" in refused
        assert "take work of it" in refused
        assert "`shoal ledger" in refused
        assert taker.peer in shoal("ledger", "--json", node=server).json["ledger"]["in_debt"]

    with paused(server):
        while credits_of(server, taker.peer, "taken") < 0.9 * credits_of(
            server, taker.peer, "given"
        ):
            assert has_run(server, submitted(server))

    with paused(taker):
        assert has_run(taker, job_id)  # the one that had waited
        assert has_run(taker, submitted(taker))
    taken = metric(taker, "shoal_ledger_units_total", direction="taken")
    assert taken >= 2 * UNITS
    # What was given and overtaken meanwhile, nobody takes.
    assert metric(server, "shoal_ledger_units_total", direction="given") >= taken
    eventually(
        lambda: (
            metric(server, "shoal_ledger_acknowledged_units_total", direction="given") == taken
        ),
        60,
        "all that was taken is acknowledged",
    )
    assert metric(server, "shoal_unsettled_messages") == 0


def refusal(node, job_id):
    """What `job why` says of an untrusted requester, or nothing."""
    why = shoal("job", "why", job_id, node=node)
    return next((line for line in why.stdout.splitlines() if "serves those" in line), "")
