"""The arithmetic of a capability challenge: a chain of products, and single rows of it.

Runs in the worker, on the exact class's kernels: the CPU's or a card's, which give the
same bits. What is hashed is hashed on the CPU, by the worker's threads. The prover runs
`chain`; the verifier runs `row_leaves` for the rows that it has drawn, at a cost of so
many rows. What is drawn from what is said in `protocol.challenge`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from shoal.compute.exact.spec import PRECISIONS
from shoal.crypto.merkle import leaf_of, root_of
from shoal.protocol.challenge import Row
from shoal.protocol.challenge_terms import Work, first_seed, next_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shoal.compute.exact.cpu.threads import Threads
    from shoal.compute.exact.kernels import Floats, ScaleAxis
    from shoal.compute.exact.spec import Precision

_NANOSECONDS_PER_BYTE_HASHED = 1
_WORDS_PER_BLOCK = 4
_BYTES_PER_NUMBER = 4

_LIKE_ANY: Final = Work(rows=16, size=128, steps=1)
"""The least work whose kernels are those of every other: a compiler for cards tells sizes
apart by whether 16 divides them, and it divides those of every challenge."""


class Arithmetic(Protocol):
    """Of a backend of the class exact, what a challenge takes."""

    @property
    def threads(self) -> Threads:
        """Who hashes."""
        ...

    def empty(self, rows: int, size: int) -> Floats:
        """Memory for float32, (rows, size), where `draw` and `product` want it."""
        ...

    def draw(self, key: int, stream: int, first: int, out: Floats) -> None:
        """Fill ``out`` with the numbers of blocks ``first``.. of a stream."""
        ...

    def prepare(self, b: Floats, precision: Precision, axis: ScaleAxis) -> Any:
        """See `exact.kernels.Kernels.prepare`."""
        ...

    def product(self, a: Floats, b: Any, precision: Precision, axis: ScaleAxis) -> Floats:
        """See `exact.kernels.Kernels.product`."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """What is kept of a step: its product's rows as digests, and their Merkle root."""

    leaves: list[bytes]
    root: bytes


class ChallengeWork:
    """Both sides' arithmetic of a challenge on one device.

    Args:
        kernels: The exact class there.
    """

    def __init__(self, kernels: Arithmetic) -> None:
        self._kernels = kernels

    def warm_up(self, precision: str) -> None:
        """Have everything compiled that a chain takes: what a clock is not to count."""
        self.chain(bytes(32), _LIKE_ANY, precision)

    def chain(
        self,
        root: bytes,
        work: Work,
        precision: str,
        check: Callable[[], None] = lambda: None,
    ) -> list[Step]:
        """Do a challenge's work.

        Args:
            root: The seed of the whole challenge (`protocol.challenge_terms.root_seed`).
            work: How much.
            precision: Of the class exact.
            check: Called before each step; may raise to end it.

        Returns:
            What each step leaves.
        """
        right = self._right(root, work.size, precision)
        left = self._kernels.empty(work.rows, work.size)
        seed = first_seed(root)
        steps: list[Step] = []
        for _ in range(work.steps):
            check()
            self._draw(seed, 0, left)
            product = self._kernels.product(left, right, PRECISIONS[precision], "column")
            leaves = self._leaves(product)
            steps.append(Step(leaves, root_of(leaves)))
            seed = next_seed(seed, steps[-1].root)
        return steps

    def row_leaves(
        self, root: bytes, size: int, rows: Sequence[Row], precision: str
    ) -> list[bytes]:
        """The digests of some rows of a challenge's products.

        Args:
            root: As for `chain`.
            size: Terms and columns.
            rows: Which, by the seed of their step.
            precision: As for `chain`.
        """
        right = self._right(root, size, precision)
        left = self._kernels.empty(len(rows), size)
        for place, row in enumerate(rows):
            self._draw(row.seed, row.row * size // _WORDS_PER_BLOCK, left[place])
        product = self._kernels.product(left, right, PRECISIONS[precision], "column")
        return self._leaves(product)

    def _right(self, root: bytes, size: int, precision: str) -> Any:
        right = self._kernels.empty(size, size)
        self._draw(root, 0, right)
        return self._kernels.prepare(right, PRECISIONS[precision], "column")

    def _draw(self, seed: bytes, first_block: int, out: Floats) -> None:
        key, stream = (int.from_bytes(seed[at : at + 8], "little") for at in (0, 8))
        self._kernels.draw(key, stream, first_block, out)

    def _leaves(self, product: Floats) -> list[bytes]:
        leaves = [b""] * len(product)
        values, row_bytes = _bytes(product), product.shape[1] * _BYTES_PER_NUMBER

        def hash_rows(start: int, stop: int) -> int:
            for index in range(start, stop):
                at = index * row_bytes
                leaves[index] = leaf_of(values[at : at + row_bytes])
            return 0

        self._kernels.threads.split(
            hash_rows, len(product), cost=row_bytes * _NANOSECONDS_PER_BYTE_HASHED
        )
        return leaves


def _bytes(product: Floats) -> memoryview:
    """The values as the bytes that are hashed: float32, little-endian, row after row."""
    return np.ascontiguousarray(product, "<f4").data.cast("B")
