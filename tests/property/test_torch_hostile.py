"""Whatever a program says, the executor ``torch`` runs it or refuses it by an error of ours."""

import subprocess
import sys
from pathlib import Path

from effort import THOROUGH

SEED, SPOILED = 2, 800 if THOROUGH else 150


def test_spoiled_models_are_run_or_refused_and_crash_nothing():
    script = Path(__file__).with_name("torch_hostile.py")
    done = subprocess.run(
        [sys.executable, str(script), str(SEED), str(SPOILED)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-2000:]
