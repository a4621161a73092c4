"""`tests/bench/exact_invariance.py`, short: one id in the exact class, several in floats."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench" / "exact_invariance.py"


@pytest.mark.soak  # for the other instruction set all kernels are compiled
def test_models_have_one_id_under_all_settings_and_float32_has_several():
    done = subprocess.run(
        [sys.executable, str(BENCH), "--short"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "exact: 0 ids differ" in done.stdout
    assert "ONNX Runtime: 0 ids differ" not in done.stdout
    executed = done.stdout.partition("\nexecuted\n")[2]
    assert "Nehalem" in executed
    assert "xmm" in executed
