"""What each instruction of a kernel does, whichever family's it is."""

import ptx_floats
import ptx_integers
import ptx_memory
import ptx_warps
from ptx_machine import Step
from ptx_program import Instruction, Program, PtxError

_FAMILIES = (ptx_integers, ptx_floats, ptx_memory, ptx_warps)
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
    for family in _FAMILIES:
        step: Step | None = family.decode(instruction)
        if step is not None:
            return step
    return None
