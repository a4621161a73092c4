"""What it costs to start: processor time of commands and of a daemon, beside bare Python.

Prints seconds of user and system time, the least of several runs, and how many times what
``python -c pass`` takes that is. Never wall time: the processes of a test's swarm start
beside one another. No daemon runs, so a command ends at its first request; a daemon is
measured until its socket answers, its own process alone.

    python tests/bench/starting.py [--runs 10]
"""

from __future__ import annotations

import argparse
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

import psutil

SHOAL = (sys.executable, "-m", "shoal.node.cli")
COMMANDS = ("--help", "status", "jobs", "ledger")
STATUS_TARGET_S = 0.25


def of_command(command: list[str]) -> float:
    """Seconds of processor time of one run of a command."""
    before = getrusage(RUSAGE_CHILDREN)
    # 3 is its exit code where no daemon answers.
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = getrusage(RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def of_daemon(home: Path) -> float:
    """Seconds of processor time of a daemon's process until its socket answers."""
    daemon = subprocess.Popen(
        [*SHOAL, "up", "--home", str(home), "--listen", "/ip4/127.0.0.1/tcp/0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not answers(home / "shoal.sock"):
        assert daemon.poll() is None, "the daemon did not start"
        time.sleep(0.02)
    times = psutil.Process(daemon.pid).cpu_times()
    daemon.send_signal(signal.SIGINT)
    daemon.wait()
    return times.user + times.system


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as line:
        try:
            line.connect(str(path))
            line.sendall(b"GET /v1/status HTTP/1.1\r\nhost: shoal\r\n\r\n")
            return line.recv(100).startswith(b"HTTP/1.1 200")
        except OSError:
            return False


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    runs = range(parser.parse_args().runs)
    bare = min(of_command([sys.executable, "-c", "pass"]) for _ in runs)
    print(f"{'python -c pass':32} {bare:6.3f} s of CPU      1 x")
    with tempfile.TemporaryDirectory() as where:
        for command in COMMANDS:
            flags = [] if command == "--help" else ["--home", where]
            took = min(of_command([*SHOAL, command, *flags]) for _ in runs)
            line = f"{f'shoal {command}':32} {took:6.3f} s of CPU  {took / bare:5.0f} x"
            if command == "status":
                met = "met" if took <= STATUS_TARGET_S else "missed"
                line += f"   target <= {STATUS_TARGET_S} s   {met}"
            print(line)
    homes = [tempfile.TemporaryDirectory() for _ in runs]
    took = min(of_daemon(Path(home.name)) for home in homes)
    print(f"{'shoal up, until it answers':32} {took:6.3f} s of CPU  {took / bare:5.0f} x")
    for home in homes:
        home.cleanup()


if __name__ == "__main__":
    main()
