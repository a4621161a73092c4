"""The manifest of a kernel job's program: a user's GPU kernel, as data a daemon can read.

Such a program is Triton IR as text and this manifest, whose blob id is the *program id*. It
says which of the kernel's arguments are tensors that come in or go out and which are
numbers, and over which grid it is launched, so that a wrong input is refused before
anything is fetched or compiled. Whether the text keeps these promises is checked by the
worker that parses it (`shoal.compute.user_kernels`).

As with `shoal.compute.manifest`, one manifest has one encoding: msgpack with every field
written, in order, in the shortest form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgpack
import msgspec

from shoal.compute.errors import ProgramError
from shoal.compute.manifest import NAME_LIMIT_BYTES, PORT_COUNT_LIMIT, Port
from shoal.compute.tensor import DTYPES, RANK_LIMIT, TensorSpec
from shoal.crypto.content import BlobId, blob_id_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

KERNEL_CLASS: Final = "kernel"
"""The numeric class of kernel jobs' units."""

KERNEL_SUFFIX: Final = ".kernel"
"""Of files that hold a lowered kernel."""

KERNEL_MANIFEST_LIMIT_BYTES: Final = 512 << 10
"""The most ports and arguments, with the longest names and shapes that anybody writes."""

ARGUMENTS_LIMIT: Final = 2 * PORT_COUNT_LIMIT
"""A kernel's arguments; compilers pass 4 KB of them, 512 pointers."""

AXES_LIMIT: Final = 3
"""Of a grid."""

WARPS_LIMIT: Final = 32
"""Of one program: 1024 threads of 32 lanes are the most that cards run together."""

STAGES_LIMIT: Final = 16
"""Loads under way ahead of a loop's turn; each takes shared memory, and 8 take all there is."""

GRID_LIMIT: Final = (2**31 - 1, 65535, 65535)
"""Programs along each axis: CUDA's limits, of which HIP's are no tighter."""

PROGRAMS_LIMIT: Final = 2**31 - 1
"""Programs of one launch, all axes together."""

SIZE_LIMIT: Final = 1 << 40
"""A fixed size or number that a grid is made of, as a manifest's dimensions."""

_TYPE_OF_DTYPE: Final = {
    "bool": "i1", "int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64",
    "uint8": "u8", "uint16": "u16", "uint32": "u32", "uint64": "u64",
    "float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float64": "fp64",
}  # fmt: skip
"""Triton's name of each dtype."""

INTEGERS: Final = {
    **{f"i{bits}": range(-(2 ** (bits - 1)), 2 ** (bits - 1)) for bits in (8, 16, 32, 64)},
    **{f"u{bits}": range(2**bits) for bits in (8, 16, 32, 64)},
}
"""Triton's integer types of numbers, and what each holds."""

FLOATS: Final = {
    "fp16": 65504.0,
    "bf16": float.fromhex("0x1.fep127"),
    "fp32": float.fromhex("0x1.fffffep127"),
    "fp64": float.fromhex("0x1.fffffffffffffp1023"),
}
"""Its floating-point types, and the largest finite number of each."""

_FILE_MAGIC: Final = b"SHOALKRN\x01"

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_LIMIT_BYTES)]
_HexId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}\\Z")]
_Identifier = Annotated[
    str, msgspec.Meta(pattern="^[A-Za-z_][A-Za-z0-9_]*\\Z", max_length=NAME_LIMIT_BYTES)
]
_Size = Annotated[int, msgspec.Meta(ge=0, le=SIZE_LIMIT)]
_Ports = Annotated[tuple[Port, ...], msgspec.Meta(max_length=PORT_COUNT_LIMIT)]


class Argument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One parameter of the kernel, in the order of its function.

    Attributes:
        name: Of a tensor, the port's: one that is an input, an output, or both.
        type: Triton's: ``*fp32`` for a tensor of float32, ``i32`` or ``fp32`` for a number.
        value: Of a number: itself, or the symbol whose size it is. None for a tensor.
    """

    name: _Name
    type: Annotated[str, msgspec.Meta(max_length=8)]
    value: int | float | _Name | None


class Extent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Programs along one axis of the grid: ``size`` divided by ``per``, rounded up."""

    size: _Size | _Name
    per: Annotated[int, msgspec.Meta(ge=1, le=SIZE_LIMIT)] = 1

    def __str__(self) -> str:
        return str(self.size) if self.per == 1 else f"{self.size}/{self.per}"


class KernelManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a kernel's program consists of, what it takes and gives, and how it is launched.

    Attributes:
        kernel: The blob of its Triton IR, as text.
        triton: The exact version that lowered it, and compiles it.
        entry: The function's name.
        inputs: Tensors that come in; every dimension is a size or a symbol.
        outputs: Tensors that go out. One with the name of an input is that tensor, changed;
            others are zeros before the kernel runs.
        arguments: The function's parameters.
        grid: How many programs run, along up to three axes.
        warps: That run one program.
        stages: Loads under way ahead of a loop's turn.
    """

    kernel: _HexId
    triton: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    entry: _Identifier
    inputs: _Ports
    outputs: Annotated[_Ports, msgspec.Meta(min_length=1)]
    arguments: Annotated[
        tuple[Argument, ...], msgspec.Meta(min_length=1, max_length=ARGUMENTS_LIMIT)
    ]
    grid: Annotated[tuple[Extent, ...], msgspec.Meta(min_length=1, max_length=AXES_LIMIT)]
    warps: Annotated[int, msgspec.Meta(ge=1, le=WARPS_LIMIT)] = 4
    stages: Annotated[int, msgspec.Meta(ge=1, le=STAGES_LIMIT)] = 2
    version: Literal[1] = 1

    @property
    def blob_ids(self) -> tuple[BlobId, ...]:
        """The blobs that a provider needs beside the manifest."""
        return (BlobId(self.kernel),)

    @property
    def precision(self) -> None:
        """None: a precision is of the class exact."""
        return


@dataclass(frozen=True, slots=True)
class KernelProgram:
    """A lowered kernel, ready to be submitted; as `shoal.compute.convert.Program`.

    ``blobs`` holds the manifest, whose id is ``program_id``, and the kernel's text.
    """

    program_id: BlobId
    manifest: KernelManifest
    blobs: Mapping[BlobId, bytes]

    def save(self, path: str | PathLike[str]) -> None:
        """Write the kernel to a file, whose name ends with ``.kernel``, for `shoal run`.

        Raises:
            ProgramError: ``bad_kernel_file``: it has another name.
            OSError: It cannot be written.
        """
        path = Path(path)
        if path.suffix != KERNEL_SUFFIX:
            raise ProgramError(
                f"{path.name[:80]!r} does not end with {KERNEL_SUFFIX}",
                code="bad_kernel_file",
                hint=f"save it as {path.with_suffix(KERNEL_SUFFIX).name!r}",
            )
        path.write_bytes(_FILE_MAGIC + msgspec.msgpack.encode([*self.blobs.values()]))


@dataclass(frozen=True, slots=True)
class Launch:
    """What one unit launches, its symbols being sizes.

    Attributes:
        grid: Programs along x, y and z.
        numbers: Of each argument that is no tensor, by its place.
        outputs: Of each output by name.
    """

    grid: tuple[int, int, int]
    numbers: Mapping[int, int | float]
    outputs: Mapping[str, TensorSpec]


def is_kernel_manifest(data: bytes) -> bool:
    """Whether these bytes begin as a kernel's manifest does: by its first field."""
    return data[1:8] == b"\xa6kernel"


def encode(manifest: KernelManifest) -> bytes:
    """The canonical bytes of a kernel's manifest.

    Raises:
        ProgramError: ``bad_manifest``: it breaks a rule of this format.
    """
    _check(manifest)
    data = msgspec.msgpack.encode(manifest)
    _check_size(data)
    return data


