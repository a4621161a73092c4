"""A card that is not here: kernels are compiled for it, and their PTX is run with numpy.

It stands where `shoal.compute.exact.gpu.card.Card` does, so that `CardKernels` needs to
know nothing of it. `Compiler` is the process that compiles.
"""

import pickle
import subprocess
import sys
from dataclasses import replace

import card_compiler
import numpy as np
import torch
from ptx_instructions import decoded
from ptx_machine import Launch, Step, run
from ptx_program import Program, PtxError, parse
from ptx_spaces import GlobalMemory

from shoal.compute.exact.gpu.card import Card


class Compiler:
    """A process that compiles, and what it has compiled.

    Args:
        cache: A folder for what Triton keeps.
        environment: Of the process.
    """

    def __init__(self, cache: str, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, card_compiler.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment | {"TRITON_CACHE_DIR": cache, "TRITON_INTERPRET": "0"},
        )
        self._answers: dict[object, card_compiler.Answer] = {}

    def compiled(self, request: card_compiler.Request) -> card_compiler.Answer:
        """What a launch would run; asked for once for all arguments with the same code."""
        key = replace(request, arguments=tuple(map(_seen, request.arguments)))
        if key not in self._answers:
            pickle.dump(request, self._process.stdin)
            self._process.stdin.flush()
            self._answers[key] = pickle.load(self._process.stdout)
        return self._answers[key]

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def _seen(argument: int | tuple[str, int]) -> object:
    """What Triton tells arguments apart by."""
    if isinstance(argument, int):
        return argument == 1, argument % 16 == 0, abs(argument) < 1 << 31
    return argument


class EmulatedCard(Card):
    """One card of a generation of NVIDIA's.

    Args:
        compiler: What compiles for it.
        arch: Such as 90.
        options: Of the compiler, beside a kernel's own.
    """

    def __init__(self, compiler: Compiler, arch: int, **options: object) -> None:
        super().__init__("cpu")
        self._compiler = compiler
        self._arch = arch
        self._options = tuple(options.items())
        self._code: dict[str, tuple[Program, list[Step | None]]] = {}
        self.launched: set[str] = set()
        """The names of the kernels that ran."""

    def edited(self, ptx: str) -> str:
        """The code that runs in place of a kernel's: that same, unless a test says else."""
        return ptx

    def launch(self, variant, grid, *arguments):
        """Compile a kernel as for these arguments, and run it.

        Raises:
            PtxError: It does not compile, or does what a card would not allow.
        """
        if not all(grid):
            return
        memory = GlobalMemory()
        places: dict[int, int] = {}
        values = [_placed(argument, memory, places) for argument in arguments]
        described = tuple(
            (str(argument.dtype).removeprefix("torch."), value % 16)
            if isinstance(argument, torch.Tensor)
            else argument
            for argument, value in zip(arguments, values, strict=True)
        )
        request = card_compiler.Request(
            self._arch,
            variant.kernel.fn.__module__,
            variant.kernel.fn.__name__,
            tuple(variant.constants.items()),
            variant.warps,
            variant.stages,
            described,
            self._options,
        )
        answer = self._compiler.compiled(request)
        if answer.error:
            raise PtxError(f"{variant.name} does not compile: {answer.error}")
        text = self.edited(answer.ptx)
        if text not in self._code:
            program = parse(text)
            self._code[text] = program, decoded(program)
        program, steps = self._code[text]
        taken = [values[place] for place in answer.given]
        scratch = [0] * (len(program.parameters) - len(taken))  # of the launcher's, unused
        parameters = dict(zip(program.parameters, taken + scratch, strict=True))
        sizes = (*grid, 1, 1)[:3]
        run(program, steps, Launch(parameters, sizes, memory, answer.shared_bytes))
        self.launched.add(variant.name)


def _placed(argument, memory: GlobalMemory, places: dict[int, int]) -> int:
    """What a kernel is given for an argument: a number's value, or a tensor's address."""
    if not isinstance(argument, torch.Tensor):
        return int(argument)
    storage = argument.untyped_storage()
    start = storage.data_ptr()
    if start not in places:
        whole = torch.empty(0, dtype=torch.uint8).set_(storage)
        places[start] = memory.place(whole.numpy() if len(storage) else np.zeros(0, np.uint8))
    return places[start] + argument.data_ptr() - start
