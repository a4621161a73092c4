"""The lines that the README tells a reader to type, typed.

They are taken from the README itself, so that it cannot promise what does not work.
"""

import json
import os
import subprocess
from pathlib import Path

import models
import numpy as np
import onnxruntime

README = Path(__file__).parents[2] / "README.md"


def curl_lines():
    """The lines with curl, without their prompt."""
    lines = README.read_text().splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ curl ")]


def test_the_lines_with_curl_show_status_submit_a_job_and_fetch_its_output(node, tmp_path):
    (tmp_path / "model.onnx").write_bytes(models.dense())
    np.save(tmp_path / "a.npy", models.rows(3))
    learned = {}

    def typed(line):
        for word, value in learned.items():
            line = line.replace(word, value)
        done = subprocess.run(
            ["bash", "-c", f"{line} --silent --show-error --fail-with-body"],
            cwd=tmp_path,
            env=os.environ | {"SOCKET": str(node.socket)},
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, (line, done)
        return done.stdout

    status, program, tensor, job, wait, output = curl_lines()
    assert json.loads(typed(status))["peer"] == node.peer
    learned["PROGRAM"] = json.loads(typed(program))["program"]
    learned["TENSOR"] = json.loads(typed(tensor))["tensors"]["tensor"]
    learned["JOB"] = json.loads(typed(job))["job"]["id"]
    assert json.loads(typed(wait))["job"]["state"] == "done"
    typed(output)
    session = onnxruntime.InferenceSession(models.dense())
    (wanted,) = session.run(None, {"x": models.rows(3)})
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), wanted, rtol=1e-6, atol=1e-6)
