"""A job that is not to wait: it ends where nobody bids, and only there."""

import pytest
from checking_nodes import Peer, open_peers, open_requester

from shoal.node.records import JobState, UnitState


@pytest.fixture
async def node(tmp_path):
    async with open_requester(tmp_path) as node:
        yield node


class OneUnitEach(Peer):
    """Takes one unit under each lease."""

    def bid(self, request, **changes):
        return super().bid(request, **changes | {"units_max": 1})


@pytest.mark.parametrize("kinds", [(Peer,), (Peer, Peer), (OneUnitEach,)])
async def test_it_runs_where_units_go_out_before_the_lease_has_come(node, kinds):
    async with open_peers(node, *kinds):
        units = await node.run(range(3), verify="receipt", fail_fast=True)
        job = await node.journal.job(units[0].job)
    assert job.state is JobState.DONE, job.failure
    assert {unit.state for unit in units} == {UnitState.DONE}
