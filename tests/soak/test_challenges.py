"""Challenges in numbers: the honest always pass, also on a busy machine, and liars never.

The long form is that of `tests/bench/challenge.py`: 100 challenges of each kind, at 0.5 s
each. The short form makes a tenth of them, and forgives the machine one hiccup: a neighbour
that takes it for half a second is no fault of the code's.
"""

import importlib.util
import os
from pathlib import Path

BENCH = Path(__file__).parents[1] / "bench" / "challenge.py"
SOAK_S = float(os.environ.get("SHOAL_SOAK_S", "60"))
RUNS, HICCUPS = (100, 0) if SOAK_S >= 600 else (10, 1)


def bench():
    spec = importlib.util.spec_from_file_location("challenge_bench", BENCH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_the_honest_pass_also_beside_busy_cores_and_four_times_the_rate_fails():
    honest, busy, lie = await bench().run_all(RUNS, 0.5)
    assert honest.outcomes["passed"] >= RUNS - HICCUPS
    assert busy.outcomes["passed"] >= RUNS - HICCUPS
    assert lie.outcomes == {"too_slow": RUNS}
