"""magika's own code around its model, so that the model can run somewhere else.

`OpenMagika.split` is what magika does before its model, `OpenMagika.types_of` what
it does after: thresholds, overwritten labels, generic ones where it is not sure.
All of that is called in the installed package and nothing is copied. magika has no
public way to take its model out, which is why its version is pinned.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import magika
import numpy as np
from magika.types import ContentTypeLabel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from magika.types import MagikaResult

MODEL_INPUT = "bytes"
MODEL_OUTPUT = "target_label"


@dataclass(frozen=True, slots=True)
class FileType:
    """What magika says a file is: its label, and a description for people."""

    label: str
    description: str


@dataclass(frozen=True, slots=True)
class Split:
    """Files by whether magika needs its model for them.

    Attributes:
        of_model: The files that reach the model.
        features: A row of features for each, int32 (files, 2048).
        without_model: Types of those that do not: empty, or very few bytes.
        failed: What could not be read, and why.
    """

    of_model: tuple[Path, ...]
    features: np.ndarray
    without_model: dict[Path, FileType]
    failed: dict[Path, str]


class OpenMagika(magika.Magika):
    """magika, with what it does before and after its model apart."""

    @property
    def model_path(self) -> Path:
        """The ONNX file of the model."""
        return self._model_path

    def split(self, root: Path, files: Sequence[Path]) -> Split:
        """Sort files by whether they need the model, and take the features of those."""
        of_model: list[Path] = []
        rows: list[list[int]] = []
        without_model: dict[Path, FileType] = {}
        failed: dict[Path, str] = {}
        for file in files:
            try:
                result, features = self._get_result_or_features_from_path(root / file)
            except OSError as error:  # it went away, or the disk cannot give it
                failed[file] = error.strerror or "unreadable"
                continue
            if features is not None:
                of_model.append(file)
                rows.append([*features.beg, *features.mid, *features.end])
            elif result is not None and result.ok:
                without_model[file] = _type_of(result)
            else:
                failed[file] = "unreadable"
        config = self._model_config
        width = config.beg_size + config.mid_size + config.end_size
        matrix = np.array(rows, np.int32).reshape(len(rows), width)  # (files, 2048)
        return Split(tuple(of_model), matrix, without_model, failed)

    def types_of(self, scores: Mapping[Path, np.ndarray]) -> dict[Path, FileType]:
        """The types of files, given what the model said of each: float32 (labels,)."""
        types = {}
        for file, row in scores.items():
            best = int(np.argmax(row))
            label, _ = self._get_output_label_from_dl_label_and_score(
                ContentTypeLabel(self._target_labels_space[best]), float(row[best])
            )
            types[file] = FileType(str(label), self._get_ct_info(label).description)
        return types

    def types_by_itself(self, root: Path, files: Sequence[Path]) -> dict[Path, FileType]:
        """The types of files by magika's own API, with the model run right here."""
        results = self.identify_paths([root / file for file in files])
        return {
            file: _type_of(result) if result.ok else FileType("", str(result.status))
            for file, result in zip(files, results, strict=True)
        }


def _type_of(result: MagikaResult) -> FileType:
    return FileType(str(result.output.label), result.output.description)
