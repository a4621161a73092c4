"""Integers, bits and choices: what each lane does by itself."""

from collections.abc import Callable

import numpy as np
from ptx_machine import Family, Machine, Step
from ptx_program import Instruction, Operand, Register, Vector

DTYPES = {
    "pred": np.bool_,
    "f32": np.float32,
    "f64": np.float64,
    **{f"s{bits}": np.dtype(f"i{bits // 8}").type for bits in (8, 16, 32, 64)},
    **{f"{u}{bits}": np.dtype(f"u{bits // 8}").type for u in "ub" for bits in (8, 16, 32, 64)},
}
Lanewise = Callable[..., np.ndarray]
_TWICE = {"s32": np.int64, "u32": np.uint64, "s16": np.int32, "u16": np.uint32}


def lanewise(instruction: Instruction, function: Lanewise, *types: str) -> Step:
    """A step that writes a function of operands of these types."""
    target, *sources = instruction.operands
    readers = [
        Machine.reader(operand, DTYPES[kind])
        for operand, kind in zip(sources, types, strict=True)
    ]
    assert isinstance(target, Register)
    return lambda machine: machine.write(target, function(*(read(machine) for read in readers)))


# -- arithmetic ----------------------------------------------------------------------


def _quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Towards zero. What a division by zero gives is left open by PTX: here 0."""
    return (a - _rest(a, b)) // np.where(b == 0, b.dtype.type(1), b)


def _rest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """With the sign of a."""
    return np.where(b == 0, a, np.fmod(a, np.where(b == 0, b.dtype.type(1), b)))


_TWO: dict[str, Lanewise] = {
    "add": np.add,
    "sub": np.subtract,
    "mul.lo": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "min.relu": lambda a, b: np.maximum(np.minimum(a, b), 0),
    "max.relu": lambda a, b: np.maximum(np.maximum(a, b), 0),
    "div": _quotient,
    "rem": _rest,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}
_ONE: dict[str, Lanewise] = {"neg": np.negative, "not": np.invert, "abs": np.abs}
_COMPARED: dict[str, Lanewise] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


def _two(instruction: Instruction, name: str, kind: str) -> Step:
    return lanewise(instruction, _TWO[name], kind, kind)


def _one(instruction: Instruction, name: str, kind: str) -> Step:
    return lanewise(instruction, _ONE[name], kind)


def _multiply_add(instruction: Instruction, kind: str) -> Step:
    return lanewise(instruction, lambda a, b, c: a * b + c, kind, kind, kind)


def _wide(instruction: Instruction, name: str, kind: str) -> Step:
    """Of 32 bits by 32, all 64; and a sum with such a product."""
    twice = _TWICE[kind]
    if name == "mul":
        return lanewise(instruction, lambda a, b: a.astype(twice) * b.astype(twice), kind, kind)
    wide = f"{kind[0]}{2 * int(kind[1:])}"
    return lanewise(
        instruction, lambda a, b, c: a.astype(twice) * b.astype(twice) + c, kind, kind, wide
    )


def _high(instruction: Instruction, kind: str) -> Step:
    twice, bits = _TWICE[kind], int(kind[1:])
    return lanewise(
        instruction,
        lambda a, b: (a.astype(twice) * b.astype(twice) >> twice(bits)).astype(DTYPES[kind]),
        *(kind, kind),
    )


def _shift(instruction: Instruction, way: str, kind: str) -> Step:
    """By more than there are bits, all of them go."""
    bits = int(kind[1:])

    def shifted(a: np.ndarray, by: np.ndarray) -> np.ndarray:
        most = bits - 1 if kind[0] == "s" else bits
        by = np.minimum(by, np.uint32(most)).astype(a.dtype)
        if most == bits:
            inside = by < bits
            moved = (np.left_shift if way == "l" else np.right_shift)(
                a, np.where(inside, by, a.dtype.type(0))
            )
            return np.where(inside, moved, a.dtype.type(0))
        return np.right_shift(a, by)

    return lanewise(instruction, shifted, kind, "u32")


def _field(instruction: Instruction, kind: str) -> Step:
    """Some bits: from a place, so many; signed ones with the sign of their highest."""
    bits = int(kind[1:])

    def extracted(a: np.ndarray, place: np.ndarray, count: np.ndarray) -> np.ndarray:
        place, count = place.astype(np.int64) & 255, count.astype(np.int64) & 255
        if (place + count > bits).any() or (count < 1).any():
            raise NotImplementedError("a field that is not within the word")
        up = (bits - place - count).astype(a.dtype)
        return a << up >> (bits - count).astype(a.dtype)

    return lanewise(instruction, extracted, kind, "u32", "u32")


# -- choices and moves -----------------------------------------------------------------


def _compare(instruction: Instruction, how: str, kind: str) -> Step:
    return lanewise(instruction, _COMPARED[how], kind, kind)


def _select(instruction: Instruction, kind: str) -> Step:
    return lanewise(instruction, lambda a, b, p: np.where(p, a, b), kind, kind, "pred")


def _move(instruction: Instruction, kind: str) -> Step:
    """Of a value; or of the halves of a word, to it or from it."""
    target, source = instruction.operands
    if isinstance(source, Vector):
        return _join(target, source, kind)
    if isinstance(target, Vector):
        return _split(target, source, kind)
    return lanewise(instruction, lambda a: a, kind)


def _join(target: Operand, source: Vector, kind: str) -> Step:
    assert isinstance(target, Register)
    whole = DTYPES[kind]
    each = int(kind[1:]) // len(source.parts)
    readers = [Machine.reader(part, DTYPES[f"u{each}"]) for part in source.parts if part]
    assert len(readers) == len(source.parts)

    def step(machine: Machine) -> None:
        parts = [read(machine).astype(whole) for read in readers]
        word = parts[0]
        for index, part in enumerate(parts[1:], 1):
            word = word | part << whole(index * each)
        machine.write(target, word)

    return step


def _split(target: Vector, source: Operand, kind: str) -> Step:
    whole = DTYPES[kind]
    each = int(kind[1:]) // len(target.parts)
    read = Machine.reader(source, whole)

    def step(machine: Machine) -> None:
        word = read(machine)
        for index, part in enumerate(target.parts):
            if part is not None:
                assert isinstance(part, Register)
                machine.write(part, (word >> whole(index * each)).astype(DTYPES[f"u{each}"]))

    return step


def _convert(instruction: Instruction, target: str, source: str) -> Step:
    """Between integers: the low bits, or widened as the source's sign says."""
    return lanewise(instruction, lambda a: a.astype(DTYPES[target]), source)


