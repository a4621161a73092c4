"""PTX as text made into instructions: what `ptx_machine` runs.

What is read is one kernel as Triton's compiler writes it (PTX ISA 8, one ``.entry``, no
functions). Debug information is left out; a directive or operand that is not known is an
error, never passed over.
"""

import re
from dataclasses import dataclass

REGISTER_BITS = {".pred": 1, ".b16": 16, ".b32": 32, ".b64": 64}
_QUIET = (".loc", ".pragma", ".file")
_PARAMETER = re.compile(r"\.param \.(\w+)(?: \.ptr[^,\n]*?)? (\w+)[,\n]")
_DECLARED = re.compile(r"\.reg (\.\w+)\s+%(\w+)<\d+>")
_GUARDED = re.compile(r"@(!?)%(\w+)\s+")
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")


class PtxError(Exception):
    """The text is none that this emulator reads, or does what a card would not allow."""


@dataclass(frozen=True, slots=True)
class Register:
    """Such as ``%rd12``.

    Attributes:
        name: Without the sign.
        bits: 1 of a predicate.
    """

    name: str
    bits: int


@dataclass(frozen=True, slots=True)
class Immediate:
    """A constant by its bits, those of a float too; negative ones as Python has them."""

    bits: int


@dataclass(frozen=True, slots=True)
class Name:
    """A label, a parameter, a special register, or the kernel's shared memory."""

    text: str


@dataclass(frozen=True, slots=True)
class Address:
    """What stands in brackets."""

    base: "Register | Name"
    offset: int


@dataclass(frozen=True, slots=True)
class Vector:
    """What stands in braces; None is a part that is thrown away."""

    parts: "tuple[Register | Immediate | None, ...]"


Operand = Register | Immediate | Name | Address | Vector


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction.

    Attributes:
        opcode: With all its modifiers, such as ``add.rn.f64``.
        operands: As written, what is written to first.
        guard: The predicate that lets it run, if it has one.
        negated: Whether it runs where the guard is false.
        text: As it stands, for messages.
    """

    opcode: str
    operands: tuple[Operand, ...]
    guard: Register | None
    negated: bool
    text: str


@dataclass(frozen=True, slots=True)
class Program:
    """A kernel.

    Attributes:
        parameters: Type of each by name, in order.
        threads: Of one program.
        instructions: In order.
        labels: The instruction that each label stands before.
    """

    parameters: dict[str, str]
    threads: int
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]


def parse(text: str) -> Program:
    """Read one kernel.

    Raises:
        PtxError: It has what is not known here.
    """
    text = re.sub(r"//[^\n]*", "", text)
    head, _, rest = text.partition("\n{")
    body = rest[: rest.index("\n}")]
    threads = re.search(r"\.reqntid (\d+)", head)
    if threads is None:
        raise PtxError("the kernel does not say how many threads it has")
    bits = {prefix: REGISTER_BITS[kind] for kind, prefix in _DECLARED.findall(body)}
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in body.splitlines():
        for statement in filter(None, map(str.strip, line.split(";"))):
            if statement.endswith(":"):
                labels[statement[:-1]] = len(instructions)
            elif statement.startswith(".reg"):
                continue
            elif statement.startswith("."):
                if not statement.startswith(_QUIET):
                    raise PtxError(f"unknown directive: {statement}")
            else:
                instructions.append(_instruction(statement, bits))
    parameters = {name: kind for kind, name in _PARAMETER.findall(head + "\n")}
    return Program(parameters, int(threads[1]), tuple(instructions), labels)


def _instruction(statement: str, bits: dict[str, int]) -> Instruction:
    guard, negated, rest = None, False, statement
    if found := _GUARDED.match(statement):
        guard, negated = _register(found[2], bits), bool(found[1])
        rest = statement[found.end() :]
    opcode, _, operands = rest.partition(" ") if "\t" not in rest else rest.partition("\t")
    parsed = tuple(_operand(one.strip(), bits) for one in _OPERAND.findall(operands))
    return Instruction(opcode.strip(), parsed, guard, negated, statement)


def _operand(text: str, bits: dict[str, int]) -> Operand:
    if text.startswith("{"):
        parts = [part.strip() for part in text[1:-1].split(",")]
        return Vector(tuple(None if part == "_" else _plain(part, bits) for part in parts))
    if text.startswith("["):
        base, _, offset = text[1:-1].partition("+")
        where = _plain(base.strip(), bits)
        if isinstance(where, Immediate):
            raise PtxError(f"an address that is a constant: {text}")
        return Address(where, int(offset or "0", 0))
    return _plain(text, bits)


def _plain(text: str, bits: dict[str, int]) -> "Register | Immediate | Name":
    if re.fullmatch(r"%[a-z]+\d+", text):
        return _register(text[1:], bits)
    if found := re.fullmatch(r"0[df]([0-9A-Fa-f]+)", text):
        return Immediate(int(found[1], 16))
    if re.fullmatch(r"-?(\d+|0x[0-9A-Fa-f]+)U?", text):
        return Immediate(int(text.rstrip("U"), 0))
    if re.fullmatch(r"[%$\w.]+", text):
        return Name(text)
    raise PtxError(f"unknown operand: {text}")


def _register(name: str, bits: dict[str, int]) -> Register:
    return Register(name, bits[name.rstrip("0123456789")])
