"""Exact products on the CPU: who multiplies which tile, and in what memory.

Part of *execute*, over the loops of `products`. The right operand is kept as compact
integers (int32, int16 or int8 by precision: as large as the float32 it came from, or
smaller) and widened to float64 piece by piece. Three ways, one result:

* a few rows (a token, a small batch): the memory is the limit, so the compact integers
  are read once and multiplied as they are;
* otherwise: a panel of the right operand is widened, rows of the left one quantised,
  and tiles of their product are each made by one thread with BLAS and rounded while
  they are in its cache;
* batches of small matrices (attention): each thread does whole matrices, all steps,
  a cacheful at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from shoal.compute.exact.cpu import products as loops
from shoal.compute.exact.kernels import ExactError
from shoal.compute.exact.spec import K_BLOCK, K_LIMIT
from shoal.compute.exact.statuses import FINE, MASKED, check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from shoal.compute.exact.cpu.threads import Threads
    from shoal.compute.exact.kernels import Floats, ScaleAxis
    from shoal.compute.exact.spec import Precision

    _Multiply = Callable[["_Tile"], NDArray[np.float64]]

_FEW_ROWS: Final = 12
"""Rows up to which reading compact integers beats widening them for BLAS."""
_SCRATCH_ELEMENTS: Final = 4 << 20
"""Of each widened operand: 32 MiB."""
_TILE: Final = 512
"""Rows or columns of a tile at most: packing them costs BLAS a few per cent."""
_SMALL_WORK: Final = 1 << 18
"""Multiplications that are not worth waking a thread for."""
_BATCH_ELEMENTS: Final = 1 << 18
"""Of the small matrices that one thread does at a time: 2 MiB of each operand."""
_SMALL_MATRIX_ELEMENTS: Final = 1 << 17


@dataclass(frozen=True, slots=True)
class Quantised:
    """The right operand of products, as integers and powers of two.

    Args:
        integers: (K, N) int32, int16 or int8.
        power: (1, N) for axis "column", (1, K) for axis "k": 2^e.
        precision: What it was quantised to.
        axis: The axis that carries its scales.
    """

    integers: NDArray[np.signedinteger]
    power: NDArray[np.float64]
    precision: Precision
    axis: ScaleAxis

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N)."""
        return self.integers.shape  # type: ignore[return-value]  # it is made with two axes


def prepare(b: Floats, precision: Precision, axis: ScaleAxis, threads: Threads) -> Quantised:
    """Quantise a right operand, (K, N)."""
    terms, columns = b.shape
    _check_terms(terms)
    dtype = np.int32 if precision.bits > 15 else np.int16 if precision.bits > 7 else np.int8
    integers = np.empty(b.shape, dtype)
    numbers = precision.bits, precision.limit
    if axis == "column":
        power = np.empty((1, columns))
        status = threads.split(
            lambda start, stop: loops.quantise_columns(
                b[None], *numbers, 0, 1, start, stop, integers[None], power
            ),
            columns,
            cost=terms,
        )
    else:
        power = np.empty((1, terms))
        status = threads.split(
            lambda start, stop: loops.quantise_rows(
                b, *numbers, start, stop, integers, power[0]
            ),
            terms,
            cost=columns,
        )
    check("product", status)
    return Quantised(integers, power, precision, axis)


