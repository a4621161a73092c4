"""A worker that runs users' kernels on a card that there is not.

`shoal.compute.worker` with one executor more: it loads kernels as every worker does, holds
their texts against the rules, and in place of compiling and launching softmax computes it
by numpy. The supervisor starts it by ``open_worker(entry=(this file,))``.
"""

import numpy as np

from shoal.compute import worker
from shoal.compute.executors.base import Evidence, NumericClass, Probe
from shoal.compute.kernel_manifest import launch_of
from shoal.compute.tensor import spec_of_array


class NoCard:
    def start_threads(self):
        pass

    def probe(self):
        return Probe("triton on no card", NumericClass.KERNEL, Evidence.EXECUTED)

    def prepare(self, program):
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
        self._executors[NumericClass.KERNEL] = NoCard()
        self._runtimes[NumericClass.KERNEL] = NoCard().probe().runtime
        return started


if __name__ == "__main__":
    worker.main(WithKernels)