def decode(data: bytes) -> KernelManifest:
    """Read a kernel's manifest; only its canonical bytes are accepted.

    Raises:
        ProgramError: ``bad_manifest``: too large, malformed, over a bound, or not
            canonical; ``grid_too_large``.
    """
    _check_size(data)
    try:
        plain = msgpack.unpackb(
            data,
            max_str_len=4 * NAME_LIMIT_BYTES,
            max_bin_len=0,
            max_array_len=ARGUMENTS_LIMIT,
            max_map_len=len(KernelManifest.__struct_fields__),
            max_ext_len=0,
        )
        manifest = msgspec.convert(plain, KernelManifest, strict=True)
    except (
        ValueError,
        msgpack.UnpackException,
        msgspec.ValidationError,
        RecursionError,
    ) as error:
        raise _bad(f"these bytes are not a kernel's manifest: {str(error)[:200]}") from None
    _check(manifest)
    if msgspec.msgpack.encode(manifest) != data:
        raise _bad("the kernel's manifest is not in its canonical encoding")
    return manifest


def program_of(manifest: KernelManifest, ttir: bytes) -> KernelProgram:
    """The program of a manifest and the text that it names.

    Raises:
        ProgramError: As `encode`.
    """
    encoded = encode(manifest)
    program_id = blob_id_of(encoded)
    return KernelProgram(program_id, manifest, {program_id: encoded, blob_id_of(ttir): ttir})


def is_kernel_file(data: bytes) -> bool:
    """Whether these bytes are of a file that `KernelProgram.save` wrote."""
    return data.startswith(_FILE_MAGIC)


def from_file(data: bytes) -> KernelProgram:
    """The kernel that such a file holds.

    Raises:
        ProgramError: ``bad_kernel_file``, or as `decode`.
    """
    bad = ProgramError(
        "this is no file of a lowered kernel",
        code="bad_kernel_file",
        hint="`shoal.kernel.program(…).save(PATH)` writes one",
    )
    if not is_kernel_file(data):
        raise bad
    try:
        encoded, text = msgspec.msgpack.decode(
            data[len(_FILE_MAGIC) :], type=tuple[bytes, bytes]
        )
    except (msgspec.DecodeError, msgspec.ValidationError):
        raise bad from None
    manifest = decode(encoded)
    if manifest.kernel != blob_id_of(text):
        raise bad
    return program_of(manifest, text)


def type_of(dtype: str) -> str:
    """Triton's name of a tensor's elements, such as ``fp32`` for ``float32``."""
    return _TYPE_OF_DTYPE[dtype]


def sizes_of(manifest: KernelManifest, inputs: Mapping[str, TensorSpec]) -> dict[str, int]:
    """What each symbol stands for, with these inputs, which the program takes."""
    return {
        symbol: size
        for port in manifest.inputs
        for size, symbol in zip(inputs[port.name].shape, port.shape or (), strict=True)
        if isinstance(symbol, str)
    }


