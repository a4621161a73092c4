"""Python clients of the daemon on this machine.

- `flows`: what each call says to the daemon, as generators with no IO in them;
- `submitting`, `fetching`: how units are handed over, and how results come back;
- `tensors`, `files`: what submitters hold as tensors, and back;
- `exchange`: requests, and answers turned into values or errors;
- `blocking`: `Client`, which drives flows and blocks;
- `nonblocking`: `AsyncClient`, the same for Trio and asyncio;
- `executor`, `futures`, `gathering`: `Executor`, and the threads behind it;
- `remote`, `fingerprints`, `program_cache`: torch functions that run out there;
- `progress`: how far a job is, in a notebook or on a terminal.
"""

from __future__ import annotations

from shoal.node.client.blocking import Client
from shoal.node.client.flows import Options
from shoal.node.client.nonblocking import AsyncClient

__all__ = ["AsyncClient", "Client", "Options"]
