"""The worker of a card that is this machine's CPU: Triton's interpreter, and torch on the CPU.

The test build of ``shoal.compute.worker``: the executors of cards as they are, locked in by
the profile ``gpu``, where ``TRITON_INTERPRET=1`` is set.
"""

from shoal.compute import worker
from shoal.compute.executors import table


class OnInterpreter(worker.Worker):
    """Whose card is reached, and has no memory to meter."""

    def _reached(self):
        return True


if __name__ == "__main__":
    table.TORCH_DEVICE = "cpu"
    worker.main(OnInterpreter)
