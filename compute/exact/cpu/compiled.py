"""How the CPU's kernels are compiled: ahead, for fixed types, once per machine.

Part of *execute*. A worker refuses executable memory from the moment it locks itself
in, so nothing may compile later: every kernel names its signatures and is compiled,
or loaded from the disk, when its module is imported; other types are refused. Kernels
run on part of their arrays, with the GIL released; `threads` gives them the parts.

Float semantics: no fastmath, no contraction to FMA, IEEE division by zero. LLVM may
then not reorder or fuse any float operation, on any instruction set.

The cache lies under ``NUMBA_CACHE_DIR`` where that is set, as it should be for a
worker, and otherwise with the user's caches. Its files are code: the directory must
be writable to nobody else. Numba itself notices a change of the file that holds a
kernel, but not of the constants that the file imports, and one stale coefficient
would be a wrong bit; so the directory's name is a digest of all the sources. Where
no directory can be written, each start compiles for about a minute.
"""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numba
import platformdirs
from numba import types
from numba.core.codegen import get_host_cpu_features

if TYPE_CHECKING:
    from collections.abc import Callable


def _digest_of_sources() -> str:
    here = Path(__file__).parent
    digest = blake2b(numba.__version__.encode(), digest_size=8)
    for source in sorted([*here.glob("*.py"), here.parent / "spec.py"]):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _cache_directory() -> str | None:
    base = os.environ.get("NUMBA_CACHE_DIR") or platformdirs.user_cache_dir("shoal")
    directory = Path(base) / f"exact-{_digest_of_sources()}"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    return str(directory) if os.access(directory, os.W_OK) else None


CACHE_DIRECTORY: Final = _cache_directory()
"""Where compiled kernels are kept, or None: compiled anew by each process."""


def _use_wide_vectors() -> None:
    """Let LLVM use 512-bit registers where there are any: it shuns them on many CPUs.

    On one such machine the loop of exp gained a fifth.
    """
    if numba.config.CPU_FEATURES is None and "+avx512f" in get_host_cpu_features():
        numba.config.CPU_FEATURES = f"{get_host_cpu_features()},-prefer-256-bit"


_use_wide_vectors()


def kernel(*signatures: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function now for these signatures and no others.

    Args:
        signatures: Numba signatures, as ``int64(reads(float32, 2), writes(float32, 1))``.
    """

    def compile_now(function: Callable[..., Any]) -> Callable[..., Any]:
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = CACHE_DIRECTORY or before
        try:
            return numba.njit(
                list(signatures),
                nogil=True,
                cache=CACHE_DIRECTORY is not None,
                error_model="numpy",
                fastmath=False,
            )(function)
        finally:
            numba.config.CACHE_DIR = before

    return compile_now


def inline(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of numbers for use inside kernels; it becomes part of each of them."""
    return numba.njit(error_model="numpy", fastmath=False, forceinline=True)(function)


def reads(dtype: types.Type, ndim: int) -> types.Array:
    """The type of a C-contiguous array that is read; read-only ones fit as well."""
    return types.Array(dtype, ndim, "C", readonly=True)


def writes(dtype: types.Type, ndim: int) -> types.Array:
    """The type of a C-contiguous array that is written."""
    return types.Array(dtype, ndim, "C")
