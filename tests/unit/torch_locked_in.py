"""A process that runs cases of the executor ``torch`` and may open no file on the way.

Run by `test_torch_executor`: what a program makes torch or Python import late would fail in
a worker that is locked in. Prints the cases that opened or imported something, and what.
"""

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parents[1] / name) for name in ("models", "vectors")]

import contextlib

import cases
import torch
import whole_models

from shoal.compute.convert import convert
from shoal.compute.errors import ShoalError
from shoal.compute.executors.base import NumericClass
from shoal.compute.executors.torch import TorchExecutor
from shoal.compute.loading import load

opened = []
locked = False


def watch(event, args):
    if locked and event in {"open", "import", "socket.connect", "subprocess.Popen"}:
        opened.append((event, str(args[0])))


def main():
    """Run everything in both classes."""
    global locked  # noqa: PLW0603  # an audit hook cannot be taken away again
    torch.set_num_threads(1)
    executors = [TorchExecutor("cpu", kind) for kind in (NumericClass.FP32, NumericClass.LOW)]
    for executor in executors:
        executor.start_threads()
        executor.probe()
    programs = {
        case.name: (case.model().SerializeToString(), case.inputs()) for case in cases.CASES
    }
    for name in ("cnn", "causal"):
        programs[name] = (whole_models.onnx_bytes(name), whole_models.inputs(name, 2))
    loaded = {}
    for name, (data, inputs) in programs.items():
        program = convert(data)
        loaded[name] = (load(program.program_id, program.blobs), inputs)
    sys.addaudithook(watch)
    locked = True
    found = {}
    for name, (program, inputs) in loaded.items():
        for executor in executors:
            opened.clear()
            with contextlib.suppress(ShoalError):
                executor.run(executor.prepare(program), inputs)
            if opened:
                found[name] = list(opened)
    opened.clear()
    Path("/dev/null").read_bytes()
    locked = False
    print("watched" if opened else "blind")
    for name, events in found.items():
        print(name, events[:3])


if __name__ == "__main__":
    main()
