"""The libp2p host of running daemons is made to fail: jobs go on, and end once.

Both daemons live in the test's process, so that a part of libp2p can be ended.
"""

import numpy as np
import pytest
import trio
from daemons import clean_environment
from models import rows, slow

from shoal.node import admission, host
from shoal.node.client import AsyncClient
from shoal.node.config import load
from shoal.node.daemon import serve
from shoal.node.errors import NetworkError
from shoal.node.records import JobState

LIMIT_S = 60.0
UNITS = 12


async def eventually(condition, limit_s=LIMIT_S):
    with trio.fail_after(limit_s):
        while not await condition():  # noqa: ASYNC110  # nothing tells of it
            await trio.sleep(0.05)


async def start(nursery, home, **flags):
    settings = {"home": home, "listen": "/ip4/127.0.0.1/tcp/0", **flags}
    return await nursery.start(serve, load(settings, environment=clean_environment()))


async def test_a_job_outlives_two_failures_of_each_side_and_no_unit_counts_twice(
    nursery, tmp_path
):
    requester = await start(nursery, tmp_path / "requester", provide=False)
    address = requester.network.addresses()[0]
    flags = {"allow": requester.identity.peer_id, "bootstrap": address}
    provider = await start(nursery, tmp_path / "provider", **flags)
    batches = [{"x": rows(2) + index} for index in range(UNITS)]
    async with AsyncClient(requester.config.socket) as client:

        async def offers():
            return any(peer.numeric_classes for peer in await client.peers())

        await eventually(offers)
        job = await client.submit(slow(100_000), batches)
        for count, failing in enumerate((provider, requester, provider, requester)):

            async def progressed(wanted=count * 2 + 1):
                return (await client.job(job.id)).units_done >= wanted

            await eventually(progressed)
            failing.network._swarm.manager.cancel()  # ends as nothing of libp2p's should
        with trio.fail_after(LIMIT_S):
            job = await client.wait(job.id, timeout_s=LIMIT_S)
        assert (job.state, job.units_done) == (JobState.DONE, UNITS), job.failure
        assert len(set(await client.receipts(job.id))) == UNITS
        for index, batch in enumerate(batches):
            outputs = await client.outputs(job.id, index)
            np.testing.assert_allclose(outputs["y"], batch["x"])
    assert requester.network.statistics().restarts == 2
    assert provider.network.statistics().restarts == 2
    nursery.cancel_scope.cancel()


async def test_a_daemon_whose_host_keeps_failing_ends_with_a_named_error(tmp_path, monkeypatch):
    monkeypatch.setattr(admission, "RESTART_FIRST_S", 0.01)
    monkeypatch.setattr(admission, "RESTART_LIMIT_S", 0.01)

    async def fail(_self):
        raise ZeroDivisionError

    async def run(task_status):
        with pytest.raises(NetworkError, match="ZeroDivisionError") as caught:
            await serve(config, task_status=task_status)
        assert (caught.value.code, bool(caught.value.hint)) == ("host_failed", True)

    settings = {"home": tmp_path / "home", "listen": "/ip4/127.0.0.1/tcp/0"}
    config = load(settings, environment={})
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            daemon = await nursery.start(run)
            monkeypatch.setattr(host.Host, "_sweep", fail)
            daemon.network._swarm.manager.cancel()