def product(a: Floats, right: Quantised, threads: Threads) -> Floats:
    """(M, K) x (K, N) -> (M, N)."""
    rows, terms = a.shape
    columns = right.shape[1]
    _check_terms(terms)
    out = np.empty((rows, columns), np.float32)
    if out.size == 0 or terms == 0:
        check("product", MASKED if np.isneginf(a).any() else FINE)  # no loop reads it
        out[:] = 0.0
        return out
    few = rows <= _FEW_ROWS
    # A group of rows and a group of columns are in scratch at a time.
    width = columns if few else max(64, _SCRATCH_ELEMENTS // min(terms, K_BLOCK))
    for top, bottom in _pieces(rows, max(1, _SCRATCH_ELEMENTS // terms)):
        left, row_power = _quantise_left(a[top:bottom], right, threads)
        for first, last in _pieces(columns, width):
            group = _Group(left, row_power, right, first, last, out[top:bottom])
            check("product", group.fill(few, threads))
    return out


def product_batch(
    a: Floats, b: Floats, precision: Precision, axis: ScaleAxis, threads: Threads
) -> Floats:
    """(batch, M, K) x (batch, K, N) -> (batch, M, N), each matrix by itself."""
    batch, rows, terms = a.shape
    columns = b.shape[2]
    largest = max(rows * terms, terms * columns, rows * columns)
    if terms == 0 or largest == 0 or largest > _SMALL_MATRIX_ELEMENTS or terms > K_BLOCK:
        out = np.empty((batch, rows, columns), np.float32)
        for index in range(batch):
            right = prepare(b[index], precision, axis, threads)
            out[index] = product(a[index], right, threads)
        return out
    small = _SmallMatrices(a, b, np.empty((batch, rows, columns), np.float32), precision, axis)
    cacheful = max(1, _BATCH_ELEMENTS // largest)
    if batch * rows * terms * columns <= _SMALL_WORK:
        pieces = [(0, batch)]
    else:
        pieces = list(_pieces(batch, min(cacheful, -(-batch // threads.count))))
    check(
        "product",
        threads.run([lambda piece=piece: small.fill(*piece, threads) for piece in pieces]),
    )
    return small.out


def integer_product(a: NDArray[np.int32], b: NDArray[np.int32]) -> NDArray[np.int32]:
    """(M, K) x (K, N) of small integers: within 2^18 K <= 2^40, which float64 sums exactly."""
    _check_terms(a.shape[1], "integer_product")
    sums = a.astype(np.float64) @ b.astype(np.float64)
    return sums.astype(np.int64).astype(np.int32)


def _quantise_left(
    a: Floats, right: Quantised, threads: Threads
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The rows of a as integers in this thread's scratch, and their powers."""
    rows, terms = a.shape
    q, power = threads.scratch("left", a.shape), np.empty(rows)
    numbers = right.precision.bits, right.precision.limit
    if right.axis == "column":
        status = threads.split(
            lambda start, stop: loops.quantise_rows(a, *numbers, start, stop, q, power),
            rows,
            cost=terms,
        )
    else:
        status = threads.split(
            lambda start, stop: loops.quantise_folded_rows(
                a, right.power, rows, *numbers, start, stop, q, power
            ),
            rows,
            cost=terms,
        )
    check("product", status)
    return q, power


@dataclass(frozen=True, slots=True)
class _Tile:
    """Part of a group's result, in the group's own rows and columns."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left


@dataclass(frozen=True, slots=True)
class _Group:
    """Some rows of the left operand times columns first..last of the right one.

    Args:
        left: (M, K) quantised rows.
        row_power: (M,) their powers.
        right: The right operand.
        first: The first of its columns.
        last: The one after the last.
        out: (M, N), of which columns first..last are filled.
    """

    left: NDArray[np.float64]
    row_power: NDArray[np.float64]
    right: Quantised
    first: int
    last: int
    out: Floats

    def fill(self, few: bool, threads: Threads) -> int:
        """Multiply in blocks of K, each exact, and round their sum once."""
        rows, terms = self.left.shape
        tiles = self._tiles(threads)
        multiplier = self._by_integers if few else self._by_blas
        if terms <= K_BLOCK:
            multiply = multiplier(0, terms, threads)
            return threads.run(
                [lambda tile=tile: self._round(multiply(tile), tile) for tile in tiles]
            )
        totals = np.zeros((rows, self.last - self.first), np.int64)
        for start, stop in _pieces(terms, K_BLOCK):
            multiply = multiplier(start, stop, threads)
            threads.run(
                [
                    lambda tile=tile, multiply=multiply: loops.add_block(
                        multiply(tile), totals, tile.top, tile.left
                    )
                    for tile in tiles
                ]
            )
        return self._round(totals, _Tile(0, rows, 0, self.last - self.first))

    def _by_integers(self, start: int, stop: int, threads: Threads) -> _Multiply:
        """Sums over terms start..stop, reading the compact integers once."""

        def multiply(tile: _Tile) -> NDArray[np.float64]:
            z = threads.scratch("z", tile.shape)
            loops.multiply_few(
                self.left[tile.top : tile.bottom],
                stop - start,
                self.right.integers,
                start,
                self.first + tile.left,
                tile.shape[1],
                z,
            )
            return z

        return multiply

    def _by_blas(self, start: int, stop: int, threads: Threads) -> _Multiply:
        """Sums over terms start..stop, with the right operand widened to float64."""
        panel = threads.scratch("panel", (stop - start, self.last - self.first))
        threads.split(
            lambda top, bottom: loops.widen(
                self.right.integers, start, self.first, top, bottom, panel
            ),
            stop - start,
            cost=self.last - self.first,
        )

        def multiply(tile: _Tile) -> NDArray[np.float64]:
            return np.matmul(
                self.left[tile.top : tile.bottom, start:stop],
                panel[:, tile.left : tile.right],
                out=threads.scratch("z", tile.shape),
            )

        return multiply

    def _round(self, z: NDArray[np.float64 | np.int64], tile: _Tile) -> int:
        status: int = loops.rescale(
            z,
            self.row_power,
            _column_power(self.right, self.out.shape[1]),
            self.out.shape[0],
            _unit(self.right.precision),
            self.out,
            tile.top,
            self.first + tile.left,
        )
        return status

    def _tiles(self, threads: Threads) -> list[_Tile]:
        """The result cut along its longer side, into enough tiles for the threads."""
        rows, columns = self.left.shape[0], self.last - self.first
        small = rows * columns * self.left.shape[1] <= _SMALL_WORK
        count = 1 if small else threads.count
        if rows > columns:
            size = min(_TILE, -(-rows // count))
            return [_Tile(top, bottom, 0, columns) for top, bottom in _pieces(rows, size)]
        size = min(_TILE, -(-columns // count))
        return [_Tile(0, rows, left, right) for left, right in _pieces(columns, size)]


@dataclass(frozen=True, slots=True)
class _SmallMatrices:
    """A batch of small products, each of which one thread makes from start to end."""

    a: Floats
    b: Floats
    out: Floats
    precision: Precision
    axis: ScaleAxis

    def fill(self, start: int, stop: int, threads: Threads) -> int:
        """Matrices start..stop of the batch."""
        a, b, out = self.a[start:stop], self.b[start:stop], self.out[start:stop]
        batch, rows, terms = a.shape
        columns = b.shape[2]
        numbers = self.precision.bits, self.precision.limit
        left = threads.scratch("left", (batch * rows, terms))
        right = threads.scratch("panel", b.shape)
        row_power = threads.scratch("row_power", (batch * rows,))
        column_power = threads.scratch("column_power", (batch, columns))
        flat = a.reshape(batch * rows, terms)
        if self.axis == "column":
            status = loops.quantise_columns(
                b, *numbers, 0, batch, 0, columns, right, column_power
            )
            status = max(
                status, loops.quantise_rows(flat, *numbers, 0, len(flat), left, row_power)
            )
        else:
            fold = threads.scratch("fold", (batch, terms))
            status = loops.quantise_rows(
                b.reshape(batch * terms, columns),
                *numbers,
                0,
                batch * terms,
                right.reshape(batch * terms, columns),
                fold.reshape(-1),
            )
            status = max(
                status,
                loops.quantise_folded_rows(
                    flat, fold, rows, *numbers, 0, len(flat), left, row_power
                ),
            )
            column_power[:] = 1.0
        if status != FINE:
            return status
        z = threads.scratch("z", out.shape)
        np.matmul(left.reshape(a.shape), right, out=z)
        flat_out = out.reshape(batch * rows, columns)
        flat_z = z.reshape(batch * rows, columns)
        unit = _unit(self.precision)
        return loops.rescale(flat_z, row_power, column_power, rows, unit, flat_out, 0, 0)


def _unit(precision: Precision) -> float:
    """What one is worth among the exact integers, at exponents of 0."""
    return 2.0 ** (-2 * precision.bits)


def _column_power(right: Quantised, columns: int) -> NDArray[np.float64]:
    """(1, N); all 1 where the powers are in the left operand's rows already."""
    return right.power if right.axis == "column" else np.ones((1, columns))


def _pieces(size: int, piece: int) -> Iterator[tuple[int, int]]:
    """0..size in ranges of at most a piece."""
    for start in range(0, size, piece):
        yield start, min(start + piece, size)


def _check_terms(terms: int, kernel: str = "product") -> None:
    if terms > K_LIMIT:
        raise ExactError.in_kernel("k_limit", kernel)
