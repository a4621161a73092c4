"""Ask one vendor's library: ``python -m shoal.compute.devices nvidia``.

Prints an `Inventory` as JSON. What the library itself prints goes to stderr. Where the
host's /dev, /proc and /sys lie elsewhere, ``SHOAL_DEVICES_ROOT`` says where.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from shoal.compute.devices import ROOT_VARIABLE
from shoal.compute.devices.inventory import Inventory


def look(kind: str) -> Inventory:
    """Find the devices of one vendor."""
    root = Path(os.environ.get(ROOT_VARIABLE) or "/")
    if kind == "nvidia":
        from shoal.compute.devices.nvidia import detect_nvidia

        return detect_nvidia(root)
    from shoal.compute.devices.amd import detect_amd

    return detect_amd(root)


def main() -> None:
    """Answer on stdout."""
    answer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with os.fdopen(answer, "wb") as stdout:
        stdout.write(msgspec.json.encode(look(sys.argv[1])))
    os._exit(0)  # a library's threads are not waited for


if __name__ == "__main__":
    main()
