"""The program manifest: what a program is, small enough for a daemon to read.

A program is an ONNX graph whose weights were taken out, the weights beside it as
tensor blobs, and this manifest, whose blob id is the *program id*. It lists what
goes in and what comes out, so that a wrong input is refused before anything is
fetched or run. Whether the graph keeps these promises is checked by the worker
that loads it (`shoal.compute.loading`).

One manifest has one encoding: msgpack with every field written, in order, in the
shortest form, the tensors sorted by name.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Final, Literal, Protocol

import msgpack
import msgspec

from shoal.compute.errors import ProgramError
from shoal.compute.tensor import DTYPES, RANK_LIMIT, TensorSpec
from shoal.crypto.content import BlobId
from shoal.protocol.limits import PORTS_LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MANIFEST_LIMIT_BYTES: Final = 4 << 20
"""A name and an id for each of 20,000 tensors fit."""

TENSOR_COUNT_LIMIT: Final = 20_000
"""Weights of one program; a model of 100 layers has some 1,500."""

PORT_COUNT_LIMIT: Final = PORTS_LIMIT
"""Inputs, and outputs: as many as one message and one receipt name."""

NAME_LIMIT_BYTES: Final = 512
"""A tensor's name in UTF-8; exporters write paths of modules, some 100 long."""

DIMENSION_LIMIT: Final = 1 << 40
"""The largest size a fixed dimension may claim."""

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_LIMIT_BYTES)]
_Symbol = Annotated[str, msgspec.Meta(max_length=NAME_LIMIT_BYTES)]
_Size = Annotated[int, msgspec.Meta(ge=0, le=DIMENSION_LIMIT)]
_HexId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}\\Z")]
_Dimensions = Annotated[tuple[_Size | _Symbol, ...], msgspec.Meta(max_length=RANK_LIMIT)]


