import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["shoal.node.daemon", "shoal.compute.executors.base"])
def test_importing_the_daemon_or_the_numeric_classes_brings_in_no_runtime(module):
    heavy = {"torch", "onnx", "onnxruntime", "numpy"}
    command = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", command], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
