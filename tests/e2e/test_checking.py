"""Real daemons check one another's results, and find the provider that lies."""

from itertools import count

import models
import numpy as np
import pytest
import trio
from attacker import make_advert
from checking_nodes import Lies
from daemons import eventually, peers_of, shoal

from shoal.node.control import open_control
from shoal.node.network import open_network
from shoal.node.records import UnitState
from shoal.protocol.messages import Adverts, Digest

SEEDS = count(5000)
"""A program of its own for each test: where nobody was measured, the price decides."""

UNITS = 24


class LiesInExact(Lies):
    """It underbids everybody and gives well-formed tensors that are false."""

    def advert(self):
        places = [address.rpartition("/p2p/")[0] for address in self.network.addresses()]
        return make_advert(
            self.key,
            addresses=tuple(places),
            numeric_classes=("exact",),
            providing=True,
            lifetime_s=60.0,
        )

    async def answer(self, peer, body):
        if isinstance(body, Digest):
            return Adverts(adverts=((self.advert(), 0.0),))
        return await super().answer(peer, body)


def inputs():
    return {"x": np.arange(UNITS * models.WIDTH, dtype=np.float32).reshape(UNITS, models.WIDTH)}


def outputs_of(node, model, **options):
    """What a map gives, its units, and the checks of it by how they ended."""
    with node.client() as client:
        job = client.submit(
            model, [{"x": row[None]} for row in inputs()["x"]], numeric_class="exact", **options
        )
        found = [unit["y"] for unit in client.results(job.id)]
        return np.concatenate(found), client.units(job.id, 0, UNITS), client.why(job.id)[0]


@pytest.mark.parametrize("verify", ["sample:1", "auto", "quorum:2"])
async def test_a_liar_is_found_out_and_what_is_delivered_is_right(node, attacker_key, verify):
    model = models.dense(next(SEEDS))
    run = trio.to_thread.run_sync
    wanted, units, _ = await run(lambda: outputs_of(node, model, verify=verify))
    assert {unit.state for unit in units} == {UnitState.DONE}
    async with (
        open_network(attacker_key, ["/ip4/127.0.0.1/tcp/0"]) as network,
        open_control(network, "liar/1") as control,
    ):
        liar = LiesInExact(attacker_key, network)
        control.answer_with(liar.answer)
        await liar.network.connect(node.peer, [node.address.rpartition("/p2p/")[0]], 5.0)
        await run(lambda: eventually(lambda: liar.peer in peers_of(node), 10, "it is known"))
        found, units, answers = await run(lambda: outputs_of(node, model, verify=verify))
    assert found.tobytes() == wanted.tobytes()
    assert liar.asked  # it had its chance
    assert liar.peer not in {unit.provider for unit in units}
    assert (liar.peer, "found_false") in {(a.peer, a.verdict) for a in answers}


def test_a_policy_that_there_is_not_is_refused_before_anything_is_read(node):
    ended = shoal("run", "no-such.onnx", "--input=x=no.npy", "--verify=quorum:9", node=node)
    assert ended.code == 2
    assert "quorum has 2 to 7" in ended.stderr
    assert "sample:0.1" in ended.stderr