class Port(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An input or output of a program.

    A dimension is a size, or a symbol that stands for one size throughout a run,
    or "" where any size will do. A shape of None says that even the rank is open.
    """

    name: _Name
    dtype: str
    shape: _Dimensions | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype}[…]"
        return f"{self.dtype}[{', '.join(str(size) or '?' for size in self.shape)}]"


class Weight(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor that belongs to the program: its name in the graph, and its blob."""

    name: _Name
    blob_id: _HexId


class ScaleAxis(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which axis of the right-hand factor carries the scale in one exact product.

    ``product`` is the name of the product's output.
    """

    product: _Name
    axis: Literal["column", "k"]


_Ports = Annotated[tuple[Port, ...], msgspec.Meta(max_length=PORT_COUNT_LIMIT)]
_Weights = Annotated[tuple[Weight, ...], msgspec.Meta(max_length=TENSOR_COUNT_LIMIT)]
_ScaleAxes = Annotated[tuple[ScaleAxis, ...], msgspec.Meta(max_length=TENSOR_COUNT_LIMIT)]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a program consists of, and what it takes and gives.

    ``precision`` and ``scale_axes`` say how the `exact` class computes it; a
    program without them runs in the other classes only.
    """

    graph: _HexId
    tensors: _Weights
    inputs: _Ports
    outputs: Annotated[_Ports, msgspec.Meta(min_length=1)]
    precision: Literal["x20", "x16", "x8"] | None = None
    scale_axes: _ScaleAxes = ()
    version: Literal[1] = 1

    @property
    def blob_ids(self) -> tuple[BlobId, ...]:
        """The blobs that a provider needs beside the manifest, each once, graph first."""
        ids = (self.graph, *(weight.blob_id for weight in self.tensors))
        return tuple(BlobId(blob_id) for blob_id in dict.fromkeys(ids))


class Takes(Protocol):
    """What takes inputs: a manifest of either kind (`shoal.compute.programs`)."""

    @property
    def inputs(self) -> tuple[Port, ...]:
        """Its inputs."""
        ...


def encode(manifest: Manifest) -> bytes:
    """The canonical bytes of a manifest.

    Raises:
        ProgramError: The manifest breaks a rule of this format.
    """
    _check(manifest)
    data = msgspec.msgpack.encode(manifest)
    if len(data) > MANIFEST_LIMIT_BYTES:
        raise _bad(f"a manifest of {len(data)} bytes is over {MANIFEST_LIMIT_BYTES}")
    return data


def decode(data: bytes) -> Manifest:
    """Read a manifest; only its canonical bytes are accepted.

    Raises:
        ProgramError: Too large, malformed, over a bound, or not canonical.
    """
    if len(data) > MANIFEST_LIMIT_BYTES:
        raise _bad(f"a manifest of {len(data)} bytes is over {MANIFEST_LIMIT_BYTES}")
    try:
        # Whatever has more items or longer text than the bounds is cut off here,
        # before objects are made of it.
        plain = msgpack.unpackb(
            data,
            max_str_len=4 * NAME_LIMIT_BYTES,
            max_bin_len=0,
            max_array_len=TENSOR_COUNT_LIMIT,
            max_map_len=len(Manifest.__struct_fields__),
            max_ext_len=0,
        )
        manifest = msgspec.convert(plain, Manifest, strict=True)
    except (
        ValueError,
        msgpack.UnpackException,
        msgspec.ValidationError,
        RecursionError,
    ) as error:
        raise _bad(
            f"these bytes are not a program manifest: {str(error)[:200]}",
            hint="a program's id is the one that submitting its model gave; a tensor's is none",
        ) from None
    _check(manifest)
    if msgspec.msgpack.encode(manifest) != data:
        raise _bad("the manifest is not in its canonical encoding")
    return manifest


def check_class(manifest: Manifest, numeric_class: str) -> None:
    """Check that a program can be run in a numeric class.

    Raises:
        ProgramError: ``class_mismatch``: `exact` needs a precision, and no other
            class takes one.
    """
    if (numeric_class == "exact") != (manifest.precision is not None):
        raise ProgramError(
            f"the class {numeric_class!r} does not fit a program "
            + (f"of precision {manifest.precision}" if manifest.precision else "without one"),
            code="class_mismatch",
            hint="convert the model for the class: `shoal run MODEL --class exact "
            "--precision x20`, or without both",
        )


def check_inputs(manifest: Takes, inputs: Mapping[str, TensorSpec]) -> None:
    """Check that these are tensors that the program takes.

    Args:
        manifest: The program's manifest.
        inputs: dtype and shape of what is given, by the input's name.

    Raises:
        ProgramError: With code ``missing_input``, ``unknown_input``,
            ``wrong_dtype`` or ``wrong_shape``.
    """
    wanted = {port.name: port for port in manifest.inputs}
    for name, spec in inputs.items():
        if name not in wanted:
            raise ProgramError(
                f"the program has no input {name[:80]!r}",
                code="unknown_input",
                hint=f"its inputs are {_listing(manifest.inputs)}",
            )
        if spec.dtype != wanted[name].dtype:
            raise ProgramError(
                f"input {name!r} is a {spec}, and {wanted[name]} is wanted",
                code="wrong_dtype",
                hint=f"convert it: array.astype({wanted[name].dtype!r})",
            )
    symbols: dict[str, tuple[int, str]] = {}
    for port in manifest.inputs:
        if port.name not in inputs:
            raise ProgramError(
                f"input {port.name!r} ({port}) is missing",
                code="missing_input",
                hint=f"the program's inputs are {_listing(manifest.inputs)}",
            )
        _check_shape(port, inputs[port.name], symbols)


def _fits(shape: tuple[int, ...], wanted: tuple[int | str, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        isinstance(size_wanted, str) or size == size_wanted
        for size, size_wanted in zip(shape, wanted, strict=True)
    )


def _check_shape(port: Port, spec: TensorSpec, symbols: dict[str, tuple[int, str]]) -> None:
    """Compare one shape; ``symbols`` collects the size and first input of each symbol."""
    if port.shape is None:
        return
    if not _fits(spec.shape, port.shape):
        raise ProgramError(
            f"input {port.name!r} is a {spec}, and {port} is wanted",
            code="wrong_shape",
            hint="add the first axis: array[None]"
            if _fits(spec.shape, port.shape[1:])
            else "reshape it; where the program names a size, any will do",
        )
    for size, symbol in zip(spec.shape, port.shape, strict=True):
        if not isinstance(symbol, str) or not symbol:
            continue
        first_size, first_name = symbols.setdefault(symbol, (size, port.name))
        if size != first_size:
            raise ProgramError(
                f"input {port.name!r} is a {spec}, so that {symbol!r} is {size}, "
                f"but {first_name!r} has {first_size} for it",
                code="wrong_shape",
            )


def _check(manifest: Manifest) -> None:
    """The rules that a type cannot say."""
    weights = [weight.name for weight in manifest.tensors]
    if any(first >= second for first, second in pairwise(weights)):
        raise _bad("the manifest's tensors are not sorted by name, or one comes twice")
    inputs = [port.name for port in manifest.inputs]
    if len(set(inputs)) < len(inputs) or not set(inputs).isdisjoint(weights):
        raise _bad("the manifest gives one name to two inputs, or to an input and a tensor")
    outputs = [port.name for port in manifest.outputs]
    if len(set(outputs)) < len(outputs):
        raise _bad("the manifest gives one name to two outputs")
    for port in (*manifest.inputs, *manifest.outputs):
        if port.dtype not in DTYPES:
            raise _bad(
                f"{port.name[:80]!r} has the dtype {port.dtype[:40]!r}, which is not known"
            )


def _listing(ports: Iterable[Port]) -> str:
    return ", ".join(f"{port.name} {port}" for port in ports)[:400] or "none"


def _bad(message: str, *, hint: str = "") -> ProgramError:
    return ProgramError(message, code="bad_manifest", hint=hint)
