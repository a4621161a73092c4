"""Bodies of requests, and tensors as npy and safetensors, streamed both ways.

A tensor of any size passes in pieces: only its header is ever held, and numpy
is not needed. The daemon thus never opens a path that a client names, and never
holds a client's array.
"""

from __future__ import annotations

import ast
import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from shoal.compute.errors import ProgramError
from shoal.compute.tensor import HEADER_LIMIT_BYTES, TensorSpec, decode_header, encode_header
from shoal.node.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

    from shoal.crypto.content import BlobId
    from shoal.node.api.facade import BlobStore, DaemonFacade

NPY_HEADER_LIMIT_BYTES = 64 << 10
"""numpy itself refuses to evaluate longer ones without being told to."""

SAFETENSORS_HEADER_LIMIT_BYTES = 4 << 20
"""Some 40,000 tensors; the format's own limit is 100 MB."""

_NPY_MAGIC = b"\x93NUMPY"
_NPY_ALIGNMENT_BYTES = 64
_NPY_CODES = {
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
    "int8": "|i1",
    "int16": "<i2",
    "int32": "<i4",
    "int64": "<i8",
    "uint8": "|u1",
    "uint16": "<u2",
    "uint32": "<u4",
    "uint64": "<u8",
    "bool": "|b1",
    "bfloat16": "<V2",  # npy has no name for it; ml_dtypes writes it so
}
_SAFETENSORS_CODES = {
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "bfloat16": "BF16",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "bool": "BOOL",
}
_DTYPE_OF_NPY = {code: dtype for dtype, code in _NPY_CODES.items()}
_DTYPE_OF_SAFETENSORS = {code: dtype for dtype, code in _SAFETENSORS_CODES.items()}
_TRUTH = bytes([0] + [1] * 255)
"""Translates what a bool array may hold into what a tensor blob may."""


class BodyReader:
    """A request's body, taken in exact amounts."""

    def __init__(self, request: Request) -> None:
        self._stream = request.stream()
        self._rest = b""

    async def exactly(self, size_bytes: int) -> bytes:
        """The next ``size_bytes`` bytes; for headers, which are small."""
        return b"".join([piece async for piece in self.pieces(size_bytes)])

    async def pieces(self, size_bytes: int) -> AsyncIterator[bytes]:
        """The next ``size_bytes`` bytes in pieces as they come.

        Raises:
            RequestError: ``body_too_short``.
        """
        while size_bytes:
            if not self._rest:
                self._rest = await self._next()
            if not self._rest:
                raise RequestError(
                    f"the body ends {size_bytes} bytes too early", code="body_too_short"
                )
            piece, self._rest = self._rest[:size_bytes], self._rest[size_bytes:]
            size_bytes -= len(piece)
            yield piece

    async def end(self) -> None:
        """Check that nothing follows; raises RequestError ``body_too_long``."""
        if self._rest or await self._next():
            raise RequestError("the body goes on after its end", code="body_too_long")

    async def _next(self) -> bytes:
        async for piece in self._stream:
            if piece:
                return piece
        return b""


async def read_bounded(request: Request, limit_bytes: int) -> bytes:
    """A body held in memory; raises RequestError ``body_too_large``."""
    announced = request.headers.get("content-length", "0")
    too_large = RequestError(
        f"this body is over the limit of {limit_bytes} bytes", code="body_too_large"
    )
    if announced.isdecimal() and int(announced) > limit_bytes:
        raise too_large
    pieces: list[bytes] = []
    size_bytes = 0
    async for piece in request.stream():
        size_bytes += len(piece)
        if size_bytes > limit_bytes:
            raise too_large
        pieces.append(piece)
    return b"".join(pieces)


