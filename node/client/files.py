"""Arrays in files, mapped into memory: elements are read when used, never a file whole.

Part of *submit*: npy, npz and safetensors. What is compressed in an npz cannot be mapped;
it is unpacked to a temporary file that is gone with the array. No pickle is ever loaded.
"""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from shoal.crypto.errors import ShoalError

if TYPE_CHECKING:
    import numpy as np

HEADER_LIMIT_BYTES = 16 << 20
"""Of a safetensors file: some 160,000 tensors. What is longer is no such file."""

ARRAYS_LIMIT = 4096
"""In one npz; a model has fewer inputs."""

_SAFETENSORS_DTYPES: Final = {
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "BOOL": "bool",
    "BF16": "bfloat16",
}

SAFETENSORS_CODES: Final = {name: code for code, name in _SAFETENSORS_DTYPES.items()}
"""How safetensors calls each dtype."""


class InputError(ShoalError):
    """An input that names no usable file, or is no array; the sentence says which."""

    code = "bad_input"


def read_array(path: Path | str, name: str = "") -> np.ndarray:
    """One array of a file.

    Args:
        path: An npy, npz or safetensors file.
        name: Which of them, where the file has several.

    Raises:
        InputError: The file has another form, or not exactly one array to choose.
        OSError: It cannot be opened.
    """
    if Path(path).suffix not in {".npz", ".safetensors"}:
        return _read_npy(Path(path))
    found = read_arrays(path)
    if name in found:
        return found[name]
    if len(found) == 1:
        return next(iter(found.values()))
    raise InputError(
        f"{path} has the arrays {', '.join(found)[:200] or 'of nobody'}, and none is {name!r}",
        code="no_such_array",
        hint="name the array as the input is named, or save it alone",
    )


def read_arrays(path: Path | str) -> dict[str, np.ndarray]:
    """All arrays of an npz or safetensors file, by name; raises as `read_array` does."""
    path = Path(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    raise InputError(
        f"{path} has no names for its arrays",
        hint="an .npz or .safetensors file has; of an .npy file say which input it is",
    )


def _read_npy(path: Path) -> np.ndarray:
    import numpy as np

    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError):
        raise _bad_npy(path) from None
    if not isinstance(found, np.ndarray):
        found.close()
        raise InputError(
            f"{path} is an .npz archive of arrays, and not one array",
            code="bad_npy",
            hint="rename it to .npz, or save one array with numpy.save(path, array)",
        )
    return _checked(found, path)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
            if not entries or len(entries) > ARRAYS_LIMIT:
                raise _bad_npz(path, f"it has {len(entries)} arrays")
            return {
                entry.filename.removesuffix(".npy"): _npz_entry(path, archive, entry)
                for entry in entries
            }
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as why:
        raise _bad_npz(path, str(why)[:120]) from None


def _npz_entry(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    if entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1:
        with path.open("rb") as file:
            file.seek(entry.header_offset)
            header = file.read(30)
            if len(header) < 30 or header[:4] != b"PK\3\4":
                raise zipfile.BadZipFile(f"{entry.filename} is not where it should be")
            name_size, extra_size = struct.unpack("<HH", header[26:30])
            file.seek(name_size + extra_size, 1)
            return _mapped(file, path)
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115  # the map of it outlives this
    with unpacked, archive.open(entry) as source:
        shutil.copyfileobj(source, unpacked, 1 << 20)
        unpacked.seek(0)
        return _mapped(unpacked, path)


def _mapped(file: IO[bytes], path: Path) -> np.ndarray:
    """The npy that begins where ``file`` stands."""
    import numpy as np
    from numpy.lib import format as npy

    version = npy.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = npy.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = npy.read_array_header_2_0(file)
    else:
        raise ValueError("an array in it has fields")
    if dtype.hasobject or dtype.fields:
        raise ValueError("an array in it holds objects")
    return _checked(_map(file, dtype, file.tell(), shape, "F" if fortran else "C", np), path)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    import numpy as np

    with path.open("rb") as file:
        size_bytes = path.stat().st_size
        head = file.read(8)
        header_size = int.from_bytes(head, "little")
        if len(head) < 8 or header_size > min(HEADER_LIMIT_BYTES, size_bytes - 8):
            raise _bad_safetensors(path, "its header is not one")
        start = 8 + header_size
        found = {}
        try:
            entries = json.loads(file.read(header_size))
            for name, entry in entries.items():
                if name == "__metadata__":
                    continue
                dtype = _dtype(_SAFETENSORS_DTYPES[entry["dtype"]])
                shape = tuple(int(size) for size in entry["shape"])
                begin, end = (int(offset) for offset in entry["data_offsets"])
                wanted = int(np.prod(shape, dtype=object)) * dtype.itemsize
                if begin < 0 or end - begin != wanted or start + end > size_bytes:
                    raise _bad_safetensors(path, f"the bytes of {name[:80]!r} are not there")
                found[name] = _map(file, dtype, start + begin, shape, "C", np)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise _bad_safetensors(path, "its header cannot be read") from None
    return found


def _map(
    file: IO[bytes], dtype: Any, offset: int, shape: tuple[int, ...], order: Any, np: Any
) -> np.ndarray:
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.memmap(file, dtype, "r", offset, shape, order)


def _checked(array: np.ndarray, path: Path) -> np.ndarray:
    """The array, its elements being numbers; npy has no name for bfloat16 but ``V2``."""
    import numpy as np

    if array.dtype == np.dtype("V2"):
        return array.view(_dtype("bfloat16"))
    if array.dtype.kind not in "biuf":
        raise InputError(
            f"{path} holds {array.dtype}, and only numbers and bool can travel",
            code="bad_npy",
            hint='text becomes numbers first, by a tokenizer or array.astype("float32")',
        )
    return array


def _dtype(name: str) -> np.dtype[Any]:
    import numpy as np

    if name != "bfloat16":
        return np.dtype(name).newbyteorder("<")
    from ml_dtypes import bfloat16

    return np.dtype(bfloat16)


def _bad_npy(path: Path) -> InputError:
    return InputError(
        f"{path} is not an npy file of numbers",
        code="bad_npy",
        hint="write it with numpy.save(path, array)",
    )


def _bad_npz(path: Path, reason: str) -> InputError:
    return InputError(
        f"{path} is not an npz file of numbers: {reason}",
        code="bad_npz",
        hint="write it with numpy.savez(path, x=array)",
    )


def _bad_safetensors(path: Path, reason: str) -> InputError:
    return InputError(
        f"{path} is not a safetensors file to use: {reason}",
        code="bad_safetensors",
        hint="write it with safetensors.numpy.save_file(arrays, path)",
    )
