"""A kernel's text, read by Triton's own parser and looked at again: inside a worker.

Part of *execute*. The parser is C++ that was not written for strangers' text, so this runs
in a worker's sandbox alone, after `rules` has looked at the text. What counts is what the
parser made of it: each operation of the module is held against the list once more, the
module must print as the very text that it was read from, so that nothing in it was passed
over, and the function must take what the manifest says.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.kernel_manifest import KernelManifest, decode
from shoal.compute.user_kernels.rules import check_operations, check_text, entry_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shoal.crypto.content import BlobId, Buffer

_IR_TYPES: Final = {"fp16": "f16", "fp32": "f32", "fp64": "f64"}
"""How Triton IR names a type, where that differs; it knows no unsigned ones."""


@dataclass(frozen=True, slots=True)
class LoadedKernel:
    """A kernel whose text keeps to the rules that need no parser."""

    program_id: BlobId
    manifest: KernelManifest
    text: str


def load(program_id: BlobId, blobs: Mapping[BlobId, Buffer]) -> LoadedKernel:
    """Put a kernel's blobs together, and hold its text against the rules.

    Args:
        program_id: The id of the manifest, which is among the blobs.
        blobs: The manifest and the text, already checked against their ids.

    Raises:
        ProgramError: A blob is missing or malformed, or the text breaks a rule.
    """
    missing = ProgramError("the kernel's manifest or text is missing", code="missing_blob")
    if program_id not in blobs:
        raise missing
    manifest = decode(bytes(blobs[program_id]))
    (text_id,) = manifest.blob_ids
    if text_id not in blobs:
        raise missing
    text = check_text(blobs[text_id])
    if entry_of(text) != manifest.entry:
        raise _wrong_signature(
            f"its function is {entry_of(text)!r}, and {manifest.entry!r} was promised"
        )
    return LoadedKernel(program_id, manifest, text)


def check_version(manifest: KernelManifest, here: str) -> None:
    """Check that a kernel is of the version of Triton that is here.

    Raises:
        ComputeError: ``triton_version``, with both versions.
    """
    if manifest.triton != here:
        raise ComputeError(
            f"the kernel was lowered by Triton {manifest.triton}, and {here} is here",
            code="triton_version",
            hint=f"lower it with Triton {here}, or find a provider with {manifest.triton}: one "
            "version's text need not mean the same to another",
        )


def parse(kernel: LoadedKernel, backend: Any) -> Any:
    """Parse a kernel.

    Args:
        kernel: What `load` gave.
        backend: Triton's, of the target, whose dialects its passes need.

    Returns:
        The module, which holds its context.

    Raises:
        ProgramError: ``not_ttir``, ``wrong_signature``, or as `rules.check_operations`.
    """
    from triton._C.libtriton import ir

    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    # The parser reads files. This one is nowhere on a disk, and needs no name to be opened.
    descriptor = os.memfd_create("kernel", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, kernel.text.encode())
        module = ir.parse_mlir_module(f"/proc/self/fd/{descriptor}", context)
    except RuntimeError as error:
        raise ProgramError(
            f"Triton's parser does not take the kernel: {error!s:.200}",
            code="not_ttir",
            hint="lower it again with `shoal.kernel`",
        ) from None
    finally:
        os.close(descriptor)
    module.context = context
    _check_module(kernel, module)
    return module


def _check_module(kernel: LoadedKernel, module: Any) -> None:
    names: set[str] = set()
    module.walk(lambda operation: names.add(operation.get_name()))
    check_operations(sorted(names))
    if module.str_nodebug().rstrip("\n") != kernel.text.rstrip("\n"):
        raise ProgramError(
            "the kernel is not written as Triton prints it",
            code="not_ttir",
            hint="lower it again with `shoal.kernel`, and leave the text as it is",
        )
    manifest = kernel.manifest
    found = module.get_function_signature(module.get_function(manifest.entry))
    taken = [_normal(kind) for kind in found]
    promised = [_normal(argument.type) for argument in manifest.arguments]
    if taken != promised:
        raise _wrong_signature(
            f"it takes ({', '.join(taken)}), and ({', '.join(promised)}) was promised"
        )


def _normal(kind: str) -> str:
    pointer, name = ("*", kind[1:]) if kind.startswith("*") else ("", kind)
    if name.startswith("u") and name[1:].isdigit():
        name = f"i{name[1:]}"
    return pointer + _IR_TYPES.get(name, name)


def _wrong_signature(why: str) -> ProgramError:
    return ProgramError(
        f"the kernel is not the one that its manifest describes: {why}"[:600],
        code="wrong_signature",
        hint="lower it again with `shoal.kernel`, which writes both",
    )
