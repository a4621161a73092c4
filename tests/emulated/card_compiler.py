"""A process that compiles kernels as Triton's launcher would on a card that is not here.

Triton in the tests' own process interprets; so this is another one, started with
TRITON_INTERPRET=0. It reads a pickled request from stdin and writes the answer to stdout,
until stdin ends. What a launch would do with its arguments is done here too: whole numbers
take the kernel's types, those of which it declares none become int32 where they fit, or a
constant where they are 1, and what divides by 16 is known to.
"""

import importlib
import os
import pickle
import sys
from dataclasses import dataclass

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from shoal.compute.exact.gpu.variants import Variant


@dataclass(frozen=True)
class Request:
    """A kernel and what it is launched with.

    Attributes:
        arch: Such as 90.
        module: Where the kernel stands.
        kernel: Its name there.
        constants: By name.
        warps: See `Variant`.
        stages: Likewise.
        arguments: In order: whole numbers, or a tensor's dtype and its address modulo 16.
        options: Of the compiler, beside the variant's own.
    """

    arch: int
    module: str
    kernel: str
    constants: tuple[tuple[str, object], ...]
    warps: int
    stages: int
    arguments: tuple[int | tuple[str, int], ...]
    options: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True)
class Answer:
    """What came of it.

    Attributes:
        ptx: The code; empty if it does not compile.
        shared_bytes: Of one program.
        given: Which of the arguments the code still takes, in order.
        error: Why it does not compile.
    """

    ptx: str = ""
    shared_bytes: int = 0
    given: tuple[int, ...] = ()
    error: str = ""


class _Tensor:
    """Of a tensor, what a launch looks at."""

    def __init__(self, dtype: str, address: int) -> None:
        self.dtype = getattr(torch, dtype)
        self._address = address

    def data_ptr(self) -> int:
        return self._address


class _Driver:
    """A card of one generation, numbered by it: Triton keeps code by a card's number."""

    def __init__(self, arch: int) -> None:
        self._arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._arch, 32)

    def get_current_device(self) -> int:
        return self._arch

    def get_current_stream(self, device: int) -> int:
        return 0


def compiled(request: Request) -> Answer:
    """What a launch would run."""
    kernel = getattr(importlib.import_module(request.module), request.kernel)
    constants = dict(request.constants)
    variant = Variant(kernel, {}, constants, request.warps, request.stages)
    arguments = [one if isinstance(one, int) else _Tensor(*one) for one in request.arguments]
    driver.set_active(_Driver(request.arch))
    options = variant.options("cuda") | dict(request.options)
    try:
        code = kernel.warmup(*arguments, **constants, **options, grid=(1,))
    except Exception as error:  # noqa: BLE001  # a compiler may fail in any way
        return Answer(error=f"{type(error).__name__}: {error}")
    constant = {place for (place,) in code.src.constants}
    given = tuple(n for n in range(len(arguments)) if n not in constant)
    return Answer(code.asm["ptx"], code.metadata.shared, given)


def main() -> None:
    """Answer until there is nothing more to answer."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not be taken for an answer
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(compiled(request), answers)
        answers.flush()


if __name__ == "__main__":
    sys.modules["card_compiler"] = sys.modules["__main__"]  # by what name it is pickled
    Request.__module__ = Answer.__module__ = "card_compiler"
    main()
