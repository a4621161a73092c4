"""What a command imports: each takes as long to start as that takes."""

import subprocess
import sys

import pytest

LIGHT = {
    *("asyncio", "anyio", "cryptography", "httpx", "hypercorn", "libp2p", "numpy", "onnx"),
    *("onnxruntime", "prometheus_client", "psutil", "rich", "starlette", "structlog", "torch"),
    *("trio", "zeroconf"),
}
"""What no command needs that asks the daemon something and shows its answer."""


def imported_by(*arguments):
    """The packages that a command has imported when it ends."""
    code = (
        "import sys; from shoal.node.cli import main; main(sys.argv[1:])\n"
        "print('imported', *{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    word, *packages = done.stdout.splitlines()[-1].split(" ")
    assert word == "imported"
    return set(packages)


@pytest.mark.parametrize(
    "command",
    ["version", "status", "peers", "jobs", "job show 1", "job wait 1", "ledger"],
)
def test_a_command_that_asks_and_shows_imports_nothing_heavy(tmp_path, command):
    where = () if command == "version" else ("--home", str(tmp_path))
    assert imported_by(*command.split(), *where) & LIGHT == set()


def test_help_imports_what_commands_need_to_be_described():
    assert imported_by("--help") & LIGHT <= {"cryptography", "rich"}


def test_run_imports_what_its_model_and_arrays_need_and_nothing_of_a_daemon(tmp_path):
    import models
    import numpy as np

    model, array = tmp_path / "model.onnx", tmp_path / "x.npy"
    model.write_bytes(models.dense())
    np.save(array, models.rows(1))
    where = ("--home", str(tmp_path))
    imported = imported_by("run", str(model), "--input", f"x={array}", *where)
    assert imported & LIGHT == {"numpy", "onnx"}
