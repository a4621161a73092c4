"""The notebook of the docs, from beginning to end in a kernel of its own."""

import json
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
NOTEBOOK = DOCS / "embeddings.ipynb"
CELL_LIMIT_S = 180
"""On a slow and busy machine."""

COMMITTED_LIMIT_BYTES = 300_000

PROBE = """
from collections import Counter

np.savez(
    "{path}/sample.npz",
    input_ids=inputs["input_ids"][:16],
    attention_mask=inputs["attention_mask"][:16],
    embedding=embeddings[:16],
)
with open("{path}/model.onnx", "wb") as file:
    file.write(model)
providers = Counter(names[unit.provider] for unit in done)
print(len(texts), embeddings.shape, job.units_total, sorted(providers))
"""
"""What the test asks the kernel once all cells have run."""


def outputs(notebook, kind):
    """What cells gave of one kind, such as ``image/png``."""
    return [
        output["data"][kind]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if kind in output.get("data", {})
    ]


def printed(cell):
    return "".join(one["text"] for one in cell.outputs if one.output_type == "stream")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The notebook with the outputs of now, and where the test's own cell left some files."""
    nbformat = pytest.importorskip("nbformat", reason="the extra `notebook` is not installed")
    nbclient = pytest.importorskip("nbclient", reason="the extra `notebook` is not installed")
    path = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    probe = nbformat.v4.new_code_cell(PROBE.replace("{path}", str(path)), id="probe")
    notebook.cells.append(probe)
    kernel = nbclient.NotebookClient(
        notebook, timeout=CELL_LIMIT_S, resources={"metadata": {"path": str(DOCS)}}
    )
    kernel.execute()  # raises where a cell does
    return notebook, path


def test_the_notebook_runs_and_shows_progress_and_a_plot(ran):
    notebook, _ = ran
    assert len(outputs(notebook, "image/png")) == 1
    (bar,) = outputs(notebook, "text/html")
    assert re.search(r'value="(\d+)" max="\1"', bar)
    assert "running daemons: 0" in printed(notebook.cells[-2])


def test_three_nodes_did_the_work_and_signed_for_it(ran):
    notebook, _ = ran
    rows, shape, units, providers = re.match(
        r"(\d+) \((.*)\) (\d+) (\[.*\])", printed(notebook.cells[-1])
    ).groups()
    assert providers == "['node 1', 'node 2', 'node 3']"
    assert shape == f"{rows}, 384"
    said = "".join(printed(cell) for cell in notebook.cells if cell.cell_type == "code")
    assert f"{units} receipts are right" in said


def test_the_embeddings_are_those_of_a_local_run(ran):
    _, path = ran
    sample = np.load(path / "sample.npz")
    session = onnxruntime.InferenceSession(path / "model.onnx")
    given = {name: sample[name] for name in ("input_ids", "attention_mask")}
    (local,) = session.run(["embedding"], given)
    np.testing.assert_allclose(sample["embedding"], local, atol=1e-5)


def test_the_committed_notebook_holds_small_outputs_and_no_place_of_its_writer():
    text = NOTEBOOK.read_text()
    assert len(text) < COMMITTED_LIMIT_BYTES
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells)
    assert "image/png" in text
    assert not re.search(r"/home/|/work/|/root/|/tmp/|/Users/|12D3Koo", text)
