"""Environments of the peers' own, so that what they depend on and we do not stays apart."""

import hashlib
import subprocess
import sys
from pathlib import Path

KEPT = Path(__file__).parents[2] / "build" / "bench-peers"
INSTALL_LIMIT_S = 600.0


def python_with(*requirements):
    """An interpreter that has these packages, installed at first use.

    Raises:
        LookupError: They are not to be had here; says why.
    """
    place = KEPT / hashlib.sha256(" ".join(requirements).encode()).hexdigest()[:12]
    python = place / "bin" / "python"
    if not (place / "complete").exists():
        print(f"installing {', '.join(requirements)} into {place}", file=sys.stderr)
        _ran([sys.executable, "-m", "venv", str(place)])
        _ran([str(python), "-m", "pip", "install", "--quiet", *requirements])
        (place / "complete").touch()
    return str(python)


def _ran(command):
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LookupError(str(error)) from None
    if done.returncode != 0:
        said = (done.stderr.strip() or "it says nothing").splitlines()[-1]
        raise LookupError(f"{' '.join(command[1:4])} … failed: {said}")
