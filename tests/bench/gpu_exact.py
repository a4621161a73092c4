"""The exact class on a card, beside what the card's own libraries do, in one run.

Medians by device events over random data. Four parts: square products beside cuBLAS in fp32
(TF32 off) and bf16, the way by float64 beside the digits; other tiles of the same products;
elementwise and row kernels as a share of the bandwidth that a copy has; MiniLM beside torch
in fp32 (TF32 off). It is what `docs/gpu.md` keeps the figures of.

    python tests/bench/gpu_exact.py [--only products rows] [--sizes 4096 8192] [--models]

Each row is written to ``--results`` when it is measured: what a time limit ends has lost
nothing, and the same command goes on where it ended. A row that fails says why, and the next
one is measured. ``--rehearse`` runs all of it, tiny and without a card, by the wall clock.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path += [str(Path(__file__).parents[1] / name) for name in ("models", "vectors", "gpu")]

import gpu_exact_results as results
import torch
from environment import environment

from shoal.compute.exact.gpu import elementwise, products, rows
from shoal.compute.exact.gpu.card import Card
from shoal.compute.exact.gpu.kernels import CardKernels
from shoal.compute.exact.spec import PRECISIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TARGETS = {"x20": ("fp32", 1.5), "x16": ("bf16", 0.25), "x8": ("bf16", 1.0)}
"""How many times as fast as which of the vendor's products it should be."""
BANDWIDTH_SHARE = 0.7
MINILM_RATIO = 2.0

TILES = {
    "x20": [
        (128, 64, 64, 8, 3), (128, 64, 64, 8, 4), (128, 64, 128, 8, 3), (64, 64, 64, 4, 3),
        (64, 64, 64, 8, 3), (128, 32, 128, 8, 3),
    ],
    "x16": [
        (128, 128, 64, 8, 3), (128, 128, 64, 8, 4), (128, 128, 128, 8, 2), (128, 64, 64, 8, 3),
        (128, 64, 128, 8, 3), (64, 128, 64, 4, 3),
    ],
    "x8": [
        (128, 128, 128, 8, 3), (128, 128, 128, 8, 4), (128, 128, 64, 8, 4),
        (128, 256, 128, 8, 3), (256, 128, 64, 8, 3),
    ],
}  # fmt: skip
"""Rows, columns and terms of a tile, warps and stages: what is measured beside the tile that
is used. All compile for sm_90."""


@dataclass(frozen=True)
class Row:
    """Something to be measured.

    Attributes:
        key: Its name, one of a kind.
        prepare: Gives what is run; takes place when this row is measured.
        facts: What stands beside its time: see `gpu_exact_results`.
    """

    key: str
    prepare: Callable[[], Callable[[], object]]
    facts: dict[str, object]


