"""What a card's workers compile when they start, compiled once.

Each process has a cache of its own, since a process that was taken over could leave a
falsified kernel there for the next requester's units. What the first one has compiled by
the time it has settled in is from before any stranger's bytes: that much is kept, and
every later process begins with a copy.
"""

from __future__ import annotations

import os
from pathlib import Path
from shutil import copytree, rmtree
from typing import Final

_HERE: Final = "{scratch}"
_GROUP: Final = "__grp__"
"""Files by which Triton finds those of one kernel, by their whole paths."""

KERNELS: Final = "triton"
"""The part of a process's directory that holds Triton's cache (`TRITON_CACHE_DIR`)."""


def keep(scratch: str, kept: Path) -> None:
    """Keep what a process has compiled that has seen nothing of a stranger's.

    Nothing is done where something is kept already, or nothing was compiled.

    Args:
        scratch: The process's directory.
        kept: Where it is kept.
    """
    compiled = Path(scratch, KERNELS)
    if kept.exists() or not compiled.is_dir():
        return
    unfinished = kept.with_suffix(".part")
    rmtree(unfinished, ignore_errors=True)
    copytree(compiled, unfinished)
    _rewrite(unfinished, scratch, _HERE)
    unfinished.rename(kept)


def give(kept: Path, scratch: str) -> None:
    """Begin a new process's cache with what is kept; takes some tens of milliseconds.

    Args:
        kept: Where it is kept; where nothing is, the cache begins empty.
        scratch: The process's directory.
    """
    if kept.is_dir():
        begun = Path(scratch, KERNELS)
        copytree(kept, begun)
        _rewrite(begun, _HERE, scratch)


def _rewrite(cache: Path, old: str, new: str) -> None:
    for folder, _, names in os.walk(cache):
        for name in names:
            if name.startswith(_GROUP):
                file = Path(folder, name)
                file.write_text(file.read_text().replace(old, new))
