"""Jobs whose daemons are killed, stopped, cut off, and more; a seed says when and which.

``SHOAL_SOAK_S`` seconds long (60 when not set); ``SHOAL_SOAK_SEED`` repeats the faults.
"""

import os
import random

from chaos import run_chaos

SOAK_S = float(os.environ.get("SHOAL_SOAK_S", "60"))
SEED = int(os.environ.get("SHOAL_SOAK_SEED", str(random.SystemRandom().randrange(1 << 32))))


def test_every_unit_is_delivered_once_and_right_whatever_happens_to_daemons():
    run_chaos(SEED, SOAK_S, units_wanted=2000, units_per_job=100, jobs_limit_s=300)
