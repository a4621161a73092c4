"""``shoal demo`` as a user runs it: a process, its JSON, its receipts, and what it leaves.

What a person sees of it is for `tests/soak/test_demo.py` and `tests/unit/test_demo_report.py`.
"""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from daemons import SHOAL, clean_environment, eventually, shoal

pytestmark = pytest.mark.usefixtures("exact")  # in which a lie can be proved

CHECKOUT = Path(__file__).resolve().parents[2]
DEMO_LIMIT_S = 300


@pytest.fixture
def place():
    """Where temporary homes go: short, since sockets are in them, and ours alone."""
    directory = Path(tempfile.mkdtemp(prefix="sd-"))
    yield directory
    shutil.rmtree(directory)


def start_demo(place, *arguments, cwd=CHECKOUT):
    return subprocess.Popen(
        [*SHOAL, "demo", *map(str, arguments)],
        cwd=cwd,
        env=clean_environment() | {"TMPDIR": str(place)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_of(place):
    """Command lines of all processes that have a home in ``place``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        if f"--home={place}" in line:
            found.append(line)
    return found


def tracked_files(directory):
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=directory, text=True)
    return [name for name in listed.split("\0") if name]


def is_left_out_here(number, name):
    """Most Python is: one file tells as much as four. `tests/soak/test_demo.py` has all."""
    return name.endswith(".py") and number % 4 and name != "node/daemon.py"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout with files of every kind that this one has, and fewer of them."""
    directory = tmp_path_factory.mktemp("checkout")
    for number, name in enumerate(tracked_files(CHECKOUT)):
        if is_left_out_here(number, name) or not os.path.lexists(CHECKOUT / name):
            continue
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(CHECKOUT / name, directory / name, follow_symlinks=False)
    for command in (["init", "--quiet"], ["add", "--all", "--force"]):
        subprocess.run(["git", *command], cwd=directory, check=True)
    return directory


@pytest.fixture(scope="module")
def demo(checkout, tmp_path_factory):
    """One run of the demo on a checkout: its report, receipts, files, what it left."""
    directory = Path(tempfile.mkdtemp(prefix="sd-"))
    receipts = tmp_path_factory.mktemp("receipts")
    process = start_demo(directory, "--json", "--receipts", receipts, cwd=checkout)
    out, err = process.communicate(timeout=DEMO_LIMIT_S)
    left = processes_of(directory), list(directory.iterdir())
    assert process.returncode == 0, (out, err)
    (proof,) = directory.glob("shoal-proof-*/liar.proof")
    verified = shoal("proof", "verify", "--json", proof)
    shutil.rmtree(directory)
    report = json.loads(out)
    report["verified"] = verified
    return report, receipts, set(tracked_files(checkout)), left


def test_the_demo_labels_every_file_once_as_magika_does(demo):
    report, *_ = demo
    assert report["schema_version"] == 1
    assert report["ok"]
    assert report["problems"] == []
    totals = report["totals"]
    assert totals["files"] == totals["files_of_model"] == len(report["files"]) > 50
    assert totals["labels_equal"] == totals["labels"]
    assert totals["labels"] == totals["files"] + len(report["without_model"])
    paths = [file["path"] for file in report["files"] + report["without_model"]]
    assert len(set(paths)) == len(paths)
    by_path = {file["path"]: file["label"] for file in report["files"]}
    assert by_path["node/daemon.py"] == "python"
    assert by_path["pyproject.toml"] == "toml"


def test_the_demos_files_are_those_that_git_tracks(demo):
    report, _, tracked, _ = demo
    seen = report["files"] + report["without_model"] + report["left_out"]
    assert {each["path"] for each in seen} == tracked


def test_every_node_of_the_demo_runs_units_and_one_is_killed_half_way(demo):
    report, *_ = demo
    nodes, killed = report["nodes"], report["killed"]
    assert len(nodes) == 3
    assert all(node["units"] > 0 for node in nodes)
    assert all(node["receipts_verified"] == node["units"] for node in nodes)
    assert all(node["seconds"] > 0 for node in nodes)
    assert sum(node["files"] for node in nodes) == report["totals"]["files"]
    assert [node["peer"] for node in nodes if node["killed"]] == [killed["peer"]]
    assert killed["peer"] != nodes[0]["peer"]  # the requester lives
    assert killed["units_total"] / 2 <= killed["units_done"] < killed["units_total"]
    assert killed["own_units_done"] > 0


def test_the_demos_receipts_verify_offline_one_for_each_unit(demo):
    report, directory, *_ = demo
    files = sorted(directory.iterdir())
    ended = shoal("receipt", "verify", "--json", *files)
    assert ended.code == 0, ended
    verdicts = ended.json["receipts"]
    assert all(verdict["valid"] for verdict in verdicts)
    assert [f"{verdict['id']}.receipt" for verdict in verdicts] == [f.name for f in files]
    assert len({verdict["unit"] for verdict in verdicts}) == report["totals"]["units"]
    assert Counter(verdict["provider"] for verdict in verdicts) == {
        node["peer"]: node["units"] for node in report["nodes"]
    }


def test_the_demos_liar_is_caught_and_its_proof_convicts_it_with_no_daemon(demo):
    report, *_ = demo
    liar, nodes = report["liar"], {node["peer"] for node in report["nodes"]}
    assert liar["peer"] not in nodes
    assert liar["false"] > 0
    assert liar["delivered"] == 0
    assert {*liar["checked_by"]} <= nodes
    assert "convicted" in liar["verdict"]
    assert liar["command"].endswith(f" proof verify {liar['proof']}")
    verdict = report["verified"].json["verdict"]
    assert (verdict["outcome"], verdict["accused"]) == ("convicted", liar["peer"])


def test_the_demo_leaves_nothing_running_and_no_homes_but_the_proof(demo):
    report, *_, (processes, entries) = demo
    assert processes == []
    assert entries == [Path(report["liar"]["proof"]).parent]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_interrupted_leaves_nothing(place, number):
    process = start_demo(place)
    eventually(lambda: len(processes_of(place)) == 3, 120, "three daemons")
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert processes_of(place) == []
    assert list(place.iterdir()) == []
