"""Asking a daemon's local API from a test: by what blocks, and by curl."""

import trio
import trio.testing


async def blocking(work):
    """Run a test's blocking part in a thread, under a time limit."""
    with trio.fail_after(30):
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True)


async def curl(socket_path, *arguments):
    """Give curl's status and body."""
    done = await trio.run_process(
        ["curl", "-sS", "--unix-socket", socket_path, "-w", "\n%{http_code}", *arguments],
        capture_stdout=True,
    )
    body, _, code = done.stdout.rpartition(b"\n")
    return int(code), body
