"""shoal: pool the CPUs and GPUs of people who do not fully trust one another.

This is the public Python API. Names are imported when first used, so that
``import shoal`` alone costs nothing::

    import shoal

    with shoal.Client() as client:
        outputs = client.run("model.onnx", {"x": array})
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.crypto.errors import ShoalError
    from shoal.node.client import AsyncClient, Client
    from shoal.node.client.executor import Executor
    from shoal.node.client.remote import remote
    from shoal.node.errors import (
        DaemonError,
        DaemonUnreachableError,
        JobFailedError,
        WaitTimeoutError,
    )
    from shoal.node.records import OutputRef, new_job_id

__version__ = "0.1.0"

_HOME_OF = {
    "AsyncClient": "shoal.node.client",
    "Client": "shoal.node.client",
    "DaemonError": "shoal.node.errors",
    "DaemonUnreachableError": "shoal.node.errors",
    "Executor": "shoal.node.client.executor",
    "JobFailedError": "shoal.node.errors",
    "OutputRef": "shoal.node.records",
    "ShoalError": "shoal.crypto.errors",
    "WaitTimeoutError": "shoal.node.errors",
    "new_job_id": "shoal.node.records",
    "remote": "shoal.node.client.remote",
}

__all__ = [
    "AsyncClient",
    "Client",
    "DaemonError",
    "DaemonUnreachableError",
    "Executor",
    "JobFailedError",
    "OutputRef",
    "ShoalError",
    "WaitTimeoutError",
    "__version__",
    "new_job_id",
    "remote",
]


def __getattr__(name: str) -> object:
    """Import a public name from its module at first use (PEP 562)."""
    try:
        home = _HOME_OF[name]
    except KeyError:
        message = f"module 'shoal' has no attribute {name!r}"
        raise AttributeError(message) from None
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return __all__
