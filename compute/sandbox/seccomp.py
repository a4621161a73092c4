"""System call filters: a small assembler for the kernel's BPF, and how to load one.

A `Filter` says which calls are allowed, under which conditions on their arguments,
which fail with another errno than the rest, and what happens to the rest. `assemble`
makes the program from that, a pure function; `load` hands it to the kernel for all
threads of the process. A call of another architecture's ABI kills the process.

Which calls a worker may make is data: `shoal.compute.sandbox.profiles`.

Source: https://docs.kernel.org/userspace-api/seccomp_filter.html
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from shoal.compute.sandbox.kernel import call

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shoal.compute.sandbox.kernel import Architecture

KILL_PROCESS: Final = 0x80000000
ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000

# Operation codes: BPF_LD|W|ABS, BPF_ALU|AND|K, BPF_JMP|JEQ|K, BPF_JMP|JGE|K, BPF_RET|K.
_LOAD, _AND, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06

# Offsets in struct seccomp_data; both architectures are little-endian.
_NUMBER, _ARCHITECTURE, _ARGUMENTS, _ARGUMENT_BYTES = 0, 4, 16, 8

_SET_MODE_FILTER, _GET_ACTION_AVAILABLE = 1, 2
_ALL_THREADS: Final = 1  # SECCOMP_FILTER_FLAG_TSYNC


@dataclass(frozen=True, slots=True)
class Where:
    """A condition on one argument: ``(argument & mask) in values``.

    Only the lower 32 bits are looked at. The arguments that are checked are an ``int``
    to the kernel, which ignores the rest, or flags whose forbidden bits are all low.
    """

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Filter:
    """What happens to each call.

    Attributes:
        allowed: Calls by name, each with conditions that must all hold.
        errnos: Calls that fail with an errno of their own.
        otherwise: The action for every other call: `ALLOW`, or `fails` with an errno.
        unmet: The action for an allowed call whose conditions do not hold; None is as
            ``otherwise``.
    """

    allowed: Mapping[str, tuple[Where, ...]] = field(default_factory=dict)
    errnos: Mapping[str, int] = field(default_factory=dict)
    otherwise: int = ALLOW
    unmet: int | None = None


def fails(errno: int) -> int:
    """The action that makes a call fail with ``errno``."""
    return _ERRNO | errno


@dataclass(frozen=True, slots=True)
class Instruction:
    """One ``struct sock_filter``; jumps are relative to the next instruction."""

    code: int
    value: int
    if_true: int = 0
    if_false: int = 0


def assemble(rules: Filter, here: Architecture) -> list[Instruction]:
    """The program for a filter on one architecture; calls that it lacks are left out."""
    program = [
        Instruction(_LOAD, _ARCHITECTURE),
        Instruction(_JUMP_EQUAL, here.audit, if_true=1),
        Instruction(_RETURN, KILL_PROCESS),
        Instruction(_LOAD, _NUMBER),
    ]
    if here.first_foreign is not None:
        program += [
            Instruction(_JUMP_AT_LEAST, here.first_foreign, if_false=1),
            Instruction(_RETURN, KILL_PROCESS),
        ]
    for name, errno in rules.errnos.items():
        program += _when(here, name, [Instruction(_RETURN, fails(errno))])
    # Calls without conditions go first: they are the frequent ones.
    unmet = rules.otherwise if rules.unmet is None else rules.unmet
    for name, conditions in sorted(rules.allowed.items(), key=lambda rule: bool(rule[1])):
        body = [step for where in conditions for step in _check(where, unmet)]
        program += _when(here, name, [*body, Instruction(_RETURN, ALLOW)])
    return [*program, Instruction(_RETURN, rules.otherwise)]


def _when(here: Architecture, name: str, body: list[Instruction]) -> list[Instruction]:
    """``body``, which must return, for one call; others go on behind it."""
    if name not in here.syscalls:
        return []
    return [Instruction(_JUMP_EQUAL, here.syscalls[name], if_false=len(body)), *body]


def _check(where: Where, otherwise: int) -> list[Instruction]:
    """Go on where the condition holds, else return ``otherwise``."""
    steps = [Instruction(_LOAD, _ARGUMENTS + _ARGUMENT_BYTES * where.argument)]
    if where.mask != 0xFFFFFFFF:
        steps.append(Instruction(_AND, where.mask))
    to_end = len(where.values)
    for index, value in enumerate(where.values):
        steps.append(Instruction(_JUMP_EQUAL, value, if_true=to_end - index))
    return [*steps, Instruction(_RETURN, otherwise)]


def encode(program: list[Instruction]) -> bytes:
    """The program as the kernel reads it."""
    return b"".join(
        struct.pack("=HBBI", step.code, step.if_true, step.if_false, step.value)
        for step in program
    )


def check_available() -> None:
    """See whether filters can be loaded here; loads none.

    Raises:
        OSError: They cannot.
    """
    for action in (KILL_PROCESS, _ERRNO):
        call("seccomp", _GET_ACTION_AVAILABLE, 0, struct.pack("=I", action))


def load(rules: Filter, here: Architecture) -> None:
    """Hold every thread of this process to a filter; ``no_new_privs`` must be set.

    Raises:
        OSError: The kernel refused.
    """
    program = assemble(rules, here)
    code = ctypes.create_string_buffer(encode(program))
    header = struct.pack("@HP", len(program), ctypes.addressof(code))
    call("seccomp", _SET_MODE_FILTER, _ALL_THREADS, header)
