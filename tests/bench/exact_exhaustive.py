"""Every float32 through every approximated function, beside the specified sequence.

Prints for each function how many of the 2^32 inputs it decides wrongly, which must be
none; how many it leaves in doubt, its domain's outside included; and the greatest
relative distance between approximation and specified value where it decides. Powers are
tried with some exponents, as ``pow:3``. A few minutes on two cores.

    python tests/bench/exact_exhaustive.py [name ...]
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numba
import numpy as np

from shoal.compute.exact.cpu import approximations, functions
from shoal.compute.exact.cpu.approximations import CLOSENESS_BITS
from shoal.compute.exact.cpu.floats import flushed

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = (
    "cos", "erf", "exp", "gelu", "gelu_near", "gelu_tanh", "log", "sigmoid", "sin", "softplus",
    "tanh", "pow:3", "pow:-1.5", "pow:0.333333", "pow:7.25",
)  # fmt: skip
PARTS = 64


def comparison(name: str) -> Callable[[int, int], tuple[int, int, float]]:
    """A compiled loop over the float32 of some bits: wrong ones, doubtful ones, distance."""
    approximation, specified = of_one_argument(name)

    @numba.njit(nogil=True, error_model="numpy")
    def compare(start, stop):
        wrong, doubtful, distance = 0, 0, 0.0
        for word in range(start, stop):
            x = np.float64(np.uint32(word).view(np.float32))
            near, doubt = approximation(x)
            true = specified(x)
            sure = doubt >= 0
            shown, right = np.float32(flushed(near)), np.float32(flushed(true))
            differs = shown.view(np.int32) != right.view(np.int32)
            wrong += sure & differs
            doubtful += not sure
            apart = abs(near - true) / abs(true)
            distance = max(distance, apart if sure & (abs(true) >= 2.0**-126) else 0.0)
        return wrong, doubtful, distance

    return compare


def of_one_argument(name: str) -> tuple[Callable[..., object], Callable[..., object]]:
    """The approximation and the specified sequence of a name."""
    name, _, exponent = name.partition(":")
    approximation = getattr(approximations, name)
    specified = getattr(functions, f"{name.removesuffix('_near')}64")
    if not exponent:
        return approximation, specified
    y = np.float64(np.float32(exponent))
    return numba.njit(lambda x: approximation(x, y)), numba.njit(lambda x: specified(x, y))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="name")
    wrong_at_all = 0
    edges = np.linspace(0, 1 << 32, PARTS + 1).astype(np.int64)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for name in parser.parse_args().names:
            began = time.perf_counter()
            parts = list(threads.map(comparison(name), edges[:-1], edges[1:]))
            wrong, doubtful = (sum(part[i] for part in parts) for i in (0, 1))
            distance = max(part[2] for part in parts)
            print(
                f"{name:12} wrong {wrong:6}   in doubt {doubtful / 2**32:8.4%}   "
                f"apart 2^{math.log2(distance or 2.0**-99):.1f} of 2^-{CLOSENESS_BITS}   "
                f"{time.perf_counter() - began:.0f} s",
                flush=True,
            )
            wrong_at_all += wrong
    sys.exit(wrong_at_all > 0)


if __name__ == "__main__":
    main()
