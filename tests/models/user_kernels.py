"""Kernels as users write them, and what hostile ones hold; lowered in a process of its own.

The tests' own process has Triton's interpreter on, under which nothing can be lowered:
`lowered` runs this file without it and reads what it wrote.
"""

import json
import os
import subprocess
import sys

import triton
import triton.language as tl
from triton.language.extra import libdevice

from shoal.compute.kernel_manifest import KernelProgram, decode
from shoal.crypto.content import blob_id_of


@triton.jit
def softmax(x, y, n, BLOCK: tl.constexpr):  # noqa: N803  # as Triton's kernels write it
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < n
    value = tl.load(x + row * n + column, mask=inside, other=-float("inf"))
    power = tl.exp(value - tl.max(value, 0))
    tl.store(y + row * n + column, power / tl.sum(power, 0), mask=inside)


@triton.jit
def add_multiply(x, z, y, n, factor, BLOCK: tl.constexpr):  # noqa: N803
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    total = factor * tl.load(x + at, mask=inside) + tl.load(z + at, mask=inside)
    tl.store(y + at, total, mask=inside)


@triton.jit
def product(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # noqa: N803
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        left = (row[:, None] < M) & (k[None, :] < K)
        right = (k[:, None] < K) & (column[None, :] < N)
        one = tl.load(a + row[:, None] * K + k[None, :], mask=left, other=0.0)
        two = tl.load(b + k[:, None] * N + column[None, :], mask=right, other=0.0)
        total = tl.dot(one, two, total)
    inside = (row[:, None] < M) & (column[None, :] < N)
    tl.store(c + row[:, None] * N + column[None, :], total, mask=inside)


@triton.jit
def count_up(x, n, limit, BLOCK: tl.constexpr):  # noqa: N803
    """In place, with a branch out and a loop whose turns are not known."""
    at = tl.arange(0, BLOCK)
    if n > limit:
        return
    value = tl.load(x + at, mask=at < n, other=0)
    turn = 0
    while turn < n:
        value += 1
        turn += 1
    tl.atomic_add(x + at, value, mask=at < n)


@triton.jit
def variety(x, y, n, BLOCK: tl.constexpr):  # noqa: N803
    """What many kernels use and the others here do not."""
    source = tl.make_block_ptr(x, (n,), (1,), (0,), (BLOCK,), (0,))
    at = tl.arange(0, BLOCK)
    for turn in tl.range(0, 4, num_stages=2):
        value = tl.load(source, boundary_check=(0,))
        value = tl.sort(value) + tl.rand(turn, at) + tl.cumsum(value, 0)
        value += tl.sigmoid(value) + tl.erf(value) + tl.math.exp2(value) + tl.floor(value)
        value = tl.where(tl.max(value, 0) > 1e-10, value, tl.softmax(value))
        half = value.to(tl.float16).to(tl.bfloat16).to(tl.float32)
        tl.atomic_add(y + at, tl.join(value, half).sum(1), mask=at < n)
        source = tl.advance(source, (BLOCK,))


@triton.jit
def assembly(x, y):
    value = tl.load(x)
    looped = tl.inline_asm_elementwise(
        "again: bra again; mov.b32 $0, $1;",
        "=r,r",
        [value],
        dtype=tl.float32,
        is_pure=False,
        pack=1,
    )
    tl.store(y, looped)


@triton.jit
def library(x, y):
    tl.store(y, libdevice.tanh(tl.load(x)))


@triton.jit
def output(x, y):
    value = tl.load(x)
    tl.device_print("value", value)
    tl.store(y, value)


@triton.jit(noinline=True)
def doubled(value):
    return value * 2


@triton.jit
def call(x, y):
    tl.store(y, doubled(tl.load(x)))


def programs():
    """The good ones by name."""
    from shoal.kernel import program

    return {
        "softmax": program(
            softmax,
            inputs={"x": "float32[rows, n]"},
            outputs={"y": "float32[rows, n]"},
            numbers={"n": "n"},
            constants={"BLOCK": 1024},
            grid=["rows"],
        ),
        "add_multiply": program(
            add_multiply,
            inputs={"x": "float32[n]", "z": "float32[n]"},
            outputs={"y": "float32[n]"},
            numbers={"n": "n", "factor": 3.0},
            constants={"BLOCK": 256},
            grid=[("n", 256)],
        ),
        "product": program(
            product,
            inputs={"a": "float32[m, k]", "b": "float32[k, n]"},
            outputs={"c": "float32[m, n]"},
            numbers={"M": "m", "N": "n", "K": "k"},
            constants={"BM": 32, "BN": 32, "BK": 32},
            grid=[("m", 32), ("n", 32)],
        ),
        "count_up": program(
            count_up,
            inputs={"x": "int64[n]"},
            outputs={"x": "int64[n]"},
            numbers={"n": "n", "limit": ("u64", 1 << 40)},
            constants={"BLOCK": 64},
            grid=[1],
            warps=1,
        ),
        "variety": program(
            variety,
            inputs={"x": "float32[n]"},
            outputs={"y": "float32[n]"},
            numbers={"n": "n"},
            constants={"BLOCK": 64},
            grid=[1],
        ),
    }


HOSTILE = {"assembly": assembly, "library": library, "output": output, "call": call}
"""What Triton lowers and no provider takes."""


def hostile_texts():
    """Their Triton IR by name, as somebody lowers it who leaves the rules out."""
    from shoal.compute.kernel_manifest import Argument
    from shoal.compute.user_kernels.lower import lower_text

    arguments = [Argument("x", "*fp32", None), Argument("y", "*fp32", None)]
    return {name: lower_text(kernel, arguments, {}) for name, kernel in HOSTILE.items()}


def lowered(directory):
    """Good programs, and hostile texts, by name: lowered in a process without interpreter.

    Args:
        directory: An empty one.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, __file__, str(directory)], check=True, env=environment)
    written = json.loads((directory / "all.json").read_text())
    good = {}
    for name, blobs in written["programs"].items():
        made = [blob.encode("latin-1") for blob in blobs]
        by_id = {blob_id_of(blob): blob for blob in made}
        good[name] = KernelProgram(blob_id_of(made[0]), decode(made[0]), by_id)
    return good, {name: text.encode() for name, text in written["hostile"].items()}


def main():
    from pathlib import Path

    made = {
        name: [blob.decode("latin-1") for blob in one.blobs.values()]
        for name, one in programs().items()
    }
    hostile = {name: text.decode() for name, text in hostile_texts().items()}
    text = json.dumps({"programs": made, "hostile": hostile})
    (Path(sys.argv[1]) / "all.json").write_text(text)


if __name__ == "__main__":
    main()
