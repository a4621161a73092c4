"""The worker of a real card whose units fail as they are told: kernels hang, and go astray.

The test build of ``shoal.compute.worker``, with the executors of cards as they are. A unit
whose first number is one of these launches a kernel of its own before it would run.
"""

import sys

import torch
import triton
import triton.language as tl

from shoal.compute import worker
from shoal.compute.tensor import from_blob

HANGS, ASTRAY = 2e3, 3e3


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
            with self._within(request.limits):
                numbers = torch.zeros(8, dtype=torch.int32, device="cuda:0")
                (hang if first == HANGS else go_astray)[(1,)](numbers)
                torch.cuda.synchronize()
        return super().run(request, attachments)


if __name__ == "__main__":
    assert sys.argv[-1].isdecimal()
    worker.main(Failing)
