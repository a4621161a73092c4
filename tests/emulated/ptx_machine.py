"""Runs a kernel's PTX with numpy: every thread of every program at once.

A register is an array with one value per thread (a *lane*), of unsigned integers that
hold its bits, or of bools; one that all threads share may have length 1. Threads run in
step. Where a branch divides them, those that stand at the earliest instruction go first,
so that they meet again after a loop or a condition.

What a card would not allow, or leaves undefined, is a `PtxError`: an address outside the
tensor or not aligned, a register that was never written, a barrier or a warp's exchange
that some of its threads do not reach. What is not shown: races between warps, since they
run in step, and the assembler (ptxas) below PTX.

Semantics are those of NVIDIA's "Parallel Thread Execution ISA" 8.7; each family of
instructions has a module: `ptx_integers`, `ptx_floats`, `ptx_memory`, `ptx_warps`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ptx_program import Immediate, Instruction, Name, Operand, Program, PtxError, Register
from ptx_spaces import GlobalMemory, SharedMemory

WARP = 32
LANES_AT_ONCE = 8192
"""More programs than make so many lanes are run one after another."""
_POISON = 0xA5A5_A5A5_A5A5_A5A5
UNSIGNED = {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}

Step = Callable[["Machine"], None]
Family = tuple[tuple[str, Callable[..., Step]], ...]
"""A family of instructions: opcodes as patterns, and what makes a step of one, which is
given the instruction and the pattern's groups."""


@dataclass
class Launch:
    """What a kernel is started with.

    Attributes:
        parameters: The bits of each by name.
        grid: Programs along x, y and z.
        memory: What its pointers point into.
        shared_bytes: Of one program.
    """

    parameters: dict[str, int]
    grid: tuple[int, int, int]
    memory: GlobalMemory
    shared_bytes: int


