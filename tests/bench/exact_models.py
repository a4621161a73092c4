"""MiniLM in the exact class beside ONNX Runtime: time and memory, 32 sentences of 128 tokens.

The two take turns in one process for the time, and have a process each for the peaks of
memory, which count the libraries. Two threads each. Needs ``shoal[models]``.
"""

import gc
import subprocess
import sys
import time
from pathlib import Path

sys.path += [str(Path(__file__).parents[1] / name) for name in ("models", "vectors")]

BATCH, TOKENS, THREADS, TURNS = 32, 128, 2, 7
WAYS = ("exact x20", "exact x16", "exact x8", "ONNX Runtime")


def runner(way):
    """A function of no arguments that computes the embeddings once."""
    import whole_models

    data = whole_models.onnx_bytes("minilm")
    inputs = whole_models.inputs("minilm", BATCH, TOKENS)
    if way == "ONNX Runtime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        session = onnxruntime.InferenceSession(data, options)
        return lambda: session.run(None, inputs)
    from exact_runs import prepared

    from shoal.compute.exact.cpu import CpuKernels

    run = prepared(data, way.removeprefix("exact "), CpuKernels(THREADS))
    return lambda: run(inputs)


def times_s():
    """The least time of a run, by way: what else the machine does only adds to it."""
    runners = {way: runner(way) for way in WAYS}
    taken = {way: [] for way in WAYS}
    for run in runners.values():
        run()
    for _ in range(TURNS):
        for way, run in runners.items():
            start = time.perf_counter()
            run()
            taken[way].append(time.perf_counter() - start)
    return {way: min(times) for way, times in taken.items()}


def print_peak(way):
    """Print the process's peaks of memory in bytes: until it is prepared, and while it runs."""
    import whole_models

    run = runner(way)
    prepared_bytes = _peak_bytes()
    whole_models.forget()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held
    run()
    run()
    print(prepared_bytes, _peak_bytes())


def _peak_bytes():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def peaks_bytes(way):
    """The peaks of a process that does no more than prepare and run."""
    done = subprocess.run(
        [sys.executable, __file__, way], stdout=subprocess.PIPE, text=True, check=True
    )
    return tuple(map(int, done.stdout.splitlines()[-1].split()))


def main():
    """Print the table."""
    times = times_s()
    peaks = {way: peaks_bytes(way) for way in WAYS}
    base = WAYS[-1]
    print(f"MiniLM, {BATCH} x {TOKENS} tokens, {THREADS} threads; targets: 3x time, 3x memory")
    print(f"{'':<16}{'time':>9}{'ratio':>8}{'loading':>12}{'running':>12}{'ratio':>8}")
    for way in WAYS:
        prepared_bytes, peak = peaks[way]
        print(
            f"{way:<16}{times[way]:>8.2f}s{times[way] / times[base]:>8.2f}"
            f"{prepared_bytes / 2**20:>8.0f} MiB{peak / 2**20:>8.0f} MiB"
            f"{peak / peaks[base][1]:>8.2f}"
        )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print_peak(sys.argv[1])
    else:
        main()
