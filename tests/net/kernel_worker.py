"""A worker that runs users' kernels on a card that there is not.

`shoal.compute.worker` with one executor more. It loads kernels as every worker does and
holds their texts against the rules; where it is a card's worker, it parses and compiles them
too, locked in as one is. In place of launching softmax it computes it by numpy. The
supervisor starts it by ``open_worker(entry=(this file,))``.
"""

import numpy as np
from triton.backends.compiler import GPUTarget

from shoal.compute import worker
from shoal.compute.exact.gpu.targets import TARGETS
from shoal.compute.executors.base import Evidence, NumericClass, Probe
from shoal.compute.kernel_manifest import launch_of
from shoal.compute.tensor import spec_of_array
from shoal.compute.user_kernels.compiling import compile_kernel


class NoCard:
    def __init__(self, target):
        self.target = target

    def start_threads(self):
        pass

    def probe(self):
        return Probe("triton on no card", NumericClass.KERNEL, Evidence.EXECUTED)

    def prepare(self, program):
        if self.target is not None:
            assert compile_kernel(program, self.target).binary
        return program.manifest

    def run(self, handle, inputs):
        launch_of(handle, {name: spec_of_array(array) for name, array in inputs.items()})
        power = np.exp(inputs["x"] - inputs["x"].max(1, keepdims=True))
        return {"y": power / power.sum(1, keepdims=True)}

    def terminate(self):
        pass


class WithKernels(worker.Worker):
    def start(self):
        started = super().start()
        target = None
        if self._card is not None:
            named = TARGETS[self._card.target]
            target = GPUTarget(named.backend, named.arch, named.lanes)
        self._executors.by_class[NumericClass.KERNEL] = NoCard(target)
        self._executors.runtimes[NumericClass.KERNEL] = NoCard(None).probe().runtime
        return started


if __name__ == "__main__":
    worker.main(WithKernels)
