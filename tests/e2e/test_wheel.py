"""What a wheel of this tree puts onto a user's machine."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP = {"node", "protocol", "compute", "crypto"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from the tree as it stands, without the network."""
    place = tmp_path_factory.mktemp("dist")
    flags = ("--wheel", "--no-isolation", f"--outdir={place}")
    done = subprocess.run(
        [sys.executable, "-m", "build", *flags, str(ROOT)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = place.glob("*.whl")
    return wheel


def test_a_wheel_holds_shoal_and_its_metadata_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"shoal"}
    assert len(tops) == 2
    inside = {name.split("/")[1] for name in names if name.startswith("shoal/")}
    assert inside >= TOP | {"__init__.py", "export.py", "kernel.py", "py.typed"}
    tracked = {
        f"shoal/{path.relative_to(ROOT)}" for top in TOP for path in (ROOT / top).rglob("*.py")
    }
    assert tracked <= set(names)
    assert not [name for name in names if "/tests/" in name or name.endswith(".pyc")]


def test_an_installed_wheel_works_in_an_empty_directory(wheel, tmp_path):
    target, empty = tmp_path / "target", tmp_path / "empty"
    empty.mkdir()
    install = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    subprocess.run([*install, f"--target={target}", str(wheel)], check=True, timeout=120)
    script = (
        "import shoal; shoal.Client; shoal.AsyncClient; print(shoal.__file__);"
        "import shoal.node.daemon; print(shoal.node.daemon.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=empty,
        env={"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [Path(line).is_relative_to(target) for line in done.stdout.split()] == [True, True]
    assert not list(empty.iterdir())
    names = {path.name for path in target.iterdir()}
    assert {n for n in names if not n.endswith(".dist-info")} <= {"shoal", "bin"}
