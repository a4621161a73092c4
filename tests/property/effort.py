"""How long the longest property tests look for a counterexample."""

import os

THOROUGH = "SHOAL_SOAK_S" in os.environ
"""As in `make soak`; `make test` is for while one waits."""


def examples(thorough):
    """How many examples to draw where the soak draws ``thorough``."""
    return thorough if THOROUGH else max(20, thorough // 4)
