"""A node with two AMD cards, dry: what `make dry-run-amd` shows, as a process."""

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from daemons import clean_environment

pytestmark = pytest.mark.usefixtures("exact")  # which the CPU is to bid on

SCRIPT = Path(__file__).parents[1] / "stubs/two_amd_cards.py"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc builds the stub library")
@pytest.mark.skipif(
    find_spec("triton") is None,
    reason="Triton compiles for cards: pip install -c constraints.txt '.[gpu]'",
)
def test_a_node_with_two_amd_cards_says_compile_only_and_claims_none_of_them():
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=clean_environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout
    assert "gpu1 runs: exact 1 triton" in done.stdout
    assert "class exact: a bid: cpu by exact" in done.stdout
    assert "class kernel: refused, no_device: compile-only on gpu0, gpu1" in done.stdout
    # No line of a log stands in the report.
    assert re.search(r"^(\d{4}-\d\d-\d\d |\{)", done.stdout + done.stderr, re.MULTILINE) is None
