"""Elementwise operations on a card, asked for one by one and computed in chains.

Part of *execute*. What is asked for is a `Step`, which is computed when somebody needs its
elements: a product, a sum, the host. Its kernel then computes what it rests on along with it
(`steps`), so that elements are read and written once for all of them. The steps of a kernel
all have the shape of its result; an operand that is broadcast is computed before. A step that
two kernels need is computed in both, unless that costs more than reading it again.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Final, TypeAlias, get_args

import numpy as np
import torch

from shoal.compute.exact.gpu.steps import admit_kernel, chain_kernel
from shoal.compute.exact.gpu.variants import Variant
from shoal.compute.exact.kernels import BinaryName, UnaryName

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shoal.compute.exact.gpu.card import Card

_BLOCK: Final = 1024
_INPUTS: Final = 8
"""What a kernel reads, at most: GELU by tanh, of single operations, has five constants."""
_STEPS_LIMIT: Final = 16
"""Of one kernel."""
_WAITING_LIMIT: Final = 64
"""Steps that nobody has needed yet: each holds on to what it reads."""
_CHAINS_LIMIT: Final = 1024
"""Kernels of more than one step: programs are strangers', and what was compiled stays."""
_CHEAP: Final = frozenset({"abs", "add", "max", "min", "mul", "neg", "relu", "sub"})
"""What is rather computed twice than written and read: a few operations of float64."""

_Read: TypeAlias = tuple[torch.Tensor, str, int, int]
_Chain: TypeAlias = tuple[str, str, bool]


class Step:
    """An elementwise operation that was asked for.

    Args:
        card: Where.
        name: The operation.
        operands: One or two, which broadcast together; tensors are C-contiguous float32.

    Attributes:
        shape: Of its elements, float32.
        operands: What it takes; nothing once it is computed.
        tensor: Its elements, when they are computed.
        ever_computed: Whether a kernel has computed them, be it as a step of another's.

    Raises:
        ValueError: The operands do not broadcast.
    """

    __slots__ = ("_card", "ever_computed", "mark", "name", "operands", "shape", "tensor")

    def __init__(self, card: Card, name: UnaryName | BinaryName, *operands: Operand) -> None:
        self._card = card
        self.name = name
        self.shape = np.broadcast_shapes(*(tuple(operand.shape) for operand in operands))
        self.mark = card.mark(name)
        self.ever_computed = False
        self.tensor: torch.Tensor | None = None
        self.operands: tuple[Operand, ...] = tuple(
            one.compute() if isinstance(one, Step) and one.shape != self.shape else one
            for one in operands
        )
        card.asked[self.mark.order] = self
        self._program()
        if len(card.asked) > _WAITING_LIMIT:
            next(iter(card.asked.values())).compute()

    def compute(self) -> torch.Tensor:
        """Its elements, (shape) float32, computed now if they were not."""
        if self.tensor is None:
            steps, inputs = self._program()
            reads = [_read(tensor, self.shape) for tensor in inputs]
            wide = prod(self.shape) + _BLOCK >= 1 << 31
            chain = _text(steps, inputs, reads, wide)
            if len(steps) > 1 and chain not in _CHAINS and len(_CHAINS) >= _CHAINS_LIMIT:
                self._settle_operands()
                return self.compute()
            self.tensor = self._run(_variant(chain, len(steps)), steps, reads)
            for step in steps:
                step.ever_computed = True
                self._card.asked.pop(step.mark.order, None)
            self.operands = ()
        return self.tensor

    def _program(self) -> tuple[list[Step], list[torch.Tensor]]:
        """The steps of its kernel, itself the last, and what that reads: within the bounds."""
        steps, inputs = self._rests_on()
        for operand in self.operands:
            if len(steps) <= _STEPS_LIMIT and len(inputs) <= _INPUTS:
                break
            if isinstance(operand, Step):
                operand.compute()
                steps, inputs = self._rests_on()
        return steps, inputs

    def _rests_on(self) -> tuple[list[Step], list[torch.Tensor]]:
        found = {self.mark.order: self}
        unseen = [self]
        while unseen:
            step = unseen.pop()
            step.operands = tuple(map(_as_it_is, step.operands))
            for operand in step.operands:
                if isinstance(operand, Step) and operand.mark.order not in found:
                    found[operand.mark.order] = operand
                    unseen.append(operand)
        steps = [found[order] for order in sorted(found)]
        inputs: list[torch.Tensor] = []
        for step in steps:
            for operand in step.operands:
                if isinstance(operand, torch.Tensor) and _place(inputs, operand) is None:
                    inputs.append(operand)
        return steps, inputs

    def _settle_operands(self) -> None:
        for operand in self.operands:
            if isinstance(operand, Step):
                operand.compute()

    def _run(self, variant: Variant, steps: list[Step], reads: list[_Read]) -> torch.Tensor:
        out = self._card.empty(*self.shape)
        if out.numel():
            padded = reads + [(out, "", 1, 1)] * (_INPUTS - len(reads))
            self._card.launch(
                variant,
                _blocks(out),
                *(tensor for tensor, *_ in padded),
                *(out, self._card.status_of(tuple(step.mark for step in steps)), out.numel()),
                *(number for read in padded for number in read[2:]),
            )
        return out


Operand: TypeAlias = "Step | torch.Tensor"


def _as_it_is(operand: Operand) -> Operand:
    """An operand as a tensor where it is computed, or is better computed for itself."""
    if isinstance(operand, torch.Tensor):
        return operand
    again = operand.ever_computed and operand.name not in _CHEAP
    return operand.compute() if operand.tensor is not None or again else operand


