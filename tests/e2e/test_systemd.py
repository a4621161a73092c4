"""The units in deploy/systemd: as systemd reads them, and as a daemon lives under them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import models
import numpy as np
import pytest
from daemons import SHOAL, clean_environment, eventually, shoal
from under_unit import environment, filtered, service

from shoal.node.config import load, unknown_variables
from shoal.node.daemon_place import SYSTEM_SOCKET
from shoal.node.demo.swarm import Node
from shoal.node.errors import DaemonUnreachableError

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
SYSTEM, USER = UNITS / "system" / "shoal.service", UNITS / "user" / "shoal.service"
KNOWN_SINCE_254 = ("RestartSteps", "RestartMaxDelaySec")
EXPOSURE_LIMIT = 2.5
"""Of 10, by systemd's own count; GPUs, a network and other processes' figures are needed."""

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="systemd-analyze, which reads units, is not installed: apt-get install systemd",
)


def analyze(unit, tmp_path, *arguments):
    """Let systemd look at a unit whose program is a program of this machine."""
    copy = tmp_path / "shoal.service"
    copy.write_text(re.sub(r"=\S*/bin/shoal ", f"={sys.executable} ", unit.read_text()))
    done = subprocess.run(
        ["systemd-analyze", *arguments, str(copy)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)},
    )
    told = [line for line in done.stderr.splitlines() if line]
    return done, [line for line in told if not any(key in line for key in KNOWN_SINCE_254)]


@needs_systemd
@pytest.mark.parametrize("unit", [SYSTEM, USER], ids=["system", "user"])
def test_systemd_has_nothing_to_say_against_a_unit(unit, tmp_path):
    manager = ["--user"] if unit == USER else []
    done, told = analyze(unit, tmp_path, *manager, "verify", "--man=no")
    assert (done.returncode, told) == (0, []), done.stderr
    broken = tmp_path / "broken.service"
    broken.write_text(unit.read_text().replace("Type=notify", "Type=telepathy"))
    assert analyze(broken, tmp_path, *manager, "verify", "--man=no")[1]


@needs_systemd
def test_the_system_unit_is_exposed_by_what_it_needs_alone(tmp_path, capsys):
    done, _ = analyze(SYSTEM, tmp_path, "security", "--offline=true", "--no-pager")
    said = re.search(r"Overall exposure level for shoal.service: ([0-9.]+)", done.stdout)
    assert said, done
    with capsys.disabled():
        print(f"\n{said[0]}")
    assert float(said[1]) <= EXPOSURE_LIMIT, done.stdout


@needs_systemd
def test_the_user_of_the_system_unit_is_made_by_sysusers():
    made = (UNITS / "sysusers.d" / "shoal.conf").read_text()
    assert re.search(f"^u {service(SYSTEM)['User']} ", made, re.MULTILINE)
    if shutil.which("systemd-sysusers") is None:
        pytest.skip("systemd-sysusers is not installed")
    done = subprocess.run(
        ["systemd-sysusers", "--dry-run", str(UNITS / "sysusers.d" / "shoal.conf")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_unit_sets_what_a_daemon_reads_and_the_socket_that_clients_look_for(tmp_path):
    for unit in (SYSTEM, USER):
        assert unknown_variables(environment(unit)) == ()
    found = load({}, environment(SYSTEM))
    assert found.socket == SYSTEM_SOCKET
    assert SYSTEM_SOCKET.parent == Path("/run") / service(SYSTEM)["RuntimeDirectory"]
    assert found.home == Path("/var/lib") / service(SYSTEM)["StateDirectory"]
    assert found.socket_group == service(SYSTEM)["Group"]
    assert found.drain_s == 60.0


def test_memory_that_is_written_and_executed_stays_allowed_for_the_compilers():
    for unit in (SYSTEM, USER):
        assert "MemoryDenyWriteExecute" not in service(unit)
        assert "PrivateDevices" not in service(unit)


@needs_systemd
@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc, which knows the calls' numbers")
def test_a_daemon_and_its_workers_live_within_the_system_calls_of_the_units(exact, tmp_path):
    assert filtered(SYSTEM) == filtered(USER)
    node = Node(9, tmp_path / "home", "")
    node.home.mkdir()
    with node.log_path.open("wb") as log:
        node.process = subprocess.Popen(
            [
                *(sys.executable, "-P", str(Path(__file__).parent / "under_unit.py"), SYSTEM),
                *(*SHOAL, "up", f"--home={node.home}", "--listen=/ip4/127.0.0.1/tcp/0"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=clean_environment(),
        )

    def offers_exact():
        assert node.running, node.last_words()
        try:
            with node.client() as client:
                offered = client.devices()[0].executors
        except DaemonUnreachableError:
            return False
        return any("exact" in str(each) for each in offered)

    try:
        eventually(offers_exact, 60, "its executors were probed")
        with node.client() as client:
            assert client.status().sandboxed, client.status().sandbox
            for numeric_class in ("fp32", "exact"):
                found = client.run(
                    models.dense(),
                    {"x": models.rows(3)},
                    timeout_s=60,
                    numeric_class=numeric_class,
                )
                assert found["y"].shape == np.shape(models.rows(3))
        ended = shoal("down", node=node)
        assert ended.code == 0, ended
        assert node.process.wait(60) == 0
    finally:
        node.kill()