async def store_npy(body: BodyReader, blobs: BlobStore) -> dict[str, BlobId]:
    """Store an npy file as one tensor, named ``tensor``.

    Raises:
        RequestError, ProgramError: It is not an npy file of plain numbers.
        StoreError: There is no room.
    """
    magic = await body.exactly(8)
    version = magic[6:]
    if magic[:6] != _NPY_MAGIC or version not in (b"\1\0", b"\2\0", b"\3\0"):
        raise _bad_npy("it does not begin as one")
    wide = version != b"\1\0"
    (size_bytes,) = struct.unpack("<I" if wide else "<H", await body.exactly(4 if wide else 2))
    if size_bytes > NPY_HEADER_LIMIT_BYTES:
        raise _bad_npy(f"its header of {size_bytes} bytes is over {NPY_HEADER_LIMIT_BYTES}")
    spec = _read_npy_header(await body.exactly(size_bytes))
    return {"tensor": await _store(body, spec, blobs, last=True)}


async def store_safetensors(body: BodyReader, blobs: BlobStore) -> dict[str, BlobId]:
    """Store each tensor of a safetensors file; raises as `store_npy` does."""
    (size_bytes,) = struct.unpack("<Q", await body.exactly(8))
    if size_bytes > SAFETENSORS_HEADER_LIMIT_BYTES:
        raise _bad_safetensors(
            f"its header of {size_bytes} bytes is over {SAFETENSORS_HEADER_LIMIT_BYTES}"
        )
    specs = _read_safetensors_header(await body.exactly(size_bytes))
    ids = {
        name: await _store(body, spec, blobs, last=number == len(specs))
        for number, (name, spec) in enumerate(specs, start=1)
    }
    if not specs:
        await body.end()
    return ids


class ReadableBlobs(Protocol):
    """What can be read of blobs: see `BlobStore`."""

    def size_bytes(self, blob_id: BlobId) -> int:
        """The blob's size; raises StoreError ``blob_missing``."""
        ...

    def read_chunks(self, blob_id: BlobId) -> AsyncIterator[bytes]:
        """A blob chunk by chunk; raises StoreError ``blob_missing``."""
        ...


@dataclass(frozen=True, slots=True)
class _SmallTensor:
    """One tensor that is held in memory."""

    tensor: bytes

    def size_bytes(self, _blob_id: BlobId) -> int:
        return len(self.tensor)

    async def read_chunks(self, _blob_id: BlobId) -> AsyncIterator[bytes]:
        yield self.tensor


async def blobs_with(daemon: DaemonFacade, blob_id: BlobId) -> ReadableBlobs:
    """Where to read a blob: small tensors are in the journal, and not in the store.

    An output that was left with a peer is fetched from there first.

    Raises:
        JobError: ``computed_again``: it is lost, and its unit runs again.
    """
    if not daemon.blobs.holds(blob_id):
        small = await daemon.small_tensors([blob_id])
        if blob_id in small:
            return _SmallTensor(small[blob_id])
        await daemon.bring_home(blob_id)
    return daemon.blobs


