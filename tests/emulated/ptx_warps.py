"""What 32 lanes do together, or 128, or all: exchanges, matrices, barriers.

Shapes: a warp's registers are (warps, 32), and lane l holds, of a matrix in rows of
four-byte words, row l // 4 and word l % 4, as PTX lays out all of its fragments.
"""

import numpy as np
from ptx_machine import WARP, Family, Machine, Step
from ptx_memory import addresses, settle
from ptx_program import Immediate, Instruction, Operand, PtxError, Register, Vector

_GROUP = 4 * WARP
_ROWS = 8
_WAY = {1: (128, 7), 2: (64, 3), 3: (32, 1)}
"""Of a descriptor's swizzle: a row's bytes, and the rows whose chunks are told apart."""


def _everyone(operand: Operand) -> None:
    if operand != Immediate(-1) and operand != Immediate(0xFFFF_FFFF):
        raise PtxError("an exchange of a part of a warp")


def _registers(operand: Operand) -> list[Register]:
    assert isinstance(operand, Vector)
    registers = [part for part in operand.parts if isinstance(part, Register)]
    assert len(registers) == len(operand.parts)
    return registers


# -- one warp ----------------------------------------------------------------------------


def _shuffle(instruction: Instruction, way: str) -> Step:
    """Each lane takes another's value, or keeps its own where that is out of bounds."""
    target, source, offset, clamp, members = instruction.operands
    assert isinstance(target, Register)
    _everyone(members)

    def step(machine: Machine) -> None:
        lanes = machine.whole(WARP)
        value, by, c = (
            machine.of(operand, lanes, np.uint32).reshape(-1, WARP)
            for operand in (source, offset, clamp)
        )
        lane = np.arange(WARP)
        by, bound, segment = (v.astype(np.int64) for v in (by & 31, c & 31, c >> 8 & 31))
        first = lane & segment
        last = first | bound & ~segment
        if way == "up":
            other, inside = lane - by, lane - by >= last
        elif way == "down":
            other, inside = lane + by, lane + by <= last
        else:
            other = lane ^ by if way == "bfly" else first | by & ~segment
            inside = other <= last
        taken = np.take_along_axis(value, np.where(inside, other, lane), 1)
        machine.put(target, lanes, taken.reshape(-1))

    return step


def _reduce(instruction: Instruction, name: str, kind: str) -> Step:
    target, source, members = instruction.operands
    assert isinstance(target, Register)
    dtype = np.int32 if kind == "s" else np.uint32
    combined = {"max": np.maximum, "min": np.minimum, "add": np.add}[name]

    def step(machine: Machine) -> None:
        lanes = machine.whole(WARP)
        if not (machine.of(members, lanes, np.int32) == -1).all():
            raise PtxError("an exchange of a part of a warp")
        value = machine.of(source, lanes, dtype).reshape(-1, WARP)
        found = combined.reduce(value, axis=1, dtype=dtype)
        machine.put(target, lanes, np.repeat(found, WARP))

    return step


def _load_matrices(instruction: Instruction, count: str, turned: str | None) -> Step:
    """8 rows of 16 bytes each: the addresses of a matrix's rows are eight lanes'."""
    target, place = instruction.operands
    parts = _registers(target)
    assert len(parts) == int(count)

    def step(machine: Machine) -> None:
        lanes = machine.whole(WARP)
        for index, part in enumerate(parts):
            memory, which = _halves(machine, place, index, lanes)
            matrix = memory[which]  # (warps, 8, 8) uint16
            if turned:
                matrix = matrix.transpose(0, 2, 1)
            value = np.ascontiguousarray(matrix).view(np.uint32)
            machine.put(part, lanes, value.reshape(-1))

    return step


def _store_matrices(instruction: Instruction, count: str, turned: str | None) -> Step:
    """Likewise, the other way."""
    place, source = instruction.operands
    parts = _registers(source)
    assert len(parts) == int(count)

    def step(machine: Machine) -> None:
        lanes = machine.whole(WARP)
        for index, part in enumerate(parts):
            memory, which = _halves(machine, place, index, lanes)
            matrix = machine.of(part, lanes, np.uint32).view(np.uint16).reshape(-1, 8, 8)
            memory[which] = matrix.transpose(0, 2, 1) if turned else matrix

    return step


