"""docs/KERNELS.md says what the code does: operations, codes, limits."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.compute import kernel_manifest
from shoal.compute.manifest import PORT_COUNT_LIMIT
from shoal.compute.tolerance import KERNEL_TOLERANCE
from shoal.compute.user_kernels import rules

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "KERNELS.md").read_text(encoding="utf-8")
SOURCES = ["kernel_manifest.py", *(f"user_kernels/{n}.py" for n in ("rules", "parsing"))]
SOURCES += ["user_kernels/compiling.py", "user_kernels/lower.py", "executors/triton.py"]


def section(title):
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_page_lists_the_operations_that_are_accepted_and_no_others():
    (listed,) = re.findall(r"```text\n(.*?)```", section("Accepted operations"), re.DOTALL)
    assert listed.split() == sorted(rules.OPERATIONS)


def test_the_page_names_every_code_that_a_kernel_can_be_refused_with_and_no_others():
    told = section("What is refused, and why")
    rows = re.findall(r"^\| (`.*?) \|", told, re.MULTILINE)
    last = told.strip().splitlines()[-1]
    listed = set(re.findall(r"`([a-z_]+)`", " ".join(rows) + last))
    raised = {refused.code for refused in rules._REFUSED}
    for source in SOURCES:
        text = (ROOT / "compute" / source).read_text(encoding="utf-8")
        raised |= set(re.findall(r'code="(\w+)"', text))
    public = (ROOT / "deploy/package/shoal/kernel.py").read_text(encoding="utf-8")
    raised |= set(re.findall(r'code="(\w+)"', public))
    assert listed == raised - {"probe_failed", "terminated"}


def test_the_page_tells_the_limits():
    told = re.findall(r"\| (\d+)(?: each)? \|$", section("Limits"), re.MULTILINE)
    assert list(map(int, told)) == [
        rules.TTIR_LIMIT_BYTES,
        kernel_manifest.ARGUMENTS_LIMIT,
        PORT_COUNT_LIMIT,
        kernel_manifest.PROGRAMS_LIMIT,
        kernel_manifest.GRID_LIMIT[1],
        kernel_manifest.WARPS_LIMIT,
        kernel_manifest.STAGES_LIMIT,
    ]
    assert f"within {KERNEL_TOLERANCE.relative:.0%}".replace("%", " %") in TEXT


def test_the_pages_example_is_lowered(tmp_path):
    pytest.importorskip(
        "triton", reason="Triton lowers kernels: pip install -c constraints.txt '.[gpu]'"
    )
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    lowering, _, running = example.partition("with shoal.Client()")
    assert running
    (tmp_path / "example.py").write_text(lowering + "print(program.manifest.entry)\n")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, str(tmp_path / "example.py")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert done.stdout == "softmax\n"
