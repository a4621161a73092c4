"""A tensor on a card that numpy's functions take: so that operators need no second text.

Part of *execute*. `operators` moves elements about with numpy; by numpy's own protocols
(NEP 13 and 18) the functions below do the same to tensors where they lie, with no copy to
the host between two kernels. Whatever is not in the tables here is done on the host, by
numpy itself: slower, and the same elements.

Only float32 and bool lie on a card. Nothing here rounds: it moves, compares and chooses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from shoal.compute.exact.gpu.elementwise import Operand, Step

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from shoal.compute.exact.gpu.card import Card

_DTYPES: Final = {
    torch.float32: np.dtype(np.float32),
    torch.bool: np.dtype(np.bool_),
}


class CardArray(np.lib.mixins.NDArrayOperatorsMixin):
    """What stands for a numpy array whose elements lie on a card.

    Args:
        held: float32 or bool; or a step, whose elements are computed when they are needed.
        card: Where it lies.
    """

    __slots__ = ("card", "held")

    def __init__(self, held: Operand, card: Card) -> None:
        self.held = held
        self.card = card

    @property
    def tensor(self) -> torch.Tensor:
        """Its elements."""
        if isinstance(self.held, Step):
            self.held = self.held.compute()
        return self.held

    @property
    def waits(self) -> bool:
        """Whether its elements are still to be computed."""
        return isinstance(self.held, Step) and self.held.tensor is None

    # -- what it is -----------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """As numpy has it."""
        return tuple(self.held.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """As numpy has it."""
        return np.dtype(np.float32) if self.waits else _DTYPES[self.tensor.dtype]

    @property
    def ndim(self) -> int:
        """As numpy has it."""
        return len(self.held.shape)

    @property
    def size(self) -> int:
        """As numpy has it."""
        return math.prod(self.held.shape)

    @property
    def nbytes(self) -> int:
        """As numpy has it."""
        return self.size * self.dtype.itemsize

    @property
    def T(self) -> CardArray:  # noqa: N802  # numpy's name
        """As numpy has it."""
        return self.transpose()

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(
        self, dtype: np.dtype[Any] | None = None, copy: bool | None = None
    ) -> NDArray[Any]:
        """A copy on the host."""
        del copy
        array: NDArray[Any] = self.card.give(self.tensor)
        return array if dtype is None else array.astype(dtype, copy=False)

    def __bool__(self) -> bool:
        return bool(np.asarray(self))

    def __float__(self) -> float:
        return float(np.asarray(self))

    def __int__(self) -> int:
        return int(np.asarray(self))

    # -- the same elements, arranged otherwise ------------------------------------------

    def reshape(self, *shape: int | Sequence[int]) -> CardArray:
        """As numpy has it; what cannot be a view is copied."""
        sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], Sequence) else shape
        known = [int(size) for size in sizes]  # type: ignore[arg-type]
        if -1 in known and not self.size:  # torch leaves open what is left of nothing
            return self._like(torch.from_numpy(np.empty(self.shape).reshape(known)))
        return self._of(self.tensor.reshape(known))

    def transpose(self, *axes: int | Sequence[int]) -> CardArray:
        """As numpy has it."""
        order = axes[0] if len(axes) == 1 and isinstance(axes[0], Sequence) else axes
        return self._of(self.tensor.permute(*(order or range(self.ndim)[::-1])))

    def __getitem__(self, place: Any) -> Any:
        """As numpy has it; with a step backwards, or by other arrays, on the host."""
        places = place if isinstance(place, tuple) else (place,)
        if all(_is_plain(one) for one in places):
            return self._of(self.tensor[places])
        return np.asarray(self)[place]

    def __setitem__(self, place: Any, value: Any) -> None:
        """As numpy has it, by plain places; for whoever has just made the array."""
        places = place if isinstance(place, tuple) else (place,)
        given = _on_card(self.card, value)
        assert all(_is_plain(one) for one in places)
        assert given is not None
        self.tensor[places] = given

    def astype(self, dtype: Any, *, copy: bool = True) -> Any:
        """As numpy has it; to another dtype than its own, on the host."""
        if np.dtype(dtype) == self.dtype:
            return self._of(self.tensor.clone()) if copy else self
        return np.asarray(self).astype(dtype)

    def any(self) -> bool:
        """Whether any element is not zero."""
        return bool(self.card.give(self.tensor.any()))

    def __getattr__(self, name: str) -> Any:
        """Any other attribute of a numpy array is a host copy's."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(np.asarray(self), name)

    # -- numpy's protocols ------------------------------------------------------------

    def __array_function__(
        self, function: Any, types: Any, arguments: Any, options: Any
    ) -> Any:
        """Do it here where the table says how, and on the host otherwise."""
        del types
        here = _FUNCTIONS.get(function)
        if here is not None:
            found = here(self.card, *arguments, **options)
            if found is not NotImplemented:
                return found
        return function(*map(_hosted, arguments), **{k: _hosted(v) for k, v in options.items()})

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """Compare here; all else is done on the host."""
        here = _COMPARISONS.get(ufunc)
        if here is not None and method == "__call__" and not options:
            operands = [_on_card(self.card, value) for value in inputs]
            if all(operand is not None for operand in operands):
                return self._of(here(*operands))
        hosted = {k: _hosted(v) for k, v in options.items()}
        return getattr(ufunc, method)(*map(_hosted, inputs), **hosted)

    def _of(self, tensor: torch.Tensor) -> CardArray:
        return CardArray(tensor, self.card)

    def _like(self, tensor: torch.Tensor) -> CardArray:
        return self._of(tensor.to(device=self.tensor.device, dtype=self.tensor.dtype))


