"""What a daemon costs when it does nothing: start, memory, processor time.

Prints a table of measured values beside their targets, for a daemon alone and
for one with two links. The daemon's own process only; its worker is named apart.

    python tests/bench/idle.py [--seconds 60]
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from shoal.node.client import Client

START_TARGET_S, MEMORY_TARGET_MB, CPU_TARGET_PERCENT = 2.0, 150.0, 1.0


def start(home: Path, *flags: str) -> tuple[subprocess.Popen[bytes], float]:
    """Start a daemon; gives its process and the seconds until ``status`` answered."""
    home.mkdir(exist_ok=True)
    log = (home / "daemon.log").open("wb")
    began = time.perf_counter()
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", "from shoal.node.cli import main; main()", "up"),
            *("--home", str(home), "--listen", "/ip4/127.0.0.1/tcp/0", *flags),
        ],
        stdout=log,
        stderr=log,
    )
    while True:
        try:
            with Client(socket=home / "shoal.sock") as client:
                client.status()
        except Exception:  # noqa: BLE001 - not there yet, in whatever way
            assert process.poll() is None, (home / "daemon.log").read_text()
            time.sleep(0.01)
        else:
            return process, time.perf_counter() - began


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def measure(label: str, process: subprocess.Popen[bytes], seconds: float) -> None:
    """Print memory and processor time of one idle daemon."""
    seen = psutil.Process(process.pid)
    workers = seen.children(recursive=True)
    before, began = cpu_s(seen), time.perf_counter()
    time.sleep(seconds)
    percent = 100 * (cpu_s(seen) - before) / (time.perf_counter() - began)
    memory_mb = seen.memory_info().rss / 1e6
    worker_mb = sum(worker.memory_info().rss for worker in workers) / 1e6
    row(f"resident memory, {label}", memory_mb, MEMORY_TARGET_MB, "MB")
    row(f"processor time over {seconds:.0f} s, {label}", percent, CPU_TARGET_PERCENT, "%")
    print(f"  (its idle worker process holds {worker_mb:.0f} MB)")


def row(what: str, value: float, target: float, unit: str) -> None:
    verdict = "met" if value <= target else f"missed by {100 * (value / target - 1):.0f} %"
    print(f"{what:<48} {value:8.2f} {unit:<3} target <= {target:g} {unit:<3} {verdict}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as directory:
        homes = [Path(directory) / f"node{k}" for k in range(3)]
        running: list[subprocess.Popen[bytes]] = []
        try:
            starts = []
            for attempt in range(3):
                process, took_s = start(homes[0])
                starts.append(took_s)
                if attempt < 2:
                    process.send_signal(signal.SIGTERM)
                    process.wait(20)
            running.append(process)
            row("start to first status, best of 3", min(starts), START_TARGET_S, "s")
            row("start to first status, worst of 3", max(starts), START_TARGET_S, "s")
            time.sleep(5)  # the worker's canary
            measure("alone", process, seconds)
            with Client(socket=homes[0] / "shoal.sock") as client:
                address = client.status().addresses[0]
            running += [start(home, "--bootstrap", address)[0] for home in homes[1:]]
            time.sleep(8)
            with Client(socket=homes[0] / "shoal.sock") as client:
                assert client.status().peers_linked == 2
            measure("with 2 links", process, seconds)
        finally:
            for process in running:
                process.send_signal(signal.SIGTERM)
            for process in running:
                process.wait(20)
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
