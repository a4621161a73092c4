"""What this machine is, for whoever reads the results: the card, its driver, versions.

``python tests/gpu/environment.py`` prints it as JSON. Nothing here fails: what cannot be
found out is said in its place.
"""

import datetime as dt
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "triton", "numpy", "numba", "onnx", "onnxruntime", "msgspec", "libp2p")
TOLD_LIMIT_S = 30


def environment():
    """Everything, by name."""
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "python": platform.python_version(),
        "kernel": f"{platform.release()} {platform.machine()}",
        "processors": os.cpu_count(),
        "compiler": shutil.which("gcc") or shutil.which("clang") or "none",
        "packages": {name: version(name) for name in PACKAGES},
        "torch": attempt(torch_about),
        "devices": attempt(devices),
        "sandbox": attempt(sandbox),
        "nvidia_smi": told(
            *("nvidia-smi", "--format=csv,noheader"),
            "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,power.limit",
        ),
    }


def card_line(about):
    """The card and the versions as one line, for tables."""
    torch = about["torch"] if isinstance(about["torch"], dict) else {"card": about["torch"]}
    packages = about["packages"]
    return (
        f"{about['date'][:10]}, {torch['card']}, driver {driver(about)}, "
        f"torch {packages['torch']}, triton {packages['triton']}, "
        f"{torch.get('runtime', 'no runtime')}, shoal {about['commit']}"
    )


def driver(about):
    """The driver's version, as detection has it or nvidia-smi."""
    found = about["devices"] if isinstance(about["devices"], list) else []
    versions = [device["driver"] for device in found if device.get("driver")]
    smi = about["nvidia_smi"].split(", ")
    return versions[0] if versions else smi[1] if len(smi) > 1 else "unknown"


def commit():
    """Of this checkout; a copy of its files alone has none."""
    said = told("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    return said if re.fullmatch(r"[0-9a-f]+", said) else "unknown"


def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


def attempt(find):
    try:
        return find()
    except Exception as error:  # noqa: BLE001  # what is missing here is what the report tells
        return f"{type(error).__name__}: {error}"


def told(*command):
    """What a command prints, or why it does not."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TOLD_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {error}"
    return done.stdout.strip() or done.stderr.strip()


def torch_about():
    import torch

    if not torch.cuda.is_available():
        return {"card": "no card", "runtime": f"CUDA {torch.version.cuda}"}
    about = torch.cuda.get_device_properties(0)
    kind, runtime = ("ROCm", torch.version.hip) if torch.version.hip else ("CUDA", None)
    return {
        "card": torch.cuda.get_device_name(0),
        "runtime": f"{kind} {runtime or torch.version.cuda}",
        "cards": torch.cuda.device_count(),
        "memory_bytes": about.total_memory,
        "processors": about.multi_processor_count,
        "capability": list(torch.cuda.get_device_capability(0)),
    }


def devices():
    import msgspec

    from shoal.compute.devices import detect

    return msgspec.to_builtins(detect().devices)


def sandbox():
    from shoal.compute.sandbox import features

    return [str(feature) for feature in features()]


if __name__ == "__main__":
    json.dump(environment(), sys.stdout, indent=1)
    print()
