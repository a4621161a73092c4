"""Tensors as blobs: a fixed header, then the elements, little-endian, in C order.

Equal tensors have equal bytes, and so equal ids everywhere: there is one header
for each dtype and shape, and nothing else is accepted. "Equal" is about bits:
0.0 and -0.0 are two tensors, and so are two NaNs with different payloads.

The header is a multiple of 64 bytes long, so that elements stay aligned when the
blob is mapped: magic (8 bytes), version (u16), dtype (u16), number of dimensions
(u32), one u64 per dimension, zeros. The dtype's number is ONNX's own.

The daemon imports this module, so numpy is imported only where arrays are made.
"""

from __future__ import annotations

import math
import struct
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from shoal.compute.errors import ProgramError

if TYPE_CHECKING:
    import numpy as np

    from shoal.crypto.content import Buffer

TENSOR_LIMIT_BYTES: Final = 1 << 36
"""The most that the elements of one tensor may take: 64 GiB, a bound for arithmetic."""

RANK_LIMIT: Final = 16
"""The most dimensions a tensor may have; attention over blocks uses seven."""

_MAGIC: Final = b"SHOALTEN"
_VERSION: Final = 1
_FIXED: Final = struct.Struct("<8sHHI")  # magic, version, dtype, number of dimensions
_DIMENSION_BYTES: Final = 8
_ALIGNMENT_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class DType:
    """A kind of element: its name, ONNX's number for it, and its size."""

    name: str
    onnx_code: int
    size_bytes: int


DTYPES: Final[dict[str, DType]] = {
    dtype.name: dtype
    for dtype in (
        DType("float32", 1, 4),
        DType("uint8", 2, 1),
        DType("int8", 3, 1),
        DType("uint16", 4, 2),
        DType("int16", 5, 2),
        DType("int32", 6, 4),
        DType("int64", 7, 8),
        DType("bool", 9, 1),
        DType("float16", 10, 2),
        DType("float64", 11, 8),
        DType("uint32", 12, 4),
        DType("uint64", 13, 8),
        DType("bfloat16", 16, 2),
    )
}
"""The dtypes that travel, by name."""

DTYPE_OF_ONNX_CODE: Final[dict[int, DType]] = {
    dtype.onnx_code: dtype for dtype in DTYPES.values()
}


