"""The worker of a real card whose units fail as they are told: kernels hang, and go astray.

The test build of ``shoal.compute.worker``, with the executors of cards as they are. A unit
whose first number is one of these launches a kernel of its own before it would run.

In a rehearsal (``rehearsal.py``) the card is this machine's CPU and Triton's interpreter, in
which a kernel hangs as well; what else a card does, the worker says in torch's words.
"""

import os
import sys

import torch
import triton
import triton.language as tl

from shoal.compute import worker
from shoal.compute.devices.inventory import Lack
from shoal.compute.errors import ComputeError
from shoal.compute.executors import table
from shoal.compute.tensor import from_blob

HANGS, ASTRAY = 2e3, 3e3
DEVICE = "cuda:0"


@triton.jit
def hang(flag):
    while tl.load(flag, volatile=True) == 0:
        tl.store(flag + 1, 1)


@triton.jit
def go_astray(place):
    tl.store(place + (1 << 40), 1)


class Failing(worker.Worker):
    """Launches what never ends, or writes where nothing is."""

    def run(self, request, attachments):
        first = float(from_blob(attachments[0]).ravel()[0])
        if first in {HANGS, ASTRAY}:
            with self._enforcer.within(request.limits):
                numbers = torch.zeros(8, dtype=torch.int32, device=DEVICE)
                (hang if first == HANGS else go_astray)[(1,)](numbers)
                torch.cuda.synchronize()
        return super().run(request, attachments)


class Rehearsing(Failing):
    """Whose card is this machine's CPU."""

    def run(self, request, attachments):
        with self._enforcer.within(request.limits):
            if len(attachments[0]) > request.limits.memory_bytes:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate …")
            if float(from_blob(attachments[0]).ravel()[0]) == ASTRAY:
                raise torch.AcceleratorError("CUDA error: an illegal memory access")
        return super().run(request, attachments)

    def _reached(self):
        if os.environ["CUDA_VISIBLE_DEVICES"] != "-1":
            return True
        lack = ComputeError("torch finds 0 cards", code="card_unreachable")
        self._executors.missing.append(Lack(lack.code, lack.message, lack.hint))
        return False


if __name__ == "__main__":
    assert sys.argv[-1].isdecimal()
    if os.environ.get("SHOAL_REHEARSE") == "1":
        DEVICE = table.TORCH_DEVICE = "cpu"
        worker.main(Rehearsing)
    else:
        worker.main(Failing)