def _is_plain(place: Any) -> bool:
    """Whether torch indexes by it as numpy does."""
    if isinstance(place, slice):
        return place.step is None or place.step > 0
    return place is None or place is Ellipsis or isinstance(place, int | np.integer)


def _hosted(value: Any) -> Any:
    """The same with what lies on a card copied to the host."""
    if isinstance(value, CardArray):
        return np.asarray(value)
    if isinstance(value, list | tuple):
        return type(value)(map(_hosted, value))
    return value


def _on_card(card: Card, value: Any) -> torch.Tensor | None:
    """A float32 or bool operand on the card; None of anything else."""
    if isinstance(value, CardArray):
        return value.tensor
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = np.float32(value)
    if isinstance(value, np.ndarray | np.generic) and value.dtype in _DTYPES.values():
        return card.take(np.asarray(value))
    return None


# -- what numpy's functions do to it -------------------------------------------------------


def _asarray(card: Card, array: Any, dtype: Any = None, order: str | None = None) -> Any:
    if dtype is not None and np.dtype(dtype) != array.dtype:
        return NotImplemented
    if order != "C" or array.waits:  # what is computed will be dense
        return array
    return CardArray(array.tensor.contiguous(), card)


def _zeros(card: Card, shape: Any, dtype: Any = float) -> Any:
    if np.dtype(dtype) != np.float32:
        return np.zeros(shape, dtype)
    return CardArray(torch.zeros(tuple(shape), device=card.device), card)


def _broadcast_to(card: Card, array: Any, shape: Any) -> Any:
    return CardArray(array.tensor.expand(tuple(shape)), card)


def _take(card: Card, array: Any, indices: Any, axis: int | None = None) -> Any:
    if axis is None or not isinstance(array, CardArray) or isinstance(indices, CardArray):
        return NotImplemented
    indices = np.asarray(indices)
    places = card.take(indices.reshape(-1).astype(np.int64))
    taken = array.tensor.index_select(axis, places)
    shape = (*array.shape[:axis], *indices.shape, *array.shape[axis + 1 :])
    return CardArray(taken.reshape(shape), card)


def _where(card: Card, condition: Any, x: Any, y: Any) -> Any:
    operands = [_on_card(card, value) for value in (condition, x, y)]
    if any(operand is None for operand in operands):
        return NotImplemented
    choice, yes, no = operands
    if choice.dtype is not torch.bool or yes.dtype is not no.dtype:  # type: ignore[union-attr]
        return NotImplemented
    return CardArray(torch.where(choice, yes, no), card)  # type: ignore[arg-type, call-overload]


def _concatenate(card: Card, arrays: Any, axis: int = 0) -> Any:
    operands = [_on_card(card, array) for array in arrays]
    if any(operand is None for operand in operands):
        return NotImplemented
    if len({operand.dtype for operand in operands}) > 1:  # type: ignore[union-attr]
        return NotImplemented
    return CardArray(torch.cat(operands, axis), card)  # type: ignore[arg-type]


def _stack(card: Card, arrays: Any, axis: int = 0) -> Any:
    return _concatenate(card, [np.expand_dims(array, axis) for array in arrays], axis)


def _moveaxis(card: Card, array: Any, source: Any, destination: Any) -> Any:
    return CardArray(array.tensor.movedim(source, destination), card)


def _expand_dims(card: Card, array: Any, axis: Any) -> Any:
    if not isinstance(axis, int):
        return NotImplemented
    return CardArray(array.tensor.unsqueeze(axis), card)


def _tile(card: Card, array: Any, repeats: Any) -> Any:
    if len(repeats) != array.ndim:
        return NotImplemented
    return CardArray(array.tensor.repeat(*repeats), card)


def _repeat(card: Card, array: Any, repeats: Any, axis: int | None = None) -> Any:
    if not isinstance(repeats, int):
        return NotImplemented
    return CardArray(array.tensor.repeat_interleave(repeats, dim=axis), card)


def _isneginf(card: Card, array: Any) -> Any:
    return CardArray(torch.isneginf(array.tensor), card)


def _pad(
    card: Card, array: Any, widths: Any, mode: str = "constant", constant_values: Any = 0
) -> Any:
    if mode != "constant" or array.tensor.dtype is not torch.float32:
        return NotImplemented
    pairs = [int(n) for pair in reversed(list(widths)) for n in pair]
    value = float(np.asarray(constant_values))
    return CardArray(torch.nn.functional.pad(array.tensor, pairs, value=value), card)


def _windows(card: Card, array: Any, spans: Any, axis: Any) -> Any:
    tensor = array.tensor
    for span, place in zip(spans, axis, strict=True):
        tensor = tensor.unfold(place, span, 1)
    return CardArray(tensor, card)


_FUNCTIONS: Final[dict[Any, Callable[..., Any]]] = {
    np.asarray: _asarray,
    np.zeros: _zeros,
    np.broadcast_to: _broadcast_to,
    np.concatenate: _concatenate,
    np.expand_dims: _expand_dims,
    np.isneginf: _isneginf,
    np.lib.stride_tricks.sliding_window_view: _windows,
    np.moveaxis: _moveaxis,
    np.pad: _pad,
    np.repeat: _repeat,
    np.stack: _stack,
    np.take: _take,
    np.tile: _tile,
    np.where: _where,
}

_COMPARISONS: Final[dict[Any, Callable[..., torch.Tensor]]] = {
    np.equal: torch.eq,
    np.not_equal: torch.ne,
    np.less: torch.lt,
    np.less_equal: torch.le,
    np.greater: torch.gt,
    np.greater_equal: torch.ge,
    np.logical_and: torch.logical_and,
    np.logical_or: torch.logical_or,
    np.logical_xor: torch.logical_xor,
    np.logical_not: torch.logical_not,
}
