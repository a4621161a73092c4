"""Cutting arrays into the units of a ``map`` job; pure.

Part of *submit*. `check_batch` looks at what `check_inputs` would refuse in some
unit, before any is uploaded, because only here it is known what would fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.compute.errors import ProgramError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np

    from shoal.compute.programs import AnyManifest


def batches(inputs: Mapping[str, np.ndarray], batch: int) -> Iterator[dict[str, np.ndarray]]:
    """Cut all inputs along axis 0 into pieces of ``batch`` rows; the last may be shorter.

    Raises:
        ProgramError: They have no rows, or not equally many.
    """
    rows = _rows(inputs, batch)
    for at in range(0, rows, batch):
        yield {name: array[at : at + batch] for name, array in inputs.items()}


def check_batch(manifest: AnyManifest, inputs: Mapping[str, np.ndarray], batch: int) -> None:
    """Check that pieces of ``batch`` rows are what a program with a fixed first axis takes.

    Raises:
        ProgramError: ``wrong_batch``, or as `batches` does.
    """
    rows = _rows(inputs, batch)
    for port in manifest.inputs:
        wanted = port.shape[0] if port.shape else None
        array = inputs.get(port.name)
        if array is None or not isinstance(wanted, int) or array.ndim != len(port.shape or ()):
            continue  # nothing to say here; `check_inputs` looks at the rest
        if batch != wanted:
            raise ProgramError(
                f"the model takes batches of {wanted} in {port.name!r}, and not of {batch}",
                code="wrong_batch",
                hint=f"use --batch {wanted}",
            )
        if rows % wanted:
            padded = rows + wanted - rows % wanted
            raise ProgramError(
                f"the last batch has {rows % wanted} rows, and the model takes batches of "
                f"{wanted} in {port.name!r}",
                code="wrong_batch",
                hint=f"pad the inputs from {rows} to {padded} rows, or export the model with "
                "a first axis of any size",
            )


def _rows(inputs: Mapping[str, np.ndarray], batch: int) -> int:
    if batch < 1:
        raise ProgramError(
            f"a batch of {batch} rows holds nothing", code="bad_batch", hint="1 or more"
        )
    rows = {name: array.shape[0] if array.ndim else 0 for name, array in inputs.items()}
    if rows and all(array.ndim and not len(array) for array in inputs.values()):
        raise ProgramError(
            f"there is nothing to map: {', '.join(rows)} without rows",
            code="no_rows",
            hint="inputs of a map are cut along their first axis, and that one has length 0",
        )
    if len(set(rows.values())) != 1 or not all(rows.values()):
        raise ProgramError(
            "the inputs of a map have equally many rows, and here are "
            + (", ".join(f"{name}: {count}" for name, count in rows.items()) or "none"),
            code="unequal_rows",
            hint="all inputs are cut along their first axis",
        )
    return next(iter(rows.values()))
