"""What it costs that a unit runs in a worker's process and not in this one.

The same call, in this process and in a warm worker, for tensors of several sizes; then
the first unit of a new requester, who gets the spare, beside one more of the last.

    python tests/bench/dispatch.py [--calls 300]
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import trio
from onnx import parser

from shoal.compute.convert import convert
from shoal.compute.device_worker import Worker
from shoal.compute.executors.onnxruntime import OnnxRuntime
from shoal.compute.frames import UnitLimits
from shoal.compute.loading import load
from shoal.compute.supervisor import open_worker
from shoal.compute.tensor import from_blob, to_blob
from shoal.crypto.content import BlobId

TARGET_MS = 2.0
LIMITS = UnitLimits(time_s=60.0, memory_bytes=1 << 30, output_bytes=1 << 30)
PROGRAM = convert(
    parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>'
        "g (float[n] x) => (float[n] y) { y = Add(x, x) }"
    ).SerializeToString()
)


def p50_ms(seconds: list[float]) -> float:
    return 1e3 * statistics.median(seconds)


def in_process_s(x: bytes, calls: int) -> list[float]:
    """From one blob to the other, as the worker goes, without any process between."""
    executor = OnnxRuntime(threads=1)
    prepared = executor.prepare(load(PROGRAM.program_id, PROGRAM.blobs))
    took = []
    for _ in range(calls):
        began = time.perf_counter()
        to_blob(executor.run(prepared, {"x": from_blob(x)})["y"])
        took.append(time.perf_counter() - began)
    return took


async def run(worker: Worker, requester: str, x: bytes) -> float:
    async def blobs() -> dict[BlobId, bytes]:
        return dict(PROGRAM.blobs)

    began = time.perf_counter()
    await worker.run(requester, PROGRAM.program_id, blobs, {"x": x}, LIMITS)
    return time.perf_counter() - began


async def main(calls: int) -> None:
    """Print the two tables."""
    print("dispatch to a warm worker      in process   worker    above   target (p50, ms)")
    async with open_worker(threads=1) as worker:
        for elements in (256, 16_384, 262_144, 4_194_304):
            x = to_blob(np.zeros(elements, np.float32))
            count = max(20, calls * 256 // (256 + elements // 1024))
            await run(worker, "ann", x)
            inside = p50_ms(in_process_s(x, count))
            outside = p50_ms([await run(worker, "ann", x) for _ in range(count)])
            above = outside - inside
            target = f"<= {TARGET_MS:g}  {'met' if above <= TARGET_MS else 'MISSED'}"
            print(
                f"  {len(x) / 1e6:9.3f} MB in and out  {inside:10.3f} {outside:8.3f} "
                f"{above:8.3f}   {target if elements <= 16_384 else ''}"
            )
    print("the next requester's first unit (ms, program included)")
    x = to_blob(np.zeros(256, np.float32))
    async with open_worker(threads=1) as worker:
        await worker.probe()
        first, again, cold = [], [], []
        for requester in map(str, range(10)):
            first.append(await run(worker, requester, x))
            again.append(await run(worker, requester, x))
            await worker.probe()  # the next spare has settled in
        for _ in range(3):
            await worker.close()
            cold.append(await run(worker, "cold", x))
    print(f"  a requester who is known        {p50_ms(again):8.1f}")
    print(f"  a new one, who gets the spare   {p50_ms(first):8.1f}")
    print(f"  a new one, with no spare ready  {p50_ms(cold):8.1f}")


if __name__ == "__main__":
    parser_ = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser_.add_argument("--calls", type=int, default=300)
    trio.run(main, parser_.parse_args().calls)
