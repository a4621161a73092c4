import subprocess
import sys


def test_importing_the_daemon_brings_in_no_runtime_and_no_onnx():
    heavy = {"torch", "onnx", "onnxruntime", "numpy"}
    command = f"import sys, shoal.node.daemon; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", command], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
