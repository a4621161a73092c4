"""`make demo` as a person sees it, on all files of this checkout.

`tests/e2e/test_demo.py` has it as a program reads it, on a part of them.
"""

import re
import subprocess
from pathlib import Path

from daemons import SHOAL, clean_environment

CHECKOUT = Path(__file__).resolve().parents[2]
DEMO_LIMIT_S = 300


def test_every_file_is_labelled_as_magika_does_and_a_person_is_told_so(tmp_path):
    done = subprocess.run(
        [*SHOAL, "demo"],
        cwd=CHECKOUT,
        env=clean_environment() | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=DEMO_LIMIT_S,
        check=False,
    )
    out, err = done.stdout, done.stderr
    assert done.returncode == 0, (out, err)
    files = re.search(r"(\d+) of \1 files labelled: none lost, none twice", out)
    assert int(files[1]) > 300
    assert re.search(r"(\d+) of \1 receipts verified offline", out)
    assert re.search(r"(\d+) of \1 labels equal magika's own", out)
    assert "requester and provider" in out
    assert "Python source" in out
    assert "lied: one bit of each result that it gave was false" in out
    assert " proof verify " in out
    assert '"level"' not in out + err  # the daemons log JSON
    assert "\x1b" not in out + err  # no terminal, no colours
