"""The local API: HTTP/JSON on a Unix socket, the front door of a daemon.

First step of the data path, *submit*, and the last, *deliver*. What a request
means is decided by the daemon behind `DaemonFacade`; this package reads bodies
within bounds, streams bytes in and out, and turns every `ShoalError` into JSON:

- `facade`: what a daemon must be able to do to stand behind this API;
- `app`: the routes;
- `bodies`: bodies of requests, npy and safetensors as tensors, both ways;
- `units`: units of a job as they come in, piece by piece;
- `results`: results as they go out, page by page;
- `queries`: what a request says beside its body;
- `events`: a job's changes as they happen;
- `answers`: JSON bodies, errors and their HTTP statuses;
- `shortcut`: one unit and its result in one request, past the HTTP server;
- `server`: the socket and the HTTP server on it.
"""

from __future__ import annotations

from shoal.node.api.app import make_app, make_metrics_app
from shoal.node.api.facade import BlobStore, DaemonFacade
from shoal.node.api.server import claim_port, claim_socket, serve_api

__all__ = [
    "BlobStore",
    "DaemonFacade",
    "claim_port",
    "claim_socket",
    "make_app",
    "make_metrics_app",
    "serve_api",
]
