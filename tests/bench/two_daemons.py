"""Two daemons as processes, of which one fetches large inputs from the other."""

import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from onnx import parser

from shoal.node.demo.swarm import Node, Swarm

ACQUAINTED_LIMIT_S = 150.0
FETCH_LIMIT_S = 300.0
LOOK_S = 0.003


@dataclass(frozen=True)
class Pair:
    """Who asks, and who fetches what it asks about."""

    asker: Node
    taker: Node


@contextmanager
def two_daemons(root, settings=(), quota="5GiB"):
    """Have two daemons with homes in a new directory under ``root``.

    The asker's own device is paused, so that its units go to the other one.
    """
    with tempfile.TemporaryDirectory(prefix="shoal-wire-", dir=root) as place:
        flags = ["--cores=1", f"--blob-quota={quota}", *settings]
        with Swarm(2, settings=flags, root=Path(place)) as swarm:
            swarm.start_all()
            swarm.wait_acquainted(timeout_s=ACQUAINTED_LIMIT_S)
            with swarm.nodes[0].client() as client:
                client.pause("cpu")
            yield Pair(*swarm.nodes)


def fetched(pair, array, look=lambda: None, begin=lambda: None):
    """Have the taker fetch an array; gives the seconds from its first file to the blob's.

    Args:
        pair: The daemons.
        array: float32 of one axis, and bytes that the taker does not hold.
        look: Called again and again meanwhile.
        begin: Called when it begins.
    """
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> '
        f"g (float[{len(array)}] x) => (float[4] y) <int64[1] a = {{0}}, int64[1] b = {{4}}> "
        "{ y = Slice(x, a, b) }"
    ).SerializeToString()
    blobs = pair.taker.home / "blobs"
    with pair.asker.client() as client:
        job = client.submit(model, [{"x": array}], memory_limit_bytes=2 * array.nbytes)
        try:
            large = _seen(lambda: _large(blobs / "partial") or _going_on(client, job.id))
            began = time.perf_counter()
            begin()
            _seen((blobs / large[:2] / large).exists, look)
            took_s = time.perf_counter() - began
        finally:  # what the unit does is no matter here
            client.cancel(job.id)
        client.wait(job.id, 60)
    return took_s


def _large(directory):
    """The blob of which a partial file is here; programs and the like are of one chunk."""
    return next((path.stem for path in directory.glob("*.chunks")), None)


def _going_on(client, job_id):
    """Nothing, unless the job has failed before anything was fetched."""
    failure = client.job(job_id).failure
    assert failure is None, failure


def _seen(look_for, look=lambda: None):
    deadline_s = time.monotonic() + FETCH_LIMIT_S
    while not (found := look_for()):
        assert time.monotonic() < deadline_s, "nothing was fetched"
        look()
        time.sleep(LOOK_S)
    return found
