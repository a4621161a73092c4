"""Loads, stores, atomics, and copies to shared memory that are waited for later."""

from collections.abc import Callable

import numpy as np
from ptx_integers import DTYPES
from ptx_machine import Family, Machine, Step
from ptx_program import (
    Address,
    Immediate,
    Instruction,
    Name,
    Operand,
    PtxError,
    Register,
    Vector,
)


def addresses(machine: Machine, place: Operand, lanes: np.ndarray) -> np.ndarray:
    """Where an address points, of some lanes."""
    assert isinstance(place, Address)
    base = np.broadcast_to(machine.bits(place.base), machine.lanes)[lanes]
    return base + base.dtype.type(place.offset & ((1 << (8 * base.itemsize)) - 1))


def words(
    machine: Machine, space: str, at: np.ndarray, size: int, lanes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Memory as words, and which of them lie at these addresses."""
    if space == "global":
        return machine.memory.view(at, size)
    return machine.shared.view(at, size, lanes)


def _parts(operand: Operand) -> tuple[Register | Immediate | None, ...]:
    if isinstance(operand, Vector):
        return operand.parts
    assert isinstance(operand, Register | Immediate)
    return (operand,)


def _checked(at: np.ndarray, size: int) -> None:
    if (at % size).any():
        raise PtxError(f"an address is not a multiple of {size} bytes")


def _parameter(instruction: Instruction, bits: str) -> Step:
    target, place = instruction.operands
    assert isinstance(target, Register)
    assert isinstance(place, Address)
    assert isinstance(place.base, Name)
    assert not place.offset
    name, mask = place.base.text, (1 << int(bits)) - 1

    def step(machine: Machine) -> None:
        value = np.array([machine.parameters[name] & mask], np.uint64)
        machine.write(target, value.astype(DTYPES[f"u{bits}"]))

    return step


def _load(instruction: Instruction, space: str, count: str | None, bits: str) -> Step:
    target, place = instruction.operands
    size, parts = int(bits) // 8, _parts(target)
    assert len(parts) == int(count or 1)

    def step(machine: Machine) -> None:
        lanes = machine.running()
        at = addresses(machine, place, lanes)
        _checked(at, size * len(parts))
        found = []
        for index, part in enumerate(parts):
            memory, which = words(machine, space, at + at.dtype.type(index * size), size, lanes)
            found.append((part, memory[which]))
        for part, value in found:
            if part is not None:
                assert isinstance(part, Register)
                machine.put(part, lanes, value)

    return step


def _store(instruction: Instruction, space: str, count: str | None, bits: str) -> Step:
    place, source = instruction.operands
    size, parts = int(bits) // 8, _parts(source)
    assert len(parts) == int(count or 1)

    def step(machine: Machine) -> None:
        lanes = machine.running()
        at = addresses(machine, place, lanes)
        _checked(at, size * len(parts))
        for index, part in enumerate(parts):
            assert part is not None
            memory, which = words(machine, space, at + at.dtype.type(index * size), size, lanes)
            memory[which] = machine.of(part, lanes, DTYPES[f"u{bits}"])

    return step


# -- atomics ---------------------------------------------------------------------------

_COMBINED: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "exch": lambda _, new: new,
}


def _atomic(instruction: Instruction, space: str, name: str, kind: str) -> Step:
    """One lane after another: any order is one that a card may take."""
    target, place, source = instruction.operands
    assert isinstance(target, Register)
    combined, dtype, size = _COMBINED[name], DTYPES[kind], int(kind[1:]) // 8

    def step(machine: Machine) -> None:
        lanes = machine.running()
        memory, which = words(machine, space, addresses(machine, place, lanes), size, lanes)
        cells, given = memory.view(dtype), machine.of(source, lanes, dtype)
        before = np.empty(len(lanes), dtype)
        for index, (cell, value) in enumerate(zip(which.tolist(), given, strict=True)):
            before[index] = cells[cell]
            cells[cell] = combined(before[index], value)
        machine.put(target, lanes, before)

    return step


# -- copies that take their time ---------------------------------------------------------


def _copy(instruction: Instruction) -> Step:
    """From global to shared memory, or zeros: what comes is there once it was waited for."""
    target, source, width, *given = instruction.operands
    assert isinstance(width, Immediate)

    def step(machine: Machine) -> None:
        lanes = machine.running()
        to = addresses(machine, target, lanes)
        _checked(to, width.bits)
        taken = np.ones(len(lanes), np.bool_)
        if given:
            count = machine.of(given[0], lanes, np.uint32)
            if not np.isin(count, (0, width.bits)).all():
                raise PtxError("a copy of a part")
            taken = count > 0
        values = np.zeros((width.bits // 4, len(lanes)), np.uint32)
        if taken.any():
            at = addresses(machine, source, lanes[taken])
            _checked(at, width.bits)
            for index in range(width.bits // 4):
                memory, which = machine.memory.view(at + np.uint64(4 * index), 4)
                values[index, taken] = memory[which]
        machine.open_copies.append(lambda later: _arrive(later, to, values, lanes))

    return step


def _arrive(machine: Machine, to: np.ndarray, values: np.ndarray, lanes: np.ndarray) -> None:
    for index, value in enumerate(values):
        memory, which = machine.shared.view(to + np.uint32(4 * index), 4, lanes)
        memory[which] = value


def _commit_copies(instruction: Instruction) -> Step:
    def step(machine: Machine) -> None:
        machine.whole(machine.lanes)
        machine.copies.append(machine.open_copies)
        machine.open_copies = []

    return step


def _wait_for_copies(instruction: Instruction) -> Step:
    (left,) = instruction.operands
    assert isinstance(left, Immediate)

    def step(machine: Machine) -> None:
        machine.whole(machine.lanes)
        settle(machine, machine.copies, left.bits)

    return step


def settle(machine: Machine, groups: list[list[Step]], left: int) -> None:
    """Let what was begun happen, as late as it may: but for so many groups."""
    while len(groups) > left:
        for act in groups.pop(0):
            act(machine)


_SPACE = r"(global|shared)"
FAMILY: Family = (
    (r"ld\.param\.[sub](8|16|32|64)", _parameter),
    (rf"ld\.{_SPACE}(?:\.v([24]))?\.[ub](8|16|32|64)", _load),
    (rf"st\.{_SPACE}(?:\.v([24]))?\.[ub](8|16|32|64)", _store),
    (
        rf"atom\.{_SPACE}\.gpu\.(?:acq_rel|relaxed)\.(\w+)\.([sub](?:32|64))",
        _atomic,
    ),
    (r"cp\.async\.c[ag]\.shared\.global", _copy),
    (r"cp\.async\.commit_group", _commit_copies),
    (r"cp\.async\.wait_group", _wait_for_copies),
)
