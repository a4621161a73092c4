"""How a real worker stands behind the owner's processes."""

import os
from pathlib import Path

import psutil
import pytest

from shoal.compute.priority import LOWEST
from shoal.compute.supervisor import open_worker


def threads_of(pid):
    return [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]


def session_of(pid):
    try:
        return Path(f"/proc/{pid}/autogroup").read_text().strip()
    except OSError:
        return ""


@pytest.mark.parametrize("niceness", [7, LOWEST])
async def test_every_thread_of_a_worker_yields_once_it_is_ready(niceness):
    async with open_worker(threads=2, niceness=niceness) as worker:
        await worker.probe()
        (pid,) = worker.pids.values()
        found = {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads_of(pid)}
        assert found == {niceness}
        assert psutil.Process(pid).ionice().ioclass == psutil.IOPRIO_CLASS_IDLE


async def test_a_worker_yields_as_a_session_too_where_the_kernel_counts_sessions():
    async with open_worker(threads=1, niceness=LOWEST) as worker:
        await worker.probe()
        (pid,) = worker.pids.values()
        said = session_of(pid)
        if not said:
            pytest.skip("this kernel has no autogroups")
        assert said.split()[-2:] == ["nice", str(LOWEST)]
