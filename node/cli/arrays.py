"""Arrays on the submitter's disk: inputs read, outputs written, in constant memory."""

from __future__ import annotations

import os
import re
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.crypto.errors import ShoalError
from shoal.node.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType
    from typing import Self

    import numpy as np


class InputError(ShoalError):
    """An input on the command line that names no usable file."""

    code = "bad_input"


def read_inputs(texts: Iterable[str]) -> dict[str, np.ndarray]:
    """Open the files of ``NAME=FILE.npy``; their elements are read when used.

    Raises:
        InputError: A text has another form, a name comes twice, or a file is
            not an npy file of plain numbers.
        OSError: A file cannot be opened.
    """
    import numpy as np

    inputs: dict[str, np.ndarray] = {}
    for text in texts:
        name, separator, file = text.partition("=")
        if not name or not separator or not file:
            raise ConfigError(
                f"--input {text!r} is not of the form NAME=FILE.npy",
                code="usage",
                hint="for example --input x=a.npy",
            )
        if name in inputs:
            raise ConfigError(f"input {name!r} is given twice", code="usage")
        try:
            found = np.load(file, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError):
            raise InputError(
                f"{file} is not an npy file of numbers",
                code="bad_npy",
                hint="write it with numpy.save(path, array)",
            ) from None
        if not isinstance(found, np.ndarray):
            found.close()
            raise InputError(
                f"{file} is an .npz archive of arrays, and not one array",
                code="bad_npy",
                hint="save one array with numpy.save(path, array)",
            )
        inputs[name] = found
    return inputs


def check_directory(directory: Path | None) -> None:
    """Refuse an --output that is meant as a file, before any work is done for it.

    Raises:
        ConfigError: It is a file, or has the name of one.
    """
    if directory is None or directory.is_dir():
        return
    if directory.exists() or directory.suffix == ".npy":
        raise ConfigError(
            f"--output is a directory, and {directory} is a file",
            code="usage",
            hint="name a directory; each output is written to NAME.npy in it",
        )


class OutputFiles:
    """One npy file for each output, put in place when all of them are whole.

    Used as a context manager; left by an error, nothing stays.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._writers: dict[str, _NpyWriter] = {}

    def append(self, outputs: Mapping[str, np.ndarray]) -> None:
        """Add the rows of one unit to each file."""
        for name, array in outputs.items():
            if name not in self._writers:
                path = self._directory / f"{self._file_name(name)}.npy"
                self._writers[name] = _NpyWriter(path, array)
            self._writers[name].append(array)

    def finish(self) -> dict[str, dict[str, Any]]:
        """Put the files in place; gives path, dtype and shape by output name."""
        return {name: writer.finish() for name, writer in self._writers.items()}

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

    def __init__(self, path: Path, first: np.ndarray) -> None:
        self.path = path
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.part")
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
                hint="fetch the units one by one: shoal job fetch JOB --unit K",
            )
        self._rows += array.shape[0] if array.ndim else 1
        self._units += 1
        self._file.write(memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8)))

    def finish(self) -> dict[str, Any]:
        self._file.seek(0)
        self._write_header()
        self._file.close()
        self._partial.replace(self.path)
        return {
            "path": str(self.path),
            "dtype": self._dtype.name,
            "shape": list(self._shape),
        }

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
