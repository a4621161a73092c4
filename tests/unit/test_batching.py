"""Cutting inputs into units, and what is said where a model wants other pieces."""

import numpy as np
import pytest

from shoal.compute.errors import ProgramError
from shoal.compute.manifest import Manifest, Port
from shoal.node.client.batching import batches, check_batch


def manifest(*shapes):
    ports = [Port(f"x{i}", "float32", shape) for i, shape in enumerate(shapes)]
    return Manifest(graph="00" * 32, inputs=tuple(ports), outputs=(), tensors=())


def refusal(shape, rows, batch):
    with pytest.raises(ProgramError) as caught:
        check_batch(manifest(shape), {"x0": np.zeros((rows, 8))}, batch)
    return caught.value


def test_inputs_are_cut_into_pieces_of_which_the_last_may_be_shorter():
    pieces = list(batches({"a": np.arange(5), "b": np.arange(10).reshape(5, 2)}, 2))
    assert [len(piece["a"]) for piece in pieces] == [2, 2, 1]
    np.testing.assert_array_equal(
        np.concatenate([p["b"] for p in pieces])[:, 1], [1, 3, 5, 7, 9]
    )


@pytest.mark.parametrize(
    "inputs",
    [{}, {"a": np.float32(1)}, {"a": np.zeros(2), "b": np.zeros(3)}],
)
def test_inputs_without_equally_many_rows_are_refused(inputs):
    with pytest.raises(ProgramError) as caught:
        list(batches(inputs, 1))
    assert caught.value.code == "unequal_rows"


def test_inputs_without_any_row_are_nothing_to_map():
    with pytest.raises(ProgramError, match="nothing to map: a, b without rows") as caught:
        list(batches({"a": np.zeros((0, 8)), "b": np.zeros(0)}, 1))
    assert caught.value.code == "no_rows"


def test_another_batch_than_the_model_takes_is_answered_with_that():
    error = refusal((1, 8), rows=64, batch=32)
    assert (error.code, error.hint) == ("wrong_batch", "use --batch 1")
    assert "takes batches of 1 in 'x0', and not of 32" in error.message


def test_a_last_batch_that_is_too_short_is_named_with_its_rows():
    error = refusal((32, 8), rows=1000, batch=32)
    assert error.message.startswith("the last batch has 8 rows")
    assert "from 1000 to 1024 rows" in error.hint


@pytest.mark.parametrize("shape", [("n", 8), (32, 8), None, (8,)])
def test_what_fits_and_what_others_check_passes(shape):
    check_batch(manifest(shape), {"x0": np.zeros((64, 8))}, 32)
    check_batch(manifest(shape), {"another": np.zeros((64, 8))}, 32)
