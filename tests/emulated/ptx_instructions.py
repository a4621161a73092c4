"""What each instruction of a kernel does, whichever family's it is."""

import re

import ptx_floats
import ptx_integers
import ptx_memory
import ptx_warps
from ptx_machine import Step
from ptx_program import Instruction, Program, PtxError

_KNOWN = [
    (re.compile(pattern), make)
    for family in (ptx_integers, ptx_floats, ptx_memory, ptx_warps)
    for pattern, make in family.FAMILY
]
_FLOW = ("bra", "bra.uni", "ret")


def decoded(program: Program) -> list[Step | None]:
    """What each instruction does, None of branches and the end.

    Raises:
        PtxError: Some are not known here; all of those are named.
    """
    steps = [_decoded(instruction) for instruction in program.instructions]
    unknown = {
        instruction.opcode
        for instruction, step in zip(program.instructions, steps, strict=True)
        if step is None and instruction.opcode not in _FLOW
    }
    if unknown:
        raise PtxError(f"unknown instructions: {', '.join(sorted(unknown))}")
    return steps


def _decoded(instruction: Instruction) -> Step | None:
    for pattern, make in _KNOWN:
        if found := pattern.fullmatch(instruction.opcode):
            step: Step = make(instruction, *found.groups())
            return step
    return None
