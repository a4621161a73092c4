"""The exact class's CPU kernels beside torch's float32 ones, in one run, on 2 threads.

Prints a table: best times of both, taken in turns so that a busy machine is busy for
both, their ratio, its target and a verdict. Tensors of the elementwise and row kernels
are 64 MB, which no cache holds. Freed memory stays with the process: otherwise most of
torch's time here would be the kernel's, clearing the pages of each new tensor.

    python tests/bench/exact_kernels.py [--seconds 0.6]
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shoal.compute.exact.cpu import CpuKernels
from shoal.compute.exact.spec import PRECISIONS, X20

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded
try:
    import torch
    import torch.nn.functional as F  # noqa: N812  # as everybody writes it
except ModuleNotFoundError:
    sys.exit("this compares with PyTorch: pip install --constraint constraints.txt torch")

THREADS = 2
LEAVES_THE_CACHE = (8192, 2048)
NO_TARGET = float("inf")


@dataclass(frozen=True)
class Pair:
    """Two ways to the same result, and how many times longer ours may take."""

    name: str
    theirs: Callable[[], object]
    ours: Callable[[], object]
    target: float = NO_TARGET


def best_times_ms(pair: Pair, seconds: float) -> tuple[float, float]:
    """The shortest time of each, measured in turns for about that long."""
    best = [float("inf"), float("inf")]
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 3 or time.perf_counter() < end:
        for index, run in enumerate((pair.theirs, pair.ours)):
            began = time.perf_counter()
            run()
            best[index] = min(best[index], (time.perf_counter() - began) * 1e3)
        rounds += 1
    return best[0], best[1]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(shape, dtype=np.float32)


def products(kernels: CpuKernels) -> Iterator[Pair]:
    """Cached weights, weights quantised in each call, single tokens, attention."""
    for m, k, n, target, fresh_target in (
        (1024, 1024, 1024, 2.5, 3.0),
        (2048, 2048, 2048, 2.5, 3.0),
        (1, 4096, 4096, 3.0, None),
        (8, 4096, 4096, NO_TARGET, None),
        (64, 4096, 4096, 3.0, None),
        (4096, 384, 1536, NO_TARGET, None),
    ):
        a, b = normal(m, k), normal(k, n)
        ta, tb = torch.from_numpy(a), torch.from_numpy(b)
        weights = kernels.prepare(b, X20, "column")
        yield Pair(
            f"product {m}x{k}x{n}, cached",
            lambda ta=ta, tb=tb: ta @ tb,
            lambda a=a, weights=weights: kernels.product(a, weights, X20, "column"),
            target,
        )
        if fresh_target is not None:
            yield Pair(
                f"product {m}x{k}x{n}, fresh",
                lambda ta=ta, tb=tb: ta @ tb,
                lambda a=a, b=b: kernels.product(a, b, X20, "column"),
                fresh_target,
            )
    a, b = normal(1024, 1024), normal(1024, 1024)
    ta, tb = torch.from_numpy(a), torch.from_numpy(b)
    for name in ("x16", "x8"):
        precision = PRECISIONS[name]
        weights = kernels.prepare(b, precision, "column")
        yield Pair(
            f"product 1024x1024x1024, {name}",
            lambda: ta @ tb,
            lambda weights=weights, precision=precision: kernels.product(
                a, weights, precision, "column"
            ),
        )
    for name, axis, shape in (
        ("Q K^T", "column", (128, 32, 128)),
        ("P V", "k", (128, 128, 32)),
    ):
        m, k, n = shape
        a3, b3 = normal(384, m, k), normal(384, k, n)
        ta3, tb3 = torch.from_numpy(a3), torch.from_numpy(b3)
        yield Pair(
            f"attention {name}, 384 heads",
            lambda ta3=ta3, tb3=tb3: ta3 @ tb3,
            lambda a3=a3, b3=b3, axis=axis: kernels.products(a3, b3, X20, axis),
        )


def elementwise(kernels: CpuKernels) -> Iterator[Pair]:
    """Functions and operations, on tensors that leave the cache."""
    x, y = normal(*LEAVES_THE_CACHE), np.abs(normal(*LEAVES_THE_CACHE)) + np.float32(0.1)
    row, masked = normal(LEAVES_THE_CACHE[1]), normal(1, LEAVES_THE_CACHE[1])
    masked[:, ::5] = -np.inf
    tx, ty, trow = (torch.from_numpy(v) for v in (x, y, row))
    tmasked = torch.from_numpy(masked)
    unary = {
        "exp": torch.exp, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "erf": torch.erf,
        "gelu": F.gelu, "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"),
        "softplus": F.softplus, "relu": F.relu, "neg": torch.neg, "sin": torch.sin,
    }  # fmt: skip
    for name, theirs in unary.items():
        yield Pair(name, lambda f=theirs: f(tx), lambda name=name: kernels.unary(name, x), 1.5)
    for name, theirs in {"log": torch.log, "sqrt": torch.sqrt}.items():
        yield Pair(name, lambda f=theirs: f(ty), lambda name=name: kernels.unary(name, y), 1.5)
    for name, theirs in {
        "add": torch.add, "mul": torch.mul, "div": torch.div, "max": torch.maximum,
    }.items():  # fmt: skip
        yield Pair(
            name, lambda f=theirs: f(tx, ty), lambda name=name: kernels.binary(name, x, y), 1.5
        )
    yield Pair("add a row", lambda: tx + trow, lambda: kernels.binary("add", x, row), 1.5)
    yield Pair(
        "add a mask", lambda: tx + tmasked, lambda: kernels.binary("add", x, masked), 1.5
    )
    two = np.float32([2.0])
    yield Pair("square", lambda: tx**2, lambda: kernels.binary("pow", x, two), 1.5)
    cubed = np.float32([3.0])
    yield Pair("pow(x, 3.0)", lambda: ty**3.0, lambda: kernels.binary("pow", y, cubed))


def rows(kernels: CpuKernels) -> Iterator[Pair]:
    """Normalisation, softmax and reductions, on tensors that leave the cache."""
    x = normal(*LEAVES_THE_CACHE)
    n = LEAVES_THE_CACHE[1]
    w, b = normal(1, n), normal(1, n)
    tx, tw, tb = torch.from_numpy(x), torch.from_numpy(w[0]), torch.from_numpy(b[0])
    yield Pair(
        "layer norm",
        lambda: F.layer_norm(tx, (n,), tw, tb, 1e-5),
        lambda: kernels.layer_norm_rows(x, w, b, 1e-5),
        1.5,
    )
    yield Pair(
        "RMS norm",
        lambda: F.rms_norm(tx, (n,), tw, 1e-5),
        lambda: kernels.rms_norm_rows(x, w, 1e-5),
        1.5,
    )
    channels = np.abs(normal(4, 64)) + np.float32(0.1)
    images = x.reshape(64, 64, -1)
    timages, tchannels = torch.from_numpy(images), torch.from_numpy(channels)
    yield Pair(
        "batch norm",
        lambda: F.batch_norm(timages, tchannels[2], tchannels[3], tchannels[0], tchannels[1]),
        lambda: kernels.batch_norm(images, *channels, 1e-5),
        1.5,
    )
    yield Pair("softmax", lambda: torch.softmax(tx, -1), lambda: kernels.softmax_rows(x), 1.5)
    yield Pair("sum of rows", lambda: tx.sum(-1), lambda: kernels.reduce_rows("sum", x), 1.5)
    yield Pair("max of rows", lambda: tx.amax(-1), lambda: kernels.reduce_rows("max", x), 1.5)


def keep_freed_memory() -> None:
    """Tell malloc to take no memory from the kernel that it gives back."""
    trim_threshold, mmap_max = -1, -4  # glibc's malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(trim_threshold, (1 << 31) - 1)
    libc.mallopt(mmap_max, 0)


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.6, help="for each line")
    seconds = parser.parse_args().seconds
    torch.set_num_threads(THREADS)
    kernels = CpuKernels(THREADS)
    kernels.warm_up()
    print(f"{'':36}{'torch ms':>10}{'exact ms':>10}{'ratio':>8}{'target':>8}")
    with torch.inference_mode():
        for group in (products, elementwise, rows):
            for pair in group(kernels):
                theirs, ours = best_times_ms(pair, seconds)
                ratio = ours / theirs
                aim, verdict = "", ""
                if pair.target < NO_TARGET:
                    aim = f"{pair.target:.1f}"
                    verdict = "met" if ratio <= pair.target else "MISSED"
                print(
                    f"{pair.name:36}{theirs:10.2f}{ours:10.2f}{ratio:8.2f}{aim:>8}  {verdict}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
