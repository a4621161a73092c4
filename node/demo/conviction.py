"""The demo's second act: a stranger that lies is caught, and convicted by a proof.

It joins when the first job is done, and some of the files are looked at again: in the class
exact, in which two honest results have the same bits, so that a lie can be proved. That is
found out by the requester's daemon by itself; here it is waited for and told. The proof
goes into files, and is checked once more when all daemons have ended.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from shoal.node.demo.swarm import Node, Swarm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

JOINED_LIMIT_S = 120.0
"""Until all offer the class exact: its kernels are compiled once on each machine."""


class LyingSwarm(Swarm):
    """Honest daemons, and one more that lies and joins later: a stranger to all of them.

    Args:
        count: How many honest ones.
        settings: As for `Swarm`.
    """

    def __init__(self, count: int, settings: Iterable[str] = ()) -> None:
        super().__init__(count + 1, settings)

    @property
    def honest(self) -> list[Node]:
        """The daemons that do as they should."""
        return self.nodes[:-1]

    @property
    def liar(self) -> Node:
        """The one that lies."""
        return self.nodes[-1]

    def start_all(self) -> None:
        """Start the honest ones."""
        self.start_these(self.honest)

    def join_liar(self, waiting: Callable[[float], None]) -> None:
        """Start the one that lies, and wait until all offer the class exact.

        Args:
            waiting: Told now and then how long it has been, in seconds.

        Raises:
            SwarmError: It does not start, or one of them does not offer the class in time.
        """
        self.start(self.liar)
        self.wait_ready(self.liar)
        self.wait_acquainted(timeout_s=JOINED_LIMIT_S, offering="exact", waiting=waiting)

    def _command(self, node: Node) -> tuple[str, ...]:
        if node is not self.liar:
            return super()._command(node)
        return (sys.executable, "-P", "-m", "shoal.node.demo.liar")

    def _friends(self, node: Node) -> list[Node]:
        return [each for each in super()._friends(node) if each is not self.liar]