def _halves(
    machine: Machine, place: Operand, index: int, lanes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Shared memory in words of two bytes, and where a matrix lies in it, (warps, 8, 8)."""
    at = addresses(machine, place, lanes).reshape(-1, WARP)
    rows = at[:, index * _ROWS : (index + 1) * _ROWS, None]
    if (rows % 16).any():
        raise PtxError("an address is not a multiple of 16 bytes")
    owner = lanes.reshape(-1, WARP)[:, :1, None]
    return machine.shared.view(rows + np.arange(0, 16, 2, dtype=np.uint32), 2, owner)


def _multiply(instruction: Instruction, saturating: str | None) -> Step:
    """(16, 32) by (32, 8) of int8, added to (16, 8) of int32."""
    target, left, right, added = map(_registers, instruction.operands)

    def step(machine: Machine) -> None:
        lanes = machine.whole(WARP)
        a = _digits(machine, left, lanes, 2)
        b = _digits(machine, right, lanes, 1)
        sums = _product(a, b)  # (warps, 16, 8)
        before = _pairs(machine, added, lanes)  # (warps, 16, 8)
        total = sums + before
        bounds = np.iinfo(np.int32)
        if saturating:
            total = np.clip(total, bounds.min, bounds.max)
        _put_pairs(machine, target, lanes, total)

    return step


def _digits(
    machine: Machine, registers: list[Register], lanes: np.ndarray, high: int
) -> np.ndarray:
    """Int8 as (warps, 8 high, 32), of registers that go down first and then along."""
    value = np.stack([machine.of(one, lanes, np.uint32) for one in registers])
    value = value.reshape(-1, high, len(lanes) // WARP, _ROWS, 4)  # along, down, w, row, word
    value = value.transpose(2, 1, 3, 0, 4)
    return np.ascontiguousarray(value).view(np.int8).reshape(len(lanes) // WARP, high * 8, -1)


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rows of a by rows of b, int64: float64 sums that are far below 2^53 exactly."""
    sums = a.astype(np.float64) @ b.astype(np.float64).transpose(0, 2, 1)
    return sums.astype(np.int64)


def _pairs(machine: Machine, registers: list[Register], lanes: np.ndarray) -> np.ndarray:
    """Int32 as (warps, 16, 4 n), of 2 n registers."""
    value = np.stack([machine.of(one, lanes, np.int32) for one in registers]).astype(np.int64)
    value = value.reshape(
        -1, 2, 2, len(lanes) // WARP, _ROWS, 4
    )  # block, down, pair, w, row, col
    return value.transpose(3, 1, 4, 0, 5, 2).reshape(len(lanes) // WARP, 2 * _ROWS, -1)


def _put_pairs(
    machine: Machine, registers: list[Register], lanes: np.ndarray, value: np.ndarray
) -> None:
    warps = len(lanes) // WARP
    value = value.astype(np.int32).reshape(warps, 2, _ROWS, -1, 4, 2)
    value = value.transpose(3, 1, 5, 0, 2, 4).reshape(len(registers), -1)
    for register, one in zip(registers, value, strict=True):
        machine.put(register, lanes, one)


# -- four warps ---------------------------------------------------------------------------


def _multiply_later(instruction: Instruction, columns: str) -> Step:
    """(64, 32) by (32, columns) of int8 in shared memory, added to int32 in registers.

    It happens once it was waited for, with what is in shared memory then.
    """
    target, left, right, added = instruction.operands
    sums = _registers(target)

    def step(machine: Machine) -> None:
        lanes = machine.whole(_GROUP)
        a = None if isinstance(left, Vector) else _descriptor(machine, left, lanes)
        b = _descriptor(machine, right, lanes)
        adds = machine.of(added, lanes, np.bool_)

        def act(later: Machine) -> None:
            if a is None:
                rows = _digits(later, _registers(left), lanes, 2).reshape(-1, 64, 32)
            else:
                rows = _tile(later, a, 64, lanes)
            found = _product(rows, _tile(later, b, int(columns), lanes))
            found = found.reshape(-1, 16, int(columns))  # (warps, 16, columns)
            if adds.all():
                found = found + _pairs(later, sums, lanes)
            elif adds.any():
                raise PtxError("some lanes add and some do not")
            _put_pairs(later, sums, lanes, found)

        machine.open_products.append(act)

    return step


def _descriptor(machine: Machine, operand: Operand, lanes: np.ndarray) -> np.ndarray:
    """Where a matrix lies, of each group, (groups,) uint64."""
    value = machine.of(operand, lanes, np.uint64).reshape(-1, _GROUP)
    if (value != value[:, :1]).any():
        raise PtxError("the lanes of a group name different matrices")
    return value[:, 0]


def _tile(machine: Machine, descriptor: np.ndarray, rows: int, lanes: np.ndarray) -> np.ndarray:
    """A matrix of 32 columns of int8 in shared memory, (groups, rows, 32)."""
    way = int(descriptor[0] >> np.uint64(62))
    if (descriptor >> np.uint64(62) != way).any() or way not in _WAY:
        raise PtxError("a matrix that is laid out in another way")
    if (descriptor >> np.uint64(49) & np.uint64(7)).any():
        raise PtxError("a matrix with an offset of its base")
    pitch, told_apart = _WAY[way]
    field = np.uint64(0x3FFF)
    start = ((descriptor & field) << np.uint64(4))[:, None, None].astype(np.int64)
    stride = ((descriptor >> np.uint64(32) & field) << np.uint64(4)).astype(np.int64)
    row, byte = np.arange(rows)[None, :, None], np.arange(32)[None, None, :]
    at = start + row % _ROWS * pitch + row // _ROWS * stride[:, None, None] + byte
    at = at ^ (at >> 7 & told_apart) << 4
    owner = lanes.reshape(-1, _GROUP)[:, :1, None]
    memory, which = machine.shared.view(at, 1, owner)
    return memory[which].view(np.int8)


def _commit_products(instruction: Instruction) -> Step:
    def step(machine: Machine) -> None:
        machine.whole(machine.lanes)
        machine.products.append(machine.open_products)
        machine.open_products = []

    return step


def _wait_for_products(instruction: Instruction) -> Step:
    (left,) = instruction.operands
    assert isinstance(left, Immediate)

    def step(machine: Machine) -> None:
        machine.whole(machine.lanes)
        settle(machine, machine.products, left.bits)

    return step


# -- all ------------------------------------------------------------------------------------


def _barrier(instruction: Instruction) -> Step:
    """Since lanes run in step, all that is left to see to is that all are there."""
    if instruction.operands != (Immediate(0),):
        raise PtxError(f"a barrier for some: {instruction.text}")

    def step(machine: Machine) -> None:
        machine.whole(machine.threads)

    return step


def _nothing(instruction: Instruction) -> Step:
    """An order of memory that running in step gives."""
    return lambda machine: None


FAMILY: Family = (
    (r"shfl\.sync\.(up|down|bfly|idx)\.b32", _shuffle),
    (r"redux\.sync\.(max|min|add)\.([su])32", _reduce),
    (r"ldmatrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared\.b16", _load_matrices),
    (r"stmatrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared\.b16", _store_matrices),
    (r"mma\.sync\.aligned\.m16n8k32\.row\.col(\.satfinite)?\.s32\.s8\.s8\.s32", _multiply),
    (
        r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k32\.s32\.s8\.s8",
        _multiply_later,
    ),
    (r"wgmma\.commit_group\.sync\.aligned", _commit_products),
    (r"wgmma\.wait_group\.sync\.aligned", _wait_for_products),
    (r"bar\.sync", _barrier),
    (r"wgmma\.fence\.sync\.aligned|fence\.proxy\.async(?:\.shared::cta)?", _nothing),
)
