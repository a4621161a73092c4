"""In a rehearsal, what Triton's driver does with a card: the interpreter runs the kernel.

The executor of users' kernels does all else as on a card of sm_90: it parses their Triton IR,
looks at it, compiles it and launches what came of it through Triton's own kernel object.
"""

from types import SimpleNamespace

import torch
import user_kernels
from triton.backends.compiler import GPUTarget

CONSTANTS = {
    "softmax": {"BLOCK": 1024},
    "add_multiply": {"BLOCK": 256},
    "product": {"BM": 32, "BN": 32, "BK": 32},
    "count_up": {"BLOCK": 64},
}
"""As in `user_kernels.programs`: compiled kernels have them no more."""

DTYPES = {"*fp32": torch.float32, "*i64": torch.int64}


class StandInDriver:
    """Of a driver, what Triton asks for."""

    def __init__(self):
        self.utils = SimpleNamespace(
            load_binary=self.load_binary,
            get_device_properties=lambda _: {"max_shared_mem": 227 << 10},
        )
        self.launcher_cls = self.launcher

    def load_binary(self, name, binary, shared, device):
        assert binary.startswith(b"\x7fELF")
        return object(), name, 32, 0, 1024

    def launcher(self, source, metadata):
        types = [source.signature[place] for place in sorted(source.signature)]

        def launch(
            x, y, z, stream, function, packed, launch_metadata, enter, leave, *arguments
        ):
            given = [
                value.view(DTYPES[kind]) if isinstance(value, torch.Tensor) else value
                for value, kind in zip(arguments, types, strict=True)
            ]
            getattr(user_kernels, function)[x, y, z](*given, **CONSTANTS[function])

        return launch

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)