def _chosen_bytes(instruction: Instruction) -> Step:
    """Four of the eight bytes of b and a, each named by four bits of c."""

    def chosen(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
        word = np.zeros(1, np.uint32)
        for index in range(4):
            name = c >> np.uint32(4 * index) & np.uint32(15)
            byte = (both >> (np.uint64(8) * (name & 7).astype(np.uint64))).astype(np.uint8)
            signs = (byte.view(np.int8) >> np.int8(7)).view(np.uint8)
            byte = np.where(name & 8, signs, byte)
            word = word | byte.astype(np.uint32) << np.uint32(8 * index)
        return word

    return lanewise(instruction, chosen, "u32", "u32", "u32")


def _three_inputs(instruction: Instruction) -> Step:
    """Any function of three bits, by its table."""

    def looked_up(a: np.ndarray, b: np.ndarray, c: np.ndarray, t: np.ndarray) -> np.ndarray:
        word = np.zeros(1, np.uint32)
        for place in range(8):
            terms = [v if place >> n & 1 else ~v for n, v in ((2, a), (1, b), (0, c))]
            bit = (t >> np.uint32(place) & np.uint32(1)) * np.uint32(0xFFFF_FFFF)
            word = word | bit & terms[0] & terms[1] & terms[2]
        return word

    return lanewise(instruction, looked_up, "u32", "u32", "u32", "u32")


_INTEGER = r"([su](?:16|32|64))"
FAMILY: Family = (
    (rf"(add|sub|mul\.lo|min|max|div|rem)\.{_INTEGER}", _two),
    (r"((?:min|max)\.relu)\.(s32)", _two),
    (r"(and|or|xor)\.(b16|b32|b64|pred)", _two),
    (r"(neg|abs)\.(s16|s32|s64)", _one),
    (r"(not)\.(b16|b32|b64|pred)", _one),
    (rf"mad\.lo\.{_INTEGER}", _multiply_add),
    (r"(mul|mad)\.wide\.([su](?:16|32))", _wide),
    (r"mul\.hi\.([su]32)", _high),
    (r"sh(l)\.(b16|b32|b64)", _shift),
    (r"sh(r)\.([sub](?:16|32|64))", _shift),
    (r"bfe\.([su](?:32|64))", _field),
    (r"setp\.(eq|ne|lt|le|gt|ge)\.([sub](?:16|32|64))", _compare),
    (r"selp\.([subf](?:16|32|64))", _select),
    (r"mov\.([sub](?:16|32|64)|f32|f64|pred)", _move),
    (r"cvt\.([su](?:8|16|32|64))\.([su](?:8|16|32|64))", _convert),
    (r"prmt\.b32", _chosen_bytes),
    (r"lop3\.b32", _three_inputs),
)
