"""Which files a card's worker may still use: the rules of Landlock for the profile ``GPU``.

It reads what this machine's programs are made of and runs compilers from there, uses its
card's device nodes, and writes in one directory, which is its own. Neither the daemon's
home, with the key in it, nor any other user's files are among these.

Landlock knows no exception within what it allows. Where the home lies beneath a place that
is read, as in a virtual environment, that place's own entries are allowed one by one, all
but the way down to the home; whoever looks into a directory on that way sees no names.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shoal.compute.devices.kernel import read_text
from shoal.compute.sandbox.landlock import EXECUTE, OWN, READ, READ_DIR, USE_DEVICE, Rule

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROGRAMS: Final = ("/usr", "/lib", "/lib64", "/bin", "/sbin", "/nix/store")
_TOOLKITS: Final = ("opt/rocm*", "opt/amdgpu*", "opt/cuda*")
"""Not all of /opt: a daemon's home may lie there."""

_READ: Final = (
    "/proc",
    "/sys",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/alternatives",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/os-release",
    "/etc/OpenCL",
)

_DEVICES: Final = (
    "/dev/null",
    "/dev/zero",
    "/dev/urandom",
    "/dev/kfd",
    "/dev/dxg",
    "/dev/nvidiactl",
    "/dev/nvidia-uvm",
    "/dev/nvidia-uvm-tools",
    "/dev/nvidia-modeset",
    "/dev/nvidia-caps",
)


def of_card_worker(
    scratch: str, pci: str = "", root: Path = Path("/"), home: str = ""
) -> tuple[Rule, ...]:
    """What the worker of a card may use.

    Args:
        scratch: Its own directory; "" where it has none.
        pci: Where its card is on the PCI bus; "" where that is not known.
        root: Where /dev, /opt, /proc and /sys are.
        home: The daemon's, of which it may read nothing; "" where there is none.
    """
    toolkits = (str(place) for kind in _TOOLKITS for place in sorted(root.glob(kind)))
    programs = (*_PROGRAMS, *toolkits, *_of_python())
    return (
        *(Rule(path, READ | EXECUTE) for place in programs for path in _but(home, place)),
        *(Rule(path, READ) for place in _READ for path in _but(home, place)),
        Rule("/dev", READ_DIR),  # libraries look for their nodes there
        *(Rule(path, USE_DEVICE) for path in (*_DEVICES, *_nodes(pci, root))),
        *([Rule(scratch, OWN)] if scratch else []),
    )


def _but(home: str, place: str) -> Iterator[str]:
    """A place without the home that may lie in it."""
    hidden, inside = Path(home).resolve(), Path(place).resolve()
    if not home or not hidden.is_relative_to(inside):
        yield place
    elif hidden != inside:
        with suppress(OSError):  # what cannot be listed is not read either
            for entry in sorted(inside.iterdir()):
                # What a link leads to is no part of this place, or is one by its own name.
                if not entry.is_symlink():
                    yield from _but(home, str(entry))


def _nodes(pci: str, root: Path) -> Iterator[str]:
    """The device nodes of a card: those of all where the kernel does not say which.

    Of AMD's the one that renders: kfd, which all share, computes on a card for who has that.
    """
    about = read_text(root / f"proc/driver/nvidia/gpus/{pci}/information") if pci else ""
    minor = re.search(r"Device Minor:\s*(\d+)", about)
    render = list((root / f"sys/bus/pci/devices/{pci}/drm").glob("renderD*")) if pci else []
    if minor:
        yield str(root / f"dev/nvidia{minor[1]}")
    elif render:
        yield from (str(root / "dev/dri" / node.name) for node in render)
    else:
        yield from map(str, sorted(root.glob("dev/nvidia[0-9]*")))
        yield str(root / "dev/dri")


def _of_python() -> Iterator[str]:
    """Where this interpreter and its packages are, wherever they were installed."""
    places = {sys.prefix, sys.base_prefix, *filter(os.path.isdir, sys.path)}
    # An editable install's packages are links to where they are worked on.
    places.add(str(Path(__file__).resolve().parents[2]))
    home = str(Path.home())
    yield from sorted(place for place in places if place not in {"/", "", home})
