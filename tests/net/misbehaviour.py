"""Plays the daemon for a worker that misbehaves; prints as JSON what came of each deed.

    python misbehaviour.py [unlocked] < {"deed": "argument", …}

A process of its own, so that a test can run it as another user, and so that a deed that
succeeds hits nobody else. After each deed an ordinary unit has to run.
"""

import json
import os
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import trio
from onnx import parser

from shoal.compute import exchanges
from shoal.compute.convert import convert
from shoal.compute.errors import ComputeError
from shoal.compute.frames import UnitLimits
from shoal.compute.supervisor import open_worker
from shoal.compute.tensor import from_blob, to_blob

WORKER = str(Path(__file__).with_name("misbehaving_worker.py"))
LIMITS = UnitLimits(time_s=10.0, memory_bytes=1 << 26, output_bytes=1 << 20)
SHORT = UnitLimits(time_s=0.3, memory_bytes=1 << 26, output_bytes=1 << 20)
TIME_S = {"spin", "sleep", "stop itself"}
DOUBLE = convert(
    parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>'
        "g (float[n] x) => (float[n] y) { y = Add(x, x) }"
    ).SerializeToString()
)


async def outcome_of(worker, deed, argument):
    limits = SHORT if deed in TIME_S else LIMITS
    try:
        converted = await worker.convert(
            "ann", f"deed:{deed}:{argument}".encode(), limits=limits
        )
        said = converted.blobs["outcome"].decode()
    except ComputeError as error:
        said = f"{error.code}: {error.message}"
    return f"{said}, and the daemon holds its file" if holds_a_file_of_the_worker() else said


def holds_a_file_of_the_worker():
    """It hands over one that has no name any more, as nothing of the daemon's has."""
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists them
            links.append(str(descriptor.readlink()))
    return any(link.endswith("(deleted)") and "memfd:" not in link for link in links)


async def next_unit(worker):
    async def fetch_blobs():
        return DOUBLE.blobs

    x = to_blob(np.arange(3, dtype=np.float32))
    for _ in range(2):  # where an answer was forged, the unit after it meets it
        try:
            ran = await worker.run("ann", DOUBLE.program_id, fetch_blobs, {"x": x}, LIMITS)
        except ComputeError as error:
            said = f"{error.code}: {error.message}"
        else:
            return from_blob(ran.outputs["y"]).tolist() == [0.0, 2.0, 4.0]
    return said


def names_in(directory):
    return sorted(path.name for path in Path(directory).iterdir())


async def main():
    exchanges.GRACE_S = 0.5
    deeds = json.load(sys.stdin)
    outcomes = {}
    with (
        tempfile.TemporaryDirectory() as directory,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as local,
    ):
        key = Path(directory) / "identity.key"
        key.write_bytes(b"secret")
        key.chmod(0o600)
        local.bind(f"{directory}/socket")
        local.listen()
        places = {
            "HOME": directory,
            "KEY": str(key),
            "ADDRESS": f"127.0.0.1:{server.getsockname()[1]}",
            "SOCKET": f"{directory}/socket",
        }
        async with open_worker(
            threads=2, cache_bytes=1 << 20, memory_bytes=1 << 26, entry=(WORKER, *sys.argv[1:])
        ) as worker:
            await worker.probe()
            for deed, argument in deeds.items():
                said = await outcome_of(worker, deed, places.get(argument, argument))
                outcomes[deed] = [said, await next_unit(worker)]
            sandbox = worker.sandbox
        left = names_in(directory)
    print(json.dumps({"uid": os.getuid(), "sandbox": sandbox, "left": left, **outcomes}))


trio.run(main)
