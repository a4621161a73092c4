"""How long the longest property tests look for a counterexample."""

import os

THOROUGH = "SHOAL_SOAK_S" in os.environ
"""As in `make soak`; `make test` is for while one waits."""


def examples(thorough, least=10):
    """How many examples to draw where the soak draws ``thorough``; some in any case."""
    return thorough if THOROUGH else max(least, thorough // 8)