class Machine:
    """Some programs of one launch, and how far they are.

    Args:
        launch: The whole launch.
        program: The kernel.
        first: The first of these programs, counted along x, then y, then z.
        count: How many.
    """

    def __init__(self, launch: Launch, program: Program, first: int, count: int) -> None:
        self.parameters = launch.parameters
        self.memory = launch.memory
        self.threads = program.threads
        self.lanes = count * program.threads
        self.shared = SharedMemory(launch.shared_bytes, count, program.threads)
        self.registers: dict[str, np.ndarray] = {}
        self.mask: np.ndarray | None = None
        """Which lanes run; None for all."""
        self.open_copies: list[Step] = []
        self.copies: list[list[Step]] = []
        """What was begun and need not have happened yet, by group: cp.async's."""
        self.open_products: list[Step] = []
        self.products: list[list[Step]] = []
        """And wgmma's."""
        thread = np.arange(self.lanes, dtype=np.uint32) % np.uint32(program.threads)
        place = (first + np.arange(self.lanes) // program.threads).astype(np.uint32)
        x, y, _ = (np.uint32(size) for size in launch.grid)
        self.special = {
            "%tid.x": thread,
            "%laneid": thread % np.uint32(WARP),
            "%ctaid.x": place % x,
            "%ctaid.y": place // x % y,
            "%ctaid.z": place // (x * y),
        }

    # -- registers ------------------------------------------------------------------

    def bits(self, operand: Operand) -> np.ndarray:
        """An operand's bits, one per lane or one for all.

        Raises:
            PtxError: It was never written.
        """
        if isinstance(operand, Register):
            try:
                return self.registers[operand.name]
            except KeyError:
                raise PtxError(f"%{operand.name} is read and was never written") from None
        if isinstance(operand, Name):
            if operand.text == "global_smem":
                return np.array([self.shared.base], np.uint32)
            if operand.text in self.special:
                return self.special[operand.text]
        raise PtxError(f"no value: {operand}")

    @staticmethod
    def reader(operand: Operand, dtype: type) -> "Callable[[Machine], np.ndarray]":
        """How an operand is read as a dtype: its low bits, if it is wider."""
        wanted = np.dtype(dtype)
        unsigned = UNSIGNED[1 if wanted == np.bool_ else 8 * wanted.itemsize]
        if isinstance(operand, Immediate):
            low = operand.bits & ((1 << (8 * wanted.itemsize)) - 1)
            constant = np.array([low]).astype(unsigned).view(wanted)
            return lambda _: constant

        def read(machine: Machine) -> np.ndarray:
            bits = machine.bits(operand)
            if bits.itemsize > wanted.itemsize:
                bits = bits.astype(unsigned)
            return bits.view(wanted)

        return read

    def write(self, register: Register, value: np.ndarray) -> None:
        """Write the lanes that run; a signed value is widened as such."""
        unsigned = UNSIGNED[register.bits]
        if value.dtype != unsigned:
            if value.itemsize != np.dtype(unsigned).itemsize:
                signed = value.dtype.kind == "i"
                value = value.astype(f"i{register.bits // 8}" if signed else unsigned)
            value = value.view(unsigned)
        if self.mask is not None:
            before = self.registers.get(register.name)
            if before is None:
                before = np.array([_POISON]).astype(unsigned)
            value = np.where(self.mask, value, before)
        self.registers[register.name] = value

    # -- some lanes alone ---------------------------------------------------------------

    def running(self) -> np.ndarray:
        """The numbers of the lanes that run."""
        return np.arange(self.lanes) if self.mask is None else np.flatnonzero(self.mask)

    def whole(self, size: int) -> np.ndarray:
        """The same, of groups of lanes that run as one.

        Raises:
            PtxError: Of some group only a part runs.
        """
        lanes = self.running()
        groups = np.bincount(lanes // size, minlength=self.lanes // size)
        if not np.isin(groups, (0, size)).all():
            raise PtxError(f"only a part of some {size} threads takes part")
        return lanes

    def of(self, operand: Operand, lanes: np.ndarray, dtype: type) -> np.ndarray:
        """An operand in some lanes."""
        return np.broadcast_to(self.reader(operand, dtype)(self), self.lanes)[lanes]

    def put(self, register: Register, lanes: np.ndarray, value: np.ndarray) -> None:
        """Write some lanes alone, whatever mask there is."""
        everywhere = np.empty(self.lanes, value.dtype)
        everywhere[lanes] = value
        mask, self.mask = self.mask, self.mask_of(lanes)
        self.write(register, everywhere)
        self.mask = mask

    def mask_of(self, lanes: np.ndarray) -> np.ndarray | None:
        """These lanes as a mask."""
        if len(lanes) == self.lanes:
            return None
        mask = np.zeros(self.lanes, np.bool_)
        mask[lanes] = True
        return mask


def run(program: Program, steps: list[Step | None], launch: Launch) -> None:
    """Run a whole launch.

    Args:
        program: The kernel.
        steps: What each of its instructions does, None of branches and the end.
        launch: With what.

    Raises:
        PtxError: It does what a card would not allow; the instruction is named.
    """
    programs = launch.grid[0] * launch.grid[1] * launch.grid[2]
    at_once = max(1, LANES_AT_ONCE // program.threads)
    with np.errstate(all="ignore"):
        for first in range(0, programs, at_once):
            count = min(at_once, programs - first)
            _Walk(Machine(launch, program, first, count), program, steps).run()


class _Walk:
    """Where the lanes of a machine stand."""

    def __init__(self, machine: Machine, program: Program, steps: list[Step | None]) -> None:
        self._machine = machine
        self._program = program
        self._steps = steps
        self._waiting: dict[int, np.ndarray] = {}
        """The lanes that stand elsewhere, by instruction."""

    def run(self) -> None:
        """Until all have returned."""
        here: int | None = 0
        while here is not None:
            if self._waiting and min(self._waiting) <= here:
                here = self._meet(here)
            instruction, step = self._program.instructions[here], self._steps[here]
            try:
                here = self._one(here, instruction, step)
            except PtxError as error:
                raise PtxError(f"{error}: {instruction.text}") from error

    def _one(self, here: int, instruction: Instruction, step: Step | None) -> int | None:
        """Run one instruction; where to go on, None at the end."""
        machine = self._machine
        chosen = machine.mask
        if instruction.guard is not None:
            guard = machine.bits(instruction.guard) ^ instruction.negated
            guard = np.broadcast_to(guard, machine.lanes)
            chosen = guard if chosen is None else guard & chosen
            if machine.mask is None and chosen.all():
                chosen = None
            elif not chosen.any():
                return here + 1
        if step is not None:
            before, machine.mask = machine.mask, chosen
            step(machine)
            machine.mask = before
            return here + 1
        if instruction.opcode != "ret":
            (label,) = instruction.operands
            assert isinstance(label, Name)
            target = self._program.labels[label.text]
            if chosen is machine.mask:
                return target
            self._wait(target, chosen)
        return self._without(chosen, here + 1)

    def _without(self, gone: np.ndarray | None, here: int) -> int | None:
        """Go on here with the lanes that are not gone, or else where others wait."""
        machine = self._machine
        if gone is not None:
            left = ~gone if machine.mask is None else machine.mask & ~gone
            if left.any():
                machine.mask = left
                return here
        if not self._waiting:
            return None
        here = min(self._waiting)
        machine.mask = _as_mask(self._waiting.pop(here))
        return here

    def _wait(self, place: int, lanes: np.ndarray) -> None:
        others = self._waiting.get(place)
        self._waiting[place] = lanes if others is None else others | lanes

    def _meet(self, here: int) -> int:
        """Go on at the earliest instruction, with all that stand there."""
        machine = self._machine
        assert machine.mask is not None, "some lanes wait, and all run"
        self._wait(here, machine.mask)
        here = min(self._waiting)
        machine.mask = _as_mask(self._waiting.pop(here))
        return here


def _as_mask(lanes: np.ndarray) -> np.ndarray | None:
    return None if lanes.all() else lanes