class Bench:
    """What is measured, and on what."""

    def __init__(self, *, rehearsed: bool, sizes: list[int]) -> None:
        self.rehearsed = rehearsed
        self.sizes = sizes
        self.card = Card("cpu" if rehearsed else "cuda:0")
        self.rounds = 2 if rehearsed else 20

    def time_ms(self, run: Callable[[], object]) -> tuple[float, float, float]:
        """Median, least and greatest time of a call, after some that are not counted."""
        for _ in range(1 if self.rehearsed else 3):
            run()
        times = [self._once_ms(run) for _ in range(self.rounds)]
        return statistics.median(times), min(times), max(times)

    def _once_ms(self, run: Callable[[], object]) -> float:
        if self.rehearsed:
            began = time.perf_counter()
            run()
            return (time.perf_counter() - began) * 1e3
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def drawn(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Random numbers on the card."""
        return torch.randn(*shape, device=self.card.device).to(dtype)

    def product_rows(self) -> Iterator[Row]:
        """Square products of every size: the vendor's, and ours in both ways."""
        for size in self.sizes:
            work = {"work": 2 * size**3 / 1e12, "unit": "TFLOP/s"}
            for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
                yield Row(
                    f"{size} cuBLAS {name}", functools.partial(self._theirs, size, dtype), work
                )
            for name in PRECISIONS:
                peer, target = TARGETS[name]
                for way in ("digits", "float64"):
                    facts = work | {"peer": f"{size} cuBLAS {peer}"}
                    if way == "digits":
                        facts |= {"least_ratio": target}
                    make = functools.partial(self._ours, size, name, way)
                    yield Row(f"{size} {name} {way}", make, facts)
                make = functools.partial(self._operand, size, name)
                yield Row(f"{size} {name} the right operand, once", make, {})

    def _theirs(self, size: int, dtype: torch.dtype) -> Callable[[], object]:
        a, b = (self.drawn(size, size, dtype=dtype) for _ in range(2))
        return lambda: torch.matmul(a, b)

    def _ours(self, size: int, name: str, way: products.Way) -> Callable[[], object]:
        a, b = (self.drawn(1, size, size) for _ in range(2))
        right = products.prepare_batch(self.card, b, PRECISIONS[name], "column", way)
        self._check_bits(a, b, name, products.product_batch(self.card, a, right))
        return lambda: products.product_batch(self.card, a, right)

    def _operand(self, size: int, name: str) -> Callable[[], object]:
        b = self.drawn(1, size, size)
        how = PRECISIONS[name]
        return lambda: products.prepare_batch(self.card, b, how, "column", "digits")

    def _check_bits(
        self, a: torch.Tensor, b: torch.Tensor, name: str, found: torch.Tensor
    ) -> None:
        """The bits of some rows are those of the way by float64: a fast wrong one is none."""
        how = PRECISIONS[name]
        right = products.prepare_batch(self.card, b, how, "column", "float64")
        some = a[:, :: max(1, a.shape[1] // 64)].contiguous()
        exact = products.product_batch(self.card, some, right)
        if not torch.equal(found[:, :: max(1, a.shape[1] // 64)], exact):
            raise ValueError("its bits are not those of the way by float64")

    def tile_rows(self) -> Iterator[Row]:
        """The products of the first size in other tiles, which nothing but this uses."""
        size = self.sizes[0]
        for name, tiles in TILES.items():
            peer, _ = TARGETS[name]
            for tile in tiles[:2] if self.rehearsed else tiles:
                words = "×".join(map(str, tile[:3])) + f" {tile[3]} warps {tile[4]} stages"
                yield Row(
                    f"{size} {name} {words}",
                    functools.partial(self._tiled, size, name, tile),
                    {
                        "work": 2 * size**3 / 1e12,
                        "unit": "TFLOP/s",
                        "peer": f"{size} cuBLAS {peer}",
                    },
                )

    def _tiled(self, size: int, name: str, tile: tuple[int, ...]) -> Callable[[], object]:
        m, n, k, warps, stages = tile
        key = (name, False, False)
        used = products._PRODUCT[key]
        constants = {**used.constants, "M": m, "N": n, "K": k}
        other = replace(used, constants=constants, warps=warps, stages=stages)
        a, b = (self.drawn(1, size, size) for _ in range(2))
        right = products.prepare_batch(self.card, b, PRECISIONS[name], "column", "digits")

        def run() -> torch.Tensor:
            products._PRODUCT[key] = other
            try:
                return products.product_batch(self.card, a, right)
            finally:
                products._PRODUCT[key] = used

        self._check_bits(a, b, name, run())
        return run

    def row_rows(self) -> Iterator[Row]:
        """Kernels that memory limits, beside a copy."""
        shape = (32, 256) if self.rehearsed else (16384, 4096)
        moved = 2 * shape[0] * shape[1] * 4 / 1e9
        card = self.card
        kernels = {
            "add": lambda x, y: elementwise.Step(card, "add", x, y).compute(),
            "relu": lambda x: elementwise.Step(card, "relu", x).compute(),
            "gelu": lambda x: elementwise.Step(card, "gelu", x).compute(),
            "exp": lambda x: elementwise.Step(card, "exp", x).compute(),
            "softmax": lambda x: rows.softmax_rows(card, x, logarithm=False),
            "layer norm": lambda x: rows.norm_rows(card, x, None, None, 1e-5, centred=True),
        }

        def copying() -> Callable[[], object]:
            x = self.drawn(*shape)
            out = torch.empty_like(x)
            return lambda: out.copy_(x)

        def running(kernel: Callable[..., object], count: int) -> Callable[[], object]:
            given = [self.drawn(*shape) for _ in range(count)]
            return lambda: kernel(*given)

        yield Row("copy", copying, {"work": moved, "unit": "GB/s"})
        for name, kernel in kernels.items():
            count = 2 if name == "add" else 1
            facts = {"work": moved * (count + 1) / 2, "unit": "GB/s"}
            facts |= {"peer": "copy", "least_share": BANDWIDTH_SHARE}
            yield Row(name, functools.partial(running, kernel, count), facts)

    def model_rows(self) -> Iterator[Row]:
        """MiniLM at 256 by 128 tokens beside torch; in a rehearsal the convolutional one."""
        name, batch = ("cnn", 1) if self.rehearsed else ("minilm", 256)
        peer = f"{name} {batch} × 128 torch fp32"
        if self.rehearsed:
            yield Row("minilm 1 × 128 torch fp32", lambda: self._torch_model("minilm", 1), {})
        yield Row(peer, functools.partial(self._torch_model, name, batch), {})
        for precision in ("x8",) if self.rehearsed else ("x16", "x20", "x8"):
            facts = {"peer": peer}
            if precision == "x16":
                facts |= {"most_ratio": MINILM_RATIO}
            make = functools.partial(self._exact_model, name, batch, precision)
            yield Row(f"{name} {batch} × 128 {precision}", make, facts)

    def _torch_model(self, name: str, batch: int) -> Callable[[], object]:
        import torch_modules
        import whole_models

        module = torch_modules.MiniLM() if name == "minilm" else torch_modules.SmallCNN()
        module = module.to(self.card.device).eval()
        given = whole_models.inputs(name, batch, tokens=128)
        on_card = {key: self.card.take(value) for key, value in given.items()}
        run = torch.no_grad()(lambda: module(**on_card))
        run()
        return run

    def _exact_model(self, name: str, batch: int, precision: str) -> Callable[[], object]:
        import whole_models
        from exact_runs import prepared

        data = whole_models.onnx_bytes(name)
        run = prepared(data, precision, CardKernels(self.card))
        given = whole_models.inputs(name, batch, tokens=128)
        return lambda: run(given)


def measure(bench: Bench, part: str, row: Row) -> dict[str, object]:
    """One row as it is kept: its times, or why there are none."""
    kept = {"part": part, "key": row.key, **row.facts}
    try:
        median, least, most = bench.time_ms(row.prepare())
    except Exception as error:  # noqa: BLE001  # a peer or a card may fail in any way
        return kept | {"error": f"{type(error).__name__}: {error!s:.300}"}
    finally:
        if not bench.rehearsed:
            torch.cuda.empty_cache()
    return kept | {"ms": median, "least_ms": least, "most_ms": most}


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--only", nargs="*", choices=results.PARTS, help="these parts")
    parser.add_argument("--sizes", type=int, nargs="*", default=[4096, 8192])
    parser.add_argument("--models", action="store_true", help="MiniLM too: needs its package")
    parser.add_argument("--rehearse", action="store_true", help="tiny, and without a card")
    parser.add_argument("--results", type=Path, default=Path("card-results/gpu_exact.jsonl"))
    parser.add_argument("--again", action="store_true", help="forget what was measured before")
    parser.add_argument("--print", action="store_true", help="print what was measured, no more")
    asked = parser.parse_args()
    if asked.print:
        print(results.markdown(results.read(asked.results)))
        return
    if asked.rehearse and os.environ.get("TRITON_INTERPRET") != "1":
        # Triton has read it: once more, from the start.
        os.environ["TRITON_INTERPRET"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    if not asked.rehearse and not torch.cuda.is_available():
        sys.exit("there is no card here: PyTorch finds neither CUDA's nor ROCm's")
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if asked.again:
        asked.results.unlink(missing_ok=True)
    sizes = [32] if asked.rehearse else asked.sizes
    bench = Bench(rehearsed=asked.rehearse, sizes=sizes)
    parts = {
        "products": bench.product_rows,
        "rows": bench.row_rows,
        "models": bench.model_rows,
        "tiles": bench.tile_rows,
    }
    chosen = asked.only or [part for part in parts if part != "models" or asked.models]
    about = environment() | {"rehearsed": asked.rehearse}
    with results.Kept(asked.results, about) as kept:
        for part in chosen:
            for row in parts[part]():
                if not kept.has(row.key):
                    kept.add(measure(bench, part, row))
    print(results.markdown(results.read(asked.results)))


if __name__ == "__main__":
    main()
