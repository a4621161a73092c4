"""`make demo` on all files of this checkout; `tests/e2e/test_demo.py` has a part of them."""

import json
import subprocess
from pathlib import Path

from daemons import SHOAL, clean_environment

CHECKOUT = Path(__file__).resolve().parents[2]
DEMO_LIMIT_S = 300


def test_every_file_of_this_checkout_is_labelled_as_magika_does(tmp_path):
    done = subprocess.run(
        [*SHOAL, "demo", "--json"],
        cwd=CHECKOUT,
        env=clean_environment() | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=DEMO_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    report = json.loads(done.stdout)
    assert report["ok"]
    assert report["totals"]["labels_equal"] == report["totals"]["labels"] > 300
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=CHECKOUT, text=True)
    seen = report["files"] + report["without_model"] + report["left_out"]
    assert {each["path"] for each in seen} == {name for name in listed.split("\0") if name}
