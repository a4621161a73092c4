"""What a submitter holds as tensors of the wire, and back: numpy, torch, files, lists.

Pure, but for files that are mapped. An array of any size is turned into a blob piece by
piece, so that one on disk is never in memory whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from shoal.compute.manifest import check_inputs
from shoal.compute.tensor import encode_header, spec_of_array
from shoal.crypto.content import BlobHasher
from shoal.node.client.files import InputError, read_array, read_arrays
from shoal.node.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from shoal.compute.manifest import Port
    from shoal.compute.programs import AnyManifest
    from shoal.crypto.content import BlobId

As: TypeAlias = Literal["numpy", "torch"]
"""As what outputs are given."""

Inputs: TypeAlias = "Mapping[str, Any] | str | PathLike[str]"
"""By name an array, a torch tensor, a list, a file of one, or an `OutputRef` to another unit's
output; or an npz or safetensors file."""

PIECE_BYTES = 1 << 20
"""How much of an array is copied at once."""


class Outputs(dict[str, Any]):
    """The outputs of one unit by name, and which unit that is.

    Attributes:
        unit: Its index in the job.
        receipt: The id of its receipt.
        provider: The peer that ran it.
        seconds: From hand-over to verified result.
    """

    unit: int = 0
    receipt: BlobId | None = None
    provider: str | None = None
    seconds: float | None = None


def arrays_of(manifest: AnyManifest, inputs: Inputs) -> dict[str, np.ndarray]:
    """The inputs of one unit as arrays that the program takes.

    Lists and numbers take the dtype of the input that they are for.

    Raises:
        InputError: One is no array, or its file cannot be used; or they have no names.
        ProgramError: One is missing, unknown, or of another dtype or shape.
    """
    given = named_arrays(inputs, manifest)
    check_inputs(manifest, {name: spec_of_array(array) for name, array in given.items()})
    return given


def named_arrays(inputs: Inputs, manifest: AnyManifest | None = None) -> dict[str, np.ndarray]:
    """As `arrays_of`, with no look at what the program takes; files are mapped."""
    if isinstance(inputs, str | PathLike):
        return read_arrays(Path(inputs))
    ports = {port.name: port for port in manifest.inputs} if manifest else {}
    if not isinstance(inputs, Mapping):
        wanted = ", ".join(f"{name!r}: …" for name in ports) or "'NAME': …"
        raise InputError(
            f"inputs are given by name, and here is a {type(inputs).__name__}",
            hint=f"write {{{wanted}}}; or give the path of an npz or safetensors file",
        )
    return {name: as_array(value, name, ports.get(name)) for name, value in inputs.items()}


def as_array(value: Any, name: str, port: Port | None = None) -> np.ndarray:
    """One input as an array; raises as `arrays_of` does."""
    import numpy as np

    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, str | PathLike):
        return read_array(Path(value), name)
    if _is_torch(value):
        return _from_torch(value)
    plain = isinstance(value, list | tuple | int | float)
    try:
        array = np.asarray(value, port.dtype if port is not None and plain else None)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(
            f"input {name!r} is no array: {error}",
            hint="give a numpy array, a torch tensor, a list of numbers, or a file",
        ) from None
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise InputError(
            f"input {name!r} is a {type(value).__name__}, and no array of numbers",
            hint="give a numpy array, a torch tensor, a list of numbers, or a file",
        )
    return array


def pieces_of(array: np.ndarray) -> Iterator[bytes]:
    """The bytes of an array's blob, as `to_blob` gives them, in pieces."""
    yield encode_header(spec_of_array(array))
    yield from _elements(array)


def id_of_pieces(array: np.ndarray) -> BlobId:
    """The content id of an array's blob; reads it through once."""
    hasher = BlobHasher()
    for piece in pieces_of(array):
        hasher.update(piece)
    return hasher.finish().blob_id


def check_as(as_: str) -> None:
    """Check, before any work is done, that outputs can be given so.

    Raises:
        ConfigError: ``no_torch``, or ``as_`` is something else.
    """
    if as_ == "torch":
        torch_or_error("outputs as torch tensors")
    elif as_ != "numpy":
        raise ConfigError(
            f"outputs cannot be given as {as_[:40]!r}", hint="numpy or torch", code="usage"
        )


def as_wanted(array: np.ndarray, as_: str) -> Any:
    """An output in the form that was asked for."""
    if as_ == "numpy":
        return array
    torch = torch_or_error("outputs as torch tensors")
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view("int16").copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())  # torch has no read-only tensors


def torch_or_error(what: str) -> Any:
    """The module torch.

    Raises:
        ConfigError: ``no_torch``: it is not installed.
    """
    try:
        import torch
    except ImportError:
        raise ConfigError(
            f"{what}: PyTorch is not installed in this environment",
            code="no_torch",
            hint="in a checkout of shoal: `pip install -c constraints.txt '.[torch]'`",
        ) from None
    return torch


def _elements(array: np.ndarray) -> Iterator[bytes]:
    import numpy as np

    if array.nbytes > PIECE_BYTES and array.ndim:
        rows = max(1, PIECE_BYTES * len(array) // array.nbytes)
        for at in range(0, len(array), rows):
            yield from _elements(array[at] if rows == 1 else array[at : at + rows])
        return
    if array.dtype.newbyteorder("<") != array.dtype:
        array = array.astype(array.dtype.newbyteorder("<"))
    if array.dtype == np.bool_:
        array = array.view(np.uint8) != 0
    yield array.tobytes(order="C")


def _is_torch(value: object) -> bool:
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach")


def _from_torch(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype is torch.bfloat16:
        from ml_dtypes import bfloat16

        return tensor.contiguous().view(torch.int16).numpy().view(bfloat16)
    return tensor.numpy()  # torch is known as a value only
