"""Python clients of the daemon on this machine.

- `flows`: what each call says to the daemon, as generators with no IO in them;
- `exchange`: requests, and answers turned into values or errors;
- `blocking`: `Client`, which drives flows and blocks;
- `nonblocking`: `AsyncClient`, the same for Trio and asyncio.
"""

from __future__ import annotations

from shoal.node.client.blocking import Client
from shoal.node.client.flows import Options
from shoal.node.client.nonblocking import AsyncClient

__all__ = ["AsyncClient", "Client", "Options"]