async def npy_of(blob_id: BlobId, blobs: ReadableBlobs) -> tuple[int, AsyncIterator[bytes]]:
    """A tensor blob as npy: its size in bytes, and its bytes in pieces.

    Raises:
        StoreError: The blob is not held.
        ProgramError: It is not a tensor.
    """
    spec, data = await _open_tensor(blob_id, blobs)
    text = (
        f"{{'descr': '{_NPY_CODES[spec.dtype]}', 'fortran_order': False, "
        f"'shape': {spec.shape!r}, }}"
    )
    size = -(-(len(text) + 11) // _NPY_ALIGNMENT_BYTES) * _NPY_ALIGNMENT_BYTES
    padded = text.ljust(size - 11) + "\n"
    header = _NPY_MAGIC + b"\1\0" + struct.pack("<H", size - 10) + padded.encode("ascii")
    return len(header) + spec.data_bytes, _after(header, data)


async def safetensors_of(
    blob_id: BlobId, blobs: ReadableBlobs
) -> tuple[int, AsyncIterator[bytes]]:
    """A tensor blob as safetensors, named ``tensor``; raises as `npy_of` does."""
    spec, data = await _open_tensor(blob_id, blobs)
    entry = {
        "dtype": _SAFETENSORS_CODES[spec.dtype],
        "shape": spec.shape,
        "data_offsets": [0, spec.data_bytes],
    }
    text = json.dumps({"tensor": entry}).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    header = struct.pack("<Q", len(text)) + text
    return len(header) + spec.data_bytes, _after(header, data)


async def _store(body: BodyReader, spec: TensorSpec, blobs: BlobStore, *, last: bool) -> BlobId:
    async def pieces() -> AsyncIterator[bytes]:
        yield encode_header(spec)
        async for piece in body.pieces(spec.data_bytes):
            yield piece.translate(_TRUTH) if spec.dtype == "bool" else piece
        if last:  # before the store takes the tensor for good
            await body.end()

    return (await blobs.put(pieces())).blob_id


async def _open_tensor(
    blob_id: BlobId, blobs: ReadableBlobs
) -> tuple[TensorSpec, AsyncIterator[bytes]]:
    size_bytes = blobs.size_bytes(blob_id)
    chunks = blobs.read_chunks(blob_id)
    head = b""
    async for chunk in chunks:
        head += chunk
        if len(head) >= HEADER_LIMIT_BYTES:
            break
    spec, header_size = decode_header(head)
    if size_bytes != header_size + spec.data_bytes:
        raise ProgramError(f"blob {blob_id[:16]}… is not a whole tensor", code="bad_tensor")
    return spec, _after(head[header_size:], chunks)


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


def _read_npy_header(header: bytes) -> TensorSpec:
    try:
        fields = ast.literal_eval(header.decode("utf-8").strip())
        descr, fortran, shape = (fields[key] for key in ("descr", "fortran_order", "shape"))
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        raise _bad_npy("its header cannot be read") from None
    if not isinstance(descr, str) or descr not in _DTYPE_OF_NPY:
        raise _bad_npy(
            f"elements of {str(descr)[:40]!r} cannot travel; little-endian numbers and bool can"
        )
    if not isinstance(shape, tuple) or not all(type(size) is int for size in shape):
        raise _bad_npy("its shape is not a tuple of whole numbers")
    if fortran and len(shape) > 1:
        raise _bad_npy(
            "its elements are in Fortran order",
            hint="write numpy.ascontiguousarray(array) instead",
        )
    return TensorSpec(_DTYPE_OF_NPY[descr], shape)


def _read_safetensors_header(header: bytes) -> list[tuple[str, TensorSpec]]:
    """The tensors in the order of their bytes, which must follow without gaps."""
    try:
        entries = {
            name: (entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
            for name, entry in json.loads(header).items()
            if name != "__metadata__"
        }
        in_order = sorted(entries.items(), key=lambda item: item[1][2:])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise _bad_safetensors("its header cannot be read") from None
    specs: list[tuple[str, TensorSpec]] = []
    at = 0
    for name, (code, shape, *offsets) in in_order:
        known = isinstance(code, str) and code in _DTYPE_OF_SAFETENSORS
        if not known or not all(type(size) is int for size in shape):
            raise _bad_safetensors(f"{name[:80]!r} has a dtype or shape that cannot travel")
        spec = TensorSpec(_DTYPE_OF_SAFETENSORS[code], shape)
        if offsets != [at, at + spec.data_bytes]:
            raise _bad_safetensors(f"the bytes of {name[:80]!r} are not where they belong")
        at += spec.data_bytes
        specs.append((name, spec))
    return specs


def _bad_npy(reason: str, hint: str = "write it with numpy.save(path, array)") -> RequestError:
    return RequestError(f"this is not an npy file to use: {reason}", code="bad_npy", hint=hint)


def _bad_safetensors(reason: str) -> RequestError:
    return RequestError(
        f"this is not a safetensors file to use: {reason}",
        code="bad_safetensors",
        hint="write it with safetensors.numpy.save_file(tensors, path)",
    )
