"""Which files the demo looks at: a checkout's git-tracked ones, or those of a folder.

Only regular files, and no more than a bound. Links are not followed, so that
nothing outside the folder is read; what is left out is said, with the reason.
"""

from __future__ import annotations

import os
import stat
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.node.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES_LIMIT = 1000
"""Files in one demo: magika takes some 10 ms for each, and it is to end soon."""

_GIT_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True)
class Selection:
    """The files to look at.

    Attributes:
        root: The folder; ``files`` and ``left_out`` are relative to it.
        origin: Where they come from, in words.
        files: Regular, readable files, in order.
        left_out: What was found beside them, and why it is not looked at.
        more: Whether there were more than the bound.
    """

    root: Path
    origin: str
    files: tuple[Path, ...]
    left_out: dict[Path, str]
    more: bool


def select(folder: Path | None) -> Selection:
    """Choose the files of ``folder``, or of this checkout where none is given.

    Outside a checkout of shoal these are the files of the installed package.

    Raises:
        ConfigError: There is no such folder, it cannot be read, or it holds no
            files.
    """
    if folder is not None:
        root = folder.resolve()
        if not root.is_dir() or not os.access(root, os.R_OK | os.X_OK):
            raise ConfigError(
                f"{folder} is not a folder that can be read", code="no_such_folder"
            )
        selection = _sort_out(root, f"the files of {folder}", _walk(root))
    else:
        package = Path(__file__).resolve().parents[2]
        for start in (Path.cwd(), package):
            tracked = _git_tracked(start)
            if tracked is not None:
                selection = _sort_out(tracked[0], "this checkout's files", iter(tracked[1]))
                break
        else:
            layers = ("protocol", "crypto", "compute", "node")
            found = (path for layer in layers for path in _walk(package / layer))
            selection = _sort_out(package, "the files of the installed package", found)
    if not selection.files:
        raise ConfigError(
            f"there are no files to look at in {selection.root}",
            code="no_files",
            hint="choose another folder with --path",
        )
    return selection


def _git_tracked(start: Path) -> tuple[Path, list[Path]] | None:
    """The root and the tracked files of the checkout around ``start``, if it is shoal's."""
    top = _git(start, "rev-parse", "--show-toplevel")
    if top is None:
        return None
    root = Path(os.fsdecode(top.rstrip(b"\n")))
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if project.get("project", {}).get("name") != "shoal":
        return None
    names = _git(root, "ls-files", "-z")
    if not names:
        return None
    return root, [root / os.fsdecode(name) for name in names.split(b"\0") if name]


def _git(directory: Path, *arguments: str) -> bytes | None:
    """What git prints; None where it is not installed or this is not its own."""
    try:
        return subprocess.run(  # noqa: S603  # our own arguments
            ["git", *arguments],  # noqa: S607  # whichever git the user has
            cwd=directory,
            check=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_GIT_LIMIT_S,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _walk(root: Path) -> Iterator[Path]:
    """Everything below ``root`` that is no directory, in order; links are not followed."""
    for directory, folders, names in os.walk(root):
        here = Path(directory)
        folders.sort()
        links = [name for name in folders if (here / name).is_symlink()]
        yield from (here / name for name in sorted([*names, *links]))


def _sort_out(root: Path, origin: str, found: Iterator[Path]) -> Selection:
    files: list[Path] = []
    left_out: dict[Path, str] = {}
    for path in found:
        if len(files) == FILES_LIMIT or len(left_out) == FILES_LIMIT:
            return Selection(root, origin, tuple(files), left_out, more=True)
        reason = _reason_to_leave_out(path)
        if reason:
            left_out[path.relative_to(root)] = reason
        else:
            files.append(path.relative_to(root))
    return Selection(root, origin, tuple(files), left_out, more=False)


def _reason_to_leave_out(path: Path) -> str:
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            return "a link"
        if not stat.S_ISREG(mode):
            return "not a regular file"
        with path.open("rb"):
            return ""
    except FileNotFoundError:
        return "missing"
    except OSError:
        return "unreadable"
