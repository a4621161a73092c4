"""The lines that docs/API.md tells a reader to type, typed."""

import json
import os
import re
import subprocess
from pathlib import Path

import models
import msgpack
import numpy as np
import onnxruntime

from shoal.compute.tensor import from_blob, to_blob

CURL = "curl -sS --fail-with-body"
DOCUMENT = Path(__file__).parents[2] / "docs" / "API.md"


def lines():
    """The lines that begin with ``$S``, without their remarks, and what each is to learn."""
    for line in DOCUMENT.read_text().splitlines():
        if line.startswith("$S "):
            command, _, remark = line.partition("   #")
            yield command, re.search(r'"(\w+)": ([A-Z]+)', remark)


def test_the_lines_with_curl_go_from_a_model_to_results_and_through_an_open_job(node, tmp_path):
    (tmp_path / "model.onnx").write_bytes(models.dense())
    np.save(tmp_path / "x.npy", models.rows(3))
    units = [{"x": to_blob(models.rows(count))} for count in (1, 2)]
    (tmp_path / "units.msgpack").write_bytes(b"".join(map(msgpack.packb, units)))
    learned, typed = {}, []
    for command, wanted in lines():
        line = command
        for word, value in learned.items():
            line = re.sub(rf"\b{word}\b", value, line)
        done = subprocess.run(
            [
                "bash",
                "-c",
                f'S="curl -sS --fail-with-body --unix-socket {node.socket}"; {line}',
            ],
            cwd=tmp_path,
            env=os.environ,
            capture_output=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, (line, done)
        typed.append(line)
        if wanted:
            answer = json.loads(done.stdout)
            found = {**answer, **answer.get("job", {}), **answer.get("tensors", {})}
            learned[wanted[2]] = found[wanted[1]]
    assert len(typed) == 10
    session = onnxruntime.InferenceSession(models.dense())

    def check(found, count):
        (wanted,) = session.run(None, {"x": models.rows(count)})
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)

    check(np.load(tmp_path / "y.npy"), 3)
    unpacker = msgpack.Unpacker()
    unpacker.feed((tmp_path / "results.msgpack").read_bytes())
    *results, end = unpacker
    for result in results:
        assert result["state"] == "done"
        check(from_blob(result["outputs"]["y"]), (3, 3, 1, 2)[result["index"]])
    assert end["after"] == len(results) - 1
