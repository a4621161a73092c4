"""Python clients of the daemon on this machine.

- `flows`: what each call says to the daemon, as generators with no IO in them;
- `submitting`, `fetching`: how units are handed over, and how results come back;
- `tensors`, `files`: what submitters hold as tensors, and back;
- `exchange`: requests, and answers turned into values or errors;
- `blocking`: `Client`, which drives flows and blocks;
- `nonblocking`: `AsyncClient`, the same for Trio and asyncio;
- `lines`: connections of the blocking one;
- `executor`, `futures`, `gathering`: `Executor`, and the threads behind it;
- `remote`, `fingerprints`, `program_cache`: torch functions that run out there;
- `progress`: how far a job is, in a notebook or on a terminal.

`AsyncClient`, and anyio and httpx under it, is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from shoal.node.client.blocking import Client
from shoal.node.client.flows import Options

if TYPE_CHECKING:
    from shoal.node.client.nonblocking import AsyncClient

__all__ = ["AsyncClient", "Client", "Options"]


def __getattr__(name: str) -> object:
    """Import `AsyncClient` at its first use (PEP 562)."""
    if name != "AsyncClient":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("shoal.node.client.nonblocking").AsyncClient
