"""10,000 damaged models through one supervisor; its short form is among the quick tests.

``SHOAL_SOAK_S`` below 600 takes a tenth of them; ``SHOAL_SOAK_SEED`` repeats a run.
"""

import os
import random
from collections import Counter

import fuzzed_models
import numpy as np
from onnx import parser

from shoal.compute.convert import convert
from shoal.compute.supervisor import open_worker
from shoal.compute.tensor import from_blob, to_blob

COUNT = 10_000 if float(os.environ.get("SHOAL_SOAK_S", "60")) >= 600 else 1_000
SEED = int(os.environ.get("SHOAL_SOAK_SEED", str(random.SystemRandom().randrange(1 << 32))))
DOUBLE = convert(
    parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> '
        "g (float[n] x) => (float[n] y) { y = Add(x, x) }"
    ).SerializeToString()
)


async def test_damaged_models_are_refused_or_run_and_units_run_between_them():
    print(f"SHOAL_SOAK_SEED={SEED}")
    codes = Counter()

    async def fetch_blobs():
        return DOUBLE.blobs

    async with open_worker(threads=1, cache_bytes=1 << 26, memory_bytes=1 << 28) as worker:
        for index, model in enumerate(fuzzed_models.fuzzed(COUNT, SEED)):
            codes[await fuzzed_models.try_one(worker, model)] += 1
            if index % 10 == 0:
                x = to_blob(np.ones(2, np.float32))
                ran = await worker.run(
                    "ann", DOUBLE.program_id, fetch_blobs, {"x": x}, fuzzed_models.LIMITS
                )
                assert from_blob(ran.outputs["y"]).tolist() == [2.0, 2.0]
        assert worker.sandboxed
    print(dict(codes.most_common()))
    assert sum(codes.values()) == COUNT
    assert len(codes) >= 8
