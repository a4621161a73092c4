"""Arrays on the submitter's disk: inputs read, outputs written, in constant memory."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import zipfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from shoal.node.client.files import SAFETENSORS_CODES, InputError, read_array, read_arrays
from shoal.node.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType
    from typing import Self

    import numpy as np


FORMATS = ("npy", "npz", "safetensors")
_ARCHIVES = (".npz", ".safetensors")


def read_inputs(texts: Iterable[str]) -> dict[str, np.ndarray]:
    """Open the files of ``NAME=FILE``; their elements are read when used.

    A file of named arrays, npz or safetensors, may stand alone: then it has all inputs.

    Raises:
        InputError: A file is not what its name says, or holds no plain numbers.
        ConfigError: A text has another form, or an input comes twice.
        OSError: A file cannot be opened.
    """
    inputs: dict[str, np.ndarray] = {}
    for text in texts:
        name, separator, file = text.partition("=")
        if not separator and text.endswith(_ARCHIVES):
            found = read_arrays(text)
        elif name and file:
            found = {name: read_array(file, name)}
        else:
            raise ConfigError(
                f"--input {text!r} is not of the form NAME=FILE.npy",
                code="usage",
                hint="for example --input x=a.npy, or --input all.npz",
            )
        for twice in found.keys() & inputs.keys():
            raise ConfigError(
                f"input {twice!r} is given twice",
                code="usage",
                hint="name one file for each input",
            )
        inputs |= found
    return inputs


def check_directory(directory: Path | None) -> None:
    """Refuse an --output that is meant as a file, before any work is done for it.

    Raises:
        ConfigError: It is a file, or has the name of one.
    """
    if directory is None or directory.is_dir():
        return
    if directory.exists() or directory.suffix in {".npy", *_ARCHIVES}:
        raise ConfigError(
            f"--output is a directory, and {directory} is a file",
            code="usage",
            hint="name a directory; outputs are written to files in it",
        )


class OutputFiles:
    """Outputs on the disk, put in place when all of them are whole.

    Each grows row by row in a file of its own, which becomes ``NAME.npy`` or, in the other
    formats, a part of ``outputs.npz`` or ``outputs.safetensors``. Used as a context manager;
    left by an error, nothing stays.

    Args:
        directory: Where to; it is made.
        file_format: One of `FORMATS`.
        job_id: Whose outputs they are, for what is said where they do not fit together.
    """

    def __init__(
        self, directory: Path, file_format: str = "npy", *, job_id: str = "JOB"
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._format = file_format
        self._job_id = job_id
        self._writers: dict[str, _NpyWriter] = {}

    def append(self, outputs: Mapping[str, np.ndarray]) -> None:
        """Add the rows of one unit to each file."""
        for name, array in outputs.items():
            if name not in self._writers:
                path = self._directory / f"{self._file_name(name)}.npy"
                self._writers[name] = _NpyWriter(path, array, self._job_id)
            self._writers[name].append(array)

    def finish(self) -> dict[str, dict[str, Any]]:
        """Put the files in place; gives path, dtype and shape by output name."""
        if self._format == "npy":
            return {name: writer.finish() for name, writer in self._writers.items()}
        for writer in self._writers.values():
            writer.complete()
        whole = self._directory / f"outputs.{self._format}"
        partial = whole.with_name(f".{whole.name}.{os.getpid()}.part")
        try:
            write = _write_npz if self._format == "npz" else _write_safetensors
            write(partial, self._writers)
            partial.replace(whole)
        finally:
            partial.unlink(missing_ok=True)
        return {
            name: writer.described | {"path": str(whole)}
            for name, writer in self._writers.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with ExitStack() as closing:
            for writer in self._writers.values():
                closing.callback(writer.discard)

    def _file_name(self, output: str) -> str:
        """A name that stays in the directory, whatever the model calls its output."""
        plain = re.sub(r"[^A-Za-z0-9._-]", "_", output).lstrip(".")[:100] or "output"
        taken = {writer.path.stem for writer in self._writers.values()}
        return plain if plain not in taken else f"{plain}-{len(taken)}"


class _NpyWriter:
    """An npy file that grows along axis 0; its header is written again at the end."""

    def __init__(self, path: Path, first: np.ndarray, job_id: str) -> None:
        self.path = path
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._job_id = job_id
        self._dtype = first.dtype
        self._row_shape = first.shape[1:]
        self._single = first.ndim == 0
        self._rows = 0
        self._units = 0
        self._file = self._partial.open("wb")
        self._write_header()

    def append(self, array: np.ndarray) -> None:
        import numpy as np

        if array.dtype != self._dtype or array.shape[1:] != self._row_shape:
            raise InputError(
                f"output {self.path.stem!r} has the shape {array.shape} in one unit and "
                f"(…, {', '.join(map(str, self._row_shape))}) in those before, "
                "so that they do not make one array",
                code="unequal_outputs",
                hint="fetch the units one by one, each into a directory of its own: `shoal job "
                f"fetch {self._job_id} --output unit-{self._units} --unit {self._units}`",
            )
        self._rows += array.shape[0] if array.ndim else 1
        self._units += 1
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def complete(self) -> None:
        """Write the header of what is there now; nothing more comes."""
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def finish(self) -> dict[str, Any]:
        self.complete()
        self._partial.replace(self.path)
        return self.described | {"path": str(self.path)}

    @property
    def described(self) -> dict[str, Any]:
        return {"dtype": self._dtype.name, "shape": list(self._shape)}

    @property
    def data_bytes(self) -> int:
        return math.prod(self._shape) * self._dtype.itemsize

    def copy_to(self, target: IO[bytes], *, data_only: bool) -> None:
        """Write the file, or its elements alone, into another; once it is complete."""
        with self._partial.open("rb") as source:
            if data_only:
                source.seek(-self.data_bytes or 0, os.SEEK_END)
            shutil.copyfileobj(source, target, 1 << 20)

    def discard(self) -> None:
        self._file.close()
        with suppress(FileNotFoundError):
            self._partial.unlink()

    @property
    def _shape(self) -> tuple[int, ...]:
        if self._single and self._units == 1:
            return ()
        return (self._rows, *self._row_shape)

    def _write_header(self) -> None:
        from numpy.lib import format as npy

        # numpy pads headers so that axis 0 can grow to 21 digits; a shape of ()
        # or of more rows takes as many bytes.
        header = {
            "descr": npy.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": self._shape,
        }
        npy.write_array_header_1_0(self._file, header)


def _write_npz(path: Path, writers: Mapping[str, _NpyWriter]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, writer in writers.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as target:
                writer.copy_to(target, data_only=False)


def _write_safetensors(path: Path, writers: Mapping[str, _NpyWriter]) -> None:
    entries: dict[str, dict[str, Any]] = {}
    at = 0
    for name, writer in writers.items():
        described = writer.described
        if described["dtype"] not in SAFETENSORS_CODES:
            raise InputError(
                f"output {name!r} is of {described['dtype']}, which safetensors cannot hold",
                hint="use --format npy",
            )
        entries[name] = {
            "dtype": SAFETENSORS_CODES[described["dtype"]],
            "shape": described["shape"],
            "data_offsets": [at, at + writer.data_bytes],
        }
        at += writer.data_bytes
    header = json.dumps(entries).encode()
    header = header.ljust(-(-len(header) // 8) * 8)
    with path.open("wb") as target:
        target.write(len(header).to_bytes(8, "little") + header)
        for writer in writers.values():
            writer.copy_to(target, data_only=True)
