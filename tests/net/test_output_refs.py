"""Outputs of other units through the local API: as inputs, and asked for when they are lost."""

import numpy as np
import pytest
import trio
from memory_daemon import MISSING, MemoryDaemon, model_bytes, rows

import shoal
from shoal.compute.errors import ProgramError
from shoal.compute.manifest import Manifest, Port
from shoal.compute.tensor import to_blob
from shoal.node.api import make_app, serve_api
from shoal.node.client import Client
from shoal.node.client.submitting import encoded
from shoal.node.errors import DaemonError
from shoal.node.records import JobId, OutputRef

REF = OutputRef(JobId("0001"), 3, "y")
MANIFEST = Manifest(
    graph="a" * 64,
    precision=None,
    inputs=(Port("x", "float32", ("n", 4)), Port("b", "float32", (4,))),
    outputs=(Port("y", "float32", ("n", 4)),),
    tensors=(),
)


async def blocking(work):
    with trio.fail_after(30):
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True)


@pytest.fixture
async def daemon(nursery, tmp_path):
    daemon = MemoryDaemon()
    daemon.path = tmp_path / "shoal.sock"
    await nursery.start(serve_api, make_app(daemon), daemon.path)
    return daemon


def test_an_output_of_another_unit_stands_beside_arrays():
    unit, large, size_bytes = encoded(MANIFEST, {"x": REF, "b": np.ones(4, np.float32)})
    assert unit["x"] == {"job": "0001", "unit": 3, "output": "y"}
    assert isinstance(unit["b"], bytes)
    assert (large, size_bytes) == ({}, 16)


def test_what_is_missing_beside_an_output_is_missed():
    with pytest.raises(ProgramError, match="'b'"):
        encoded(MANIFEST, {"x": REF})


def test_a_job_names_its_outputs_for_others():
    assert shoal.OutputRef is OutputRef


async def test_the_daemon_gets_references_as_they_are(daemon):
    program = await daemon.convert_program(model_bytes(), None)
    taken = []

    async def submit(spec, units):
        taken.extend(units)
        return await MemoryDaemon.submit(daemon, spec, [{"x": to_blob(rows(1))}])

    daemon.submit = submit

    def work():
        with Client(daemon.path) as client:
            first = client.submit(program, [{"x": rows(1)}])
            client.submit(program, [{"x": first.output(0, "y")}], outputs_stay=True)
            return first

    first = await blocking(work)
    assert taken[1] == {"x": OutputRef(first.id, 0, "y")}


async def test_an_output_that_is_lost_is_a_conflict_that_says_to_ask_again(daemon):
    daemon.lost.add(MISSING)

    def work():
        with Client(daemon.path) as client, pytest.raises(DaemonError) as caught:
            client.prepare(MISSING)  # any way to a blob will do
        return caught.value

    error = await blocking(work)
    assert (error.status, error.code) == (409, "computed_again")
    assert error.hint
