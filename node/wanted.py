"""What a job's units look for in adverts: a numeric class, and of kernels their very Triton.

Pure. A kernel is text of the version of Triton that lowered it, and no other version may read
it; so a node with another one is not asked. Before 1.6 adverts do not say which one a node
has: such a node is asked, and its unit ends with the reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NewType

from shoal.compute.kernel_manifest import KERNEL_CLASS, KernelManifest

if TYPE_CHECKING:
    from collections.abc import Collection

    from shoal.compute.programs import AnyManifest

Wanted = NewType("Wanted", str)
"""A numeric class; of kernels, with the version behind it: ``kernel 3.7.1``."""


def wanted_of(manifest: AnyManifest, numeric_class: str) -> Wanted:
    """What the units of a program look for."""
    if isinstance(manifest, KernelManifest):
        return Wanted(f"{KERNEL_CLASS} {manifest.triton}")
    return Wanted(numeric_class)


def class_of(wanted: Wanted) -> str:
    """The numeric class in it."""
    return wanted.partition(" ")[0]


def triton_of(wanted: Wanted) -> str:
    """The version of Triton in it; "" where it is no kernel."""
    return wanted.partition(" ")[2]


def is_offered(wanted: Wanted, classes: Collection[str], triton: str) -> bool:
    """Whether a node offers it, by its advert's classes and its Triton, "" if not said."""
    fits = not triton or triton_of(wanted) in {"", triton}
    return fits and class_of(wanted) in classes
