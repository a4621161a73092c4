"""Manifests of either kind: of an ONNX program, and of a user's kernel.

Pure, and without onnx or Triton: the daemon reads by it whatever a peer names as a program.
Each kind has its own rules in its own module; here is what is the same of both.
"""

from __future__ import annotations

from typing import TypeAlias

from shoal.compute import kernel_manifest, manifest
from shoal.compute.errors import ProgramError
from shoal.compute.kernel_manifest import KERNEL_CLASS, KernelManifest
from shoal.compute.manifest import Manifest

AnyManifest: TypeAlias = Manifest | KernelManifest


def decode(data: bytes) -> AnyManifest:
    """Read a manifest; only its canonical bytes are accepted.

    Raises:
        ProgramError: As the `decode` of its kind.
    """
    if kernel_manifest.is_kernel_manifest(data):
        return kernel_manifest.decode(data)
    return manifest.decode(data)


def own_class(program: AnyManifest) -> str:
    """The numeric class that a program is for, where nobody names another."""
    if isinstance(program, KernelManifest):
        return KERNEL_CLASS
    return "exact" if program.precision else "fp32"


def check_class(program: AnyManifest, numeric_class: str) -> None:
    """Check that a program can be run in a numeric class.

    Raises:
        ProgramError: ``class_mismatch``: kernels run in the class `kernel`, and nothing
            else does; `exact` needs a precision, and no other class takes one.
    """
    if isinstance(program, Manifest) and numeric_class != KERNEL_CLASS:
        manifest.check_class(program, numeric_class)
    elif isinstance(program, Manifest):
        raise ProgramError(
            "the class 'kernel' is for GPU kernels, and this program is an ONNX model",
            code="class_mismatch",
            hint="submit it in another class, such as fp32; `shoal.kernel` makes programs of "
            "Triton kernels",
        )
    elif numeric_class != KERNEL_CLASS:
        raise ProgramError(
            f"the class {numeric_class!r} does not fit a GPU kernel",
            code="class_mismatch",
            hint="submit it with `--class kernel`, or numeric_class='kernel'",
        )