def _place(inputs: list[torch.Tensor], tensor: torch.Tensor) -> int | None:
    return next((i for i, known in enumerate(inputs) if known is tensor), None)


def _text(
    steps: list[Step], inputs: list[torch.Tensor], reads: list[_Read], wide: bool
) -> _Chain:
    """A chain as `steps` has it."""
    made = {step.mark.order: len(inputs) + place for place, step in enumerate(steps)}
    words = [
        " ".join(
            [
                step.name,
                *(
                    str(made[one.mark.order] if isinstance(one, Step) else _place(inputs, one))
                    for one in step.operands
                ),
            ]
        )
        for step in steps
    ]
    return "; ".join(how for _, how, *_ in reads), "; ".join(words), wide


def _read(x: torch.Tensor, shape: tuple[int, ...]) -> _Read:
    """How a tensor is read where it is broadcast to a shape: see `steps`.

    The tensor, the word for it, and the numbers ``inner`` and ``size``. What no word fits is
    copied first.
    """
    sizes = (1,) * (len(shape) - x.dim()) + tuple(x.shape)
    own = [axis for axis, size in enumerate(sizes) if size != 1]
    if x.numel() == prod(shape):
        return x, "all", 1, 1
    if not own:
        return x, "one", 1, 1
    first, last = own[0], own[-1] + 1
    inner = prod(shape[last:])
    if sizes[first:last] == shape[first:last]:
        if last == len(shape):
            return x, "tail", 1, x.numel()
        return x, "head" if prod(shape[:first]) == 1 else "middle", inner, x.numel()
    gap = [axis for axis in range(first, last) if sizes[axis] != shape[axis]]
    low, high = gap[0], gap[-1] + 1
    if prod(shape[:first]) * inner == 1 and prod(sizes[low:high]) == 1:
        return x, "ends", prod(shape[low:]), prod(shape[high:])
    return x.expand(shape).contiguous(), "all", 1, 1


# -- kernels ----------------------------------------------------------------------------------


def _made(reads: str, steps: str, wide: bool = False) -> Variant:
    return Variant(
        chain_kernel,
        {
            **{f"x{place}": "*fp32" for place in range(_INPUTS)},
            "out": "*fp32",
            "status": "*i32",
            "size": "i64",
            **{f"{what}{i}": "i64" for i in range(_INPUTS) for what in ("inner", "size")},
        },
        {"READS": reads, "STEPS": steps, "WIDE": wide, "BLOCK": _BLOCK},
    )


_REPRESENTATIVES: Final[tuple[_Chain, ...]] = (
    *(("all", f"{name} 0", False) for name in get_args(UnaryName)),
    *(("all; all", f"{name} 0 1", False) for name in get_args(BinaryName)),
    *((f"all; {how}", "add 0 1", False) for how in ("one", "tail", "head", "middle", "ends")),
    ("all", "exp 0", True),
)
"""Every operation by itself, and every way of reading."""

_LIKELY: Final[tuple[_Chain, ...]] = (
    # a bias and its activation, which may be many operations: GELU by erf, and by tanh
    ("all; tail", "add 0 1; gelu 2", False),
    ("all; tail", "add 0 1; gelu_tanh 2", False),
    ("all; tail", "add 0 1; relu 2", False),
    ("all; middle", "add 0 1; relu 2", False),
    ("all", "sigmoid 0; mul 0 1", False),
    ("all; tail; one; one; one", "add 0 1; div 5 2; erf 6; add 7 3; mul 4 8; mul 5 9", False),
    (
        "all; tail; one; one; one; one; one",
        "add 0 1; pow 7 2; mul 3 8; add 7 9; mul 4 10; tanh 11; add 12 5; mul 6 13; mul 7 14",
        False,
    ),
    # scores of attention, scaled and masked, before a softmax
    ("all; one; ends", "div 0 1; add 3 2", False),
    ("all; one; all", "mul 0 1; add 3 2", False),
    # a bias, and what goes round
    ("all; tail; all", "add 0 1; add 2 3", False),
    # what a layer norm of single operations leaves to do with each element
    ("all; head", "sub 0 1; mul 2 2", False),
    ("all; head; head; tail; tail", "sub 0 1; div 5 2; mul 6 3; add 7 4", False),
)
_CHAINS: Final[dict[_Chain, Variant]] = {chain: _made(*chain) for chain in _LIKELY}
_SINGLE: Final[dict[_Chain, Variant]] = {chain: _made(*chain) for chain in _REPRESENTATIVES}
_ADMIT: Final = Variant(
    admit_kernel,
    {"x": "*fp32", "out": "*fp32", "status": "*i32", "size": "i64"},
    {"BLOCK": _BLOCK},
)


def _variant(chain: _Chain, steps: int) -> Variant:
    table = _SINGLE if steps == 1 else _CHAINS
    if chain not in table:
        table[chain] = _made(*chain)
    return table[chain]


def variants() -> Iterator[Variant]:
    """Each operation, each way of reading, and the chains of usual models."""
    yield _ADMIT
    yield from (_SINGLE[chain] for chain in _REPRESENTATIVES)
    yield from (_CHAINS[chain] for chain in _LIKELY)


def admit(card: Card, x: torch.Tensor) -> torch.Tensor:
    """See `Kernels.admit`."""
    out = torch.empty_like(x)
    card.launch(_ADMIT, _blocks(x), x, out, card.status("input"), x.numel())
    return out


def _blocks(x: torch.Tensor) -> tuple[int]:
    return (-(-x.numel() // _BLOCK),)