def launch_of(manifest: KernelManifest, inputs: Mapping[str, TensorSpec]) -> Launch:
    """What a unit with these inputs launches; they have been checked.

    Raises:
        ProgramError: ``grid_too_large``; ``number_too_large``: a size does not fit the
            type of the argument that it is for; ``bad_tensor``: an output is too large.
    """
    sizes = sizes_of(manifest, inputs)

    def size_of(one: int | str) -> int:
        return sizes[one] if isinstance(one, str) else one

    numbers: dict[int, int | float] = {}
    for place, argument in enumerate(manifest.arguments):
        if argument.value is None:
            continue
        value = argument.value
        numbers[place] = size_of(value) if isinstance(value, str) else value
        if isinstance(value, str) and numbers[place] not in INTEGERS[argument.type]:
            raise ProgramError(
                f"{value!r} is {numbers[place]}, and the kernel takes it as an {argument.type}",
                code="number_too_large",
                hint="lower the kernel with i64 for it, or make smaller units",
            )
    outputs = {
        port.name: TensorSpec(port.dtype, tuple(map(size_of, port.shape or ())))
        for port in manifest.outputs
    }
    grid = tuple(-(-size_of(extent.size) // extent.per) for extent in manifest.grid)
    check_grid(grid)
    x, y, z = (*grid, 1, 1)[:AXES_LIMIT]
    return Launch((x, y, z), numbers, outputs)


def check_grid(grid: tuple[int, ...]) -> None:
    """Check that cards launch so many programs at once.

    Raises:
        ProgramError: ``grid_too_large``, naming the axis.
    """
    for axis, (programs, limit) in zip(
        "xyz", zip(grid, GRID_LIMIT, strict=False), strict=False
    ):
        if programs > limit:
            raise _grid_too_large(f"{programs} programs along {axis}", limit)
    if math.prod(grid) > PROGRAMS_LIMIT:
        raise _grid_too_large(
            f"a grid of {' × '.join(map(str, grid))} programs", PROGRAMS_LIMIT
        )


def _grid_too_large(what: str, limit: int) -> ProgramError:
    return ProgramError(
        f"{what} are more than the {limit} that cards launch",
        code="grid_too_large",
        hint="let each program do more, or make smaller units",
    )


def _check(manifest: KernelManifest) -> None:
    """The rules that a type cannot say."""
    _check_ports(manifest)
    symbols = {
        size for port in manifest.inputs for size in port.shape or () if isinstance(size, str)
    }
    for port in manifest.outputs:
        for size in port.shape or ():
            if isinstance(size, str) and size not in symbols:
                raise _bad(f"output {port.name[:80]!r} has the size {size[:80]!r} of no input")
    _check_arguments(manifest, symbols)
    for extent in manifest.grid:
        if isinstance(extent.size, str) and extent.size not in symbols:
            raise _bad(f"the grid has the size {extent.size[:80]!r}, which is of no input")
    fixed = tuple(
        -(-extent.size // extent.per) if isinstance(extent.size, int) else 1
        for extent in manifest.grid
    )
    check_grid(fixed)


def _check_ports(manifest: KernelManifest) -> None:
    for ports in (manifest.inputs, manifest.outputs):
        if len({port.name for port in ports}) < len(ports):
            raise _bad("the manifest gives one name to two tensors")
        for port in ports:
            name = port.name[:80]
            if port.dtype not in DTYPES:
                raise _bad(f"{name!r} has the dtype {port.dtype[:40]!r}, which is not known")
            if port.shape is None or len(port.shape) > RANK_LIMIT or "" in port.shape:
                raise _bad(f"a kernel's tensor has a size or a symbol for each axis: {name!r}")
    given = {port.name: port for port in manifest.inputs}
    for port in manifest.outputs:
        if port != given.get(port.name, port):
            raise _bad(
                f"{port.name[:80]!r} comes in as {given[port.name]} and goes out as {port}"
            )


def _check_arguments(manifest: KernelManifest, symbols: set[str]) -> None:
    ports = {port.name: port for port in (*manifest.inputs, *manifest.outputs)}
    if len({argument.name for argument in manifest.arguments}) < len(manifest.arguments):
        raise _bad("the manifest gives one name to two arguments")
    tensors = [argument for argument in manifest.arguments if argument.value is None]
    if {argument.name for argument in tensors} != ports.keys():
        raise _bad("the kernel's tensor arguments are not the manifest's inputs and outputs")
    for argument in manifest.arguments:
        if argument.value is None:
            port = ports[argument.name]
            if argument.type != f"*{type_of(port.dtype)}":
                raise _bad(f"{port.name[:80]!r} is {port} and taken as {argument.type!r}")
        elif not _is_number(argument.value, argument.type, symbols):
            raise _bad(
                f"{argument.name[:80]!r} is {str(argument.value)[:80]!r}, which is no finite "
                f"number of the type {argument.type!r} and no size of that type"
            )


def _is_number(value: float | str, kind: str, symbols: set[str]) -> bool:
    """Whether a number, or a symbol's size, is of one of Triton's types."""
    if kind in FLOATS:  # written as a float, so that equal numbers have one encoding
        return isinstance(value, float) and abs(value) <= FLOATS[kind]
    if isinstance(value, str):
        return kind in INTEGERS and value in symbols
    return isinstance(value, int) and value in INTEGERS.get(kind, ())


def _check_size(data: bytes) -> None:
    if len(data) > KERNEL_MANIFEST_LIMIT_BYTES:
        raise _bad(
            f"a kernel's manifest of {len(data)} bytes is over {KERNEL_MANIFEST_LIMIT_BYTES}"
        )


def _bad(message: str) -> ProgramError:
    return ProgramError(message, code="bad_manifest")
