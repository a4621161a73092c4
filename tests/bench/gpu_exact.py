"""The exact class on a card, beside what the card's own libraries do, in one run.

Medians by device events over random data. Three tables: square products beside cuBLAS in
fp32 (TF32 off) and bf16; elementwise and row kernels as a share of the bandwidth that a
copy has; MiniLM beside torch in fp32 (TF32 off). The way by float64 stands beside the
digits. It needs a card, and is what `docs/gpu.md` keeps the figures of.

    python tests/bench/gpu_exact.py [--sizes 4096 8192] [--models]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import TYPE_CHECKING

import torch
import triton

from shoal.compute.exact.gpu import elementwise, products, rows
from shoal.compute.exact.gpu.card import Card
from shoal.compute.exact.gpu.kernels import CardKernels
from shoal.compute.exact.spec import PRECISIONS

if TYPE_CHECKING:
    from collections.abc import Callable

TARGETS = {"x20": ("fp32", 1.5), "x16": ("bf16", 0.25), "x8": ("bf16", 1.0)}
"""How many times as fast as which of the vendor's products it should be."""
BANDWIDTH_SHARE = 0.7
MINILM_RATIO = 2.0


def median_ms(run: Callable[[], object], rounds: int = 20) -> float:
    """The median time of a call on the card, after three that are not counted."""
    for _ in range(3):
        run()
    times = []
    for _ in range(rounds):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        run()
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended))
    return statistics.median(times)


def verdict(value: float, target: float, *, least: bool = True) -> str:
    """The target, and whether it is met."""
    met = value >= target if least else value <= target
    return f"{'≥' if least else '≤'} {target:g} {'met' if met else 'MISSED'}"


def product_table(card: Card, size: int) -> None:
    """Square products of one size."""
    a, b = (torch.randn(size, size, device=card.device) for _ in range(2))
    low_a, low_b = a.bfloat16(), b.bfloat16()
    theirs = {
        "fp32": median_ms(lambda: torch.matmul(a, b)),
        "bf16": median_ms(lambda: torch.matmul(low_a, low_b)),
    }
    teraflops = 2 * size**3 / 1e9
    for name, ms in theirs.items():
        print(f"{size:>6} cuBLAS {name:8} {ms:9.3f} ms {teraflops / ms:8.1f} TFLOP/s")
    for name, precision in PRECISIONS.items():
        for way in ("digits", "float64"):
            right = products.prepare_batch(card, b[None], precision, "column", way)
            ms = median_ms(lambda right=right: products.product_batch(card, a[None], right))
            both = median_ms(
                lambda precision=precision, way=way: products.prepare_batch(
                    card, b[None], precision, "column", way
                )
            )
            peer, target = TARGETS[name]
            ratio = theirs[peer] / ms
            judged = verdict(ratio, target) if way == "digits" else "beside it"
            print(
                f"{size:>6} {name} {way:9} {ms:9.3f} ms {teraflops / ms:8.1f} TFLOP/s "
                f"{ratio:6.2f} × {peer} ({judged}); the right operand {both:.3f} ms once"
            )


def bandwidth_table(card: Card) -> None:
    """Kernels that memory limits, beside a copy."""
    x = torch.randn(16384, 4096, device=card.device)
    out = torch.empty_like(x)
    moved = 2 * x.numel() * 4
    copy_s = median_ms(lambda: out.copy_(x)) / 1e3
    print(f"copy {moved / copy_s / 1e9:8.0f} GB/s")
    kernels = {
        "add": lambda: elementwise.Step(card, "add", x, x).compute(),
        "relu": lambda: elementwise.Step(card, "relu", x).compute(),
        "gelu": lambda: elementwise.Step(card, "gelu", x).compute(),
        "exp": lambda: elementwise.Step(card, "exp", x).compute(),
        "softmax": lambda: rows.softmax_rows(card, x, logarithm=False),
        "layer norm": lambda: rows.norm_rows(card, x, None, None, 1e-5, centred=True),
    }
    for name, run in kernels.items():
        bytes_moved = moved * 3 // 2 if name == "add" else moved
        rate = bytes_moved / (median_ms(run) / 1e3)
        share = rate * copy_s / moved
        print(
            f"{name:10} {rate / 1e9:8.0f} GB/s {share:5.2f} ({verdict(share, BANDWIDTH_SHARE)})"
        )


def model_table(card: Card) -> None:
    """MiniLM at 256 by 128 tokens in x16, beside torch."""
    import torch_modules
    import whole_models
    from exact_runs import prepared

    given = whole_models.inputs("minilm", 256, tokens=128)
    run = prepared(whole_models.onnx_bytes("minilm"), "x16", CardKernels(card))
    module = torch_modules.MiniLM().to(card.device).eval()
    on_card = {name: card.take(value) for name, value in given.items()}
    with torch.no_grad():
        theirs = median_ms(lambda: module(**on_card))
    ours = median_ms(lambda: run(given))
    ratio = ours / theirs
    judged = verdict(ratio, MINILM_RATIO, least=False)
    print(
        f"MiniLM x16 256 × 128: {ours:.1f} ms, torch fp32 {theirs:.1f} ms, "
        f"{ratio:.2f} × ({judged})"
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=[4096, 8192])
    parser.add_argument(
        "--models", action="store_true", help="MiniLM too; it needs its package"
    )
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("there is no card here: PyTorch finds neither CUDA's nor ROCm's")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    runtime = torch.version.hip or torch.version.cuda
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, "
        f"triton {triton.__version__}, "
        f"{'ROCm' if torch.version.hip else 'CUDA'} {runtime}"
    )
    card = Card("cuda:0")
    for size in asked.sizes:
        product_table(card, size)
    bandwidth_table(card)
    if asked.models:
        model_table(card)


if __name__ == "__main__":
    main()
