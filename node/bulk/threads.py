"""A thread that works on a socket, as one task of the Trio side."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import trio

from shoal.node.bulk.wire import shut

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

T = TypeVar("T")


async def run_on(
    sock: socket.socket, work: Callable[[], T], threads: trio.CapacityLimiter
) -> T:
    """Do blocking work with a socket in a thread, and wait for it.

    Cancelled, it shuts the socket down and waits for the thread, which ends at once: no
    thread is left behind with a descriptor that is another's by then.
    """
    result: T
    failed: Exception | None = None

    async def end_with(scope: trio.CancelScope) -> None:
        try:
            await trio.sleep_forever()
        finally:
            if not scope.cancel_called:  # from outside
                shut(sock)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_with, nursery.cancel_scope)
        try:
            result = await trio.to_thread.run_sync(work, limiter=threads)
        except Exception as error:  # noqa: BLE001  # to leave the nursery as it came
            failed = error
        nursery.cancel_scope.cancel()
    if failed is not None:
        raise failed
    return result
