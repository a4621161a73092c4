"""A swarm's daemons end with the process that has started them, however that is told to."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from daemons import clean_environment, eventually

BENCHES = Path(__file__).parents[1] / "bench"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_benchmark_that_is_told_to_end_leaves_no_daemon(tmp_path, number):
    """It stands for each of `tests/bench` that has daemons, which ``timeout`` may end."""
    code = f"""
        import sys, time
        sys.path.insert(0, {str(BENCHES)!r})
        from two_daemons import Swarm
        with Swarm(2) as swarm:
            for node in swarm.nodes:
                swarm.start(node)
            print(*(node.process.pid for node in swarm.nodes), flush=True)
            time.sleep(120)
    """
    bench = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=clean_environment() | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    pids = []
    try:
        pids = [int(pid) for pid in bench.stdout.readline().split()]
        assert len(pids) == 2
        bench.send_signal(number)
        assert bench.wait(60) != 0
        eventually(lambda: not any(map(is_there, pids)), 60, "they are gone")
    finally:
        bench.kill()
        for pid in filter(is_there, pids):
            os.kill(pid, signal.SIGKILL)
    assert list(tmp_path.glob("shoal-swarm-*")) == []


def is_there(pid):
    return Path(f"/proc/{pid}").exists()