def _header_size(rank: int) -> int:
    used = _FIXED.size + rank * _DIMENSION_BYTES
    return -(-used // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


HEADER_LIMIT_BYTES: Final = _header_size(RANK_LIMIT)
"""No header is longer, so this many first bytes of a blob are enough to read it."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The dtype and shape of a tensor.

    Raises:
        ProgramError: The dtype is not one that travels, the rank or size is over
            its limit, or a dimension is negative.
    """

    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise _bad(f"{self.dtype[:40]!r} is not a dtype that tensors here can have")
        if len(self.shape) > RANK_LIMIT:
            raise _bad(f"a tensor of {len(self.shape)} dimensions is over {RANK_LIMIT}")
        if any(size < 0 for size in self.shape):
            raise _bad(f"the shape {self.shape} has a negative dimension")
        # An empty tensor's other dimensions are bounded too: libraries multiply them.
        if (
            math.prod(max(size, 1) for size in self.shape)
            > TENSOR_LIMIT_BYTES // self.item_bytes
        ):
            raise _bad(f"a {self} is over the limit of {TENSOR_LIMIT_BYTES} bytes")

    @property
    def item_bytes(self) -> int:
        """The size of one element in bytes."""
        return DTYPES[self.dtype].size_bytes

    @property
    def data_bytes(self) -> int:
        """The size of all elements in bytes, without the header."""
        return math.prod(self.shape) * self.item_bytes

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


def encode_header(spec: TensorSpec) -> bytes:
    """The one header of a tensor of this dtype and shape."""
    fixed = _FIXED.pack(_MAGIC, _VERSION, DTYPES[spec.dtype].onnx_code, len(spec.shape))
    dimensions = struct.pack(f"<{len(spec.shape)}Q", *spec.shape)
    return (fixed + dimensions).ljust(_header_size(len(spec.shape)), b"\0")


def decode_header(prefix: Buffer) -> tuple[TensorSpec, int]:
    """Read the header at the start of a blob.

    Args:
        prefix: The blob, or its first `HEADER_LIMIT_BYTES` bytes.

    Returns:
        The tensor's dtype and shape, and how many bytes the header takes.

    Raises:
        ProgramError: This is not the canonical header of any tensor.
    """
    head = bytes(memoryview(prefix)[:HEADER_LIMIT_BYTES])
    if len(head) < _FIXED.size:
        raise _bad(f"{len(head)} bytes are too few for a tensor")
    magic, version, code, rank = _FIXED.unpack_from(head)
    if magic != _MAGIC:
        raise _bad("these bytes are not a tensor: they do not begin with its magic number")
    if version != _VERSION:
        raise _bad(f"this tensor is of version {version}, and {_VERSION} is known here")
    if code not in DTYPE_OF_ONNX_CODE:
        raise _bad(f"this tensor's dtype number {code} is not known")
    if rank > RANK_LIMIT:
        raise _bad(f"a tensor of {rank} dimensions is over {RANK_LIMIT}")
    size = _header_size(rank)
    if len(head) < size:
        raise _bad(f"the header of {rank} dimensions takes {size} bytes, here are {len(head)}")
    spec = TensorSpec(
        DTYPE_OF_ONNX_CODE[code].name, struct.unpack_from(f"<{rank}Q", head, _FIXED.size)
    )
    if head[:size] != encode_header(spec):
        raise _bad("the padding of this tensor's header is not zero")
    return spec, size


def spec_of_blob(prefix: Buffer, blob_size_bytes: int) -> TensorSpec:
    """The dtype and shape of a tensor blob, of which the first bytes are enough.

    Raises:
        ProgramError: The header is not canonical, or promises another size.
    """
    spec, header_size = decode_header(prefix)
    if blob_size_bytes != header_size + spec.data_bytes:
        raise _bad(
            f"a {spec} takes {header_size + spec.data_bytes} bytes, "
            f"and this blob has {blob_size_bytes}"
        )
    return spec


def spec_of_array(array: np.ndarray) -> TensorSpec:
    """The dtype and shape of an array.

    Raises:
        ProgramError: Its dtype is not one that travels.
    """
    return TensorSpec(_name_of(array.dtype), array.shape)


@lru_cache(maxsize=256)
def _name_of(dtype: np.dtype[Any]) -> str:
    """Its name, which numpy puts together anew each time."""
    return dtype.name


def to_blob(array: np.ndarray) -> bytes:
    """The blob of an array, whatever its byte order and strides.

    Raises:
        ProgramError: Its dtype is not one that travels.
    """
    import numpy as np

    spec = spec_of_array(array)
    if array.dtype.newbyteorder("<") != array.dtype:
        array = array.astype(array.dtype.newbyteorder("<"))
    if spec.dtype == "bool":  # a view may hold any byte where True is meant
        array = array.view(np.uint8) != 0
    return encode_header(spec) + array.tobytes(order="C")


def from_blob(blob: Buffer) -> np.ndarray:
    """The read-only array that a blob holds, with no copy made.

    A bfloat16 tensor needs the ``ml_dtypes`` package; without it, its bits are
    given as uint16.

    Raises:
        ProgramError: The blob is not the canonical blob of a tensor.
    """
    import numpy as np

    view = memoryview(blob)
    spec = spec_of_blob(view, view.nbytes)
    header_size = view.nbytes - spec.data_bytes
    array = np.frombuffer(view, _numpy_dtype(spec.dtype), offset=header_size)
    if spec.dtype == "bool" and array.size and int(array.view(np.uint8).max()) > 1:
        raise _bad("a bool tensor holds bytes other than 0 and 1")
    array = array.reshape(spec.shape)
    array.flags.writeable = False
    return array


def _numpy_dtype(name: str) -> Any:
    import numpy as np

    if name != "bfloat16":
        return np.dtype(name).newbyteorder("<")
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        return np.dtype("<u2")
    return np.dtype(bfloat16)


def _bad(message: str) -> ProgramError:
    return ProgramError(message, code="bad_tensor")


if sys.byteorder != "little":  # bfloat16 arrays have no byte order to swap
    raise ImportError("shoal runs on little-endian machines only")
