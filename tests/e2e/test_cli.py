"""The command line against a real daemon: start, run, map, let go, end."""

import json
import signal
import socket
import subprocess
import time

import commands
import numpy as np
import psutil
import pytest
from daemons import SHOAL, clean_environment, eventually
from onnx import TensorProto, helper, save

from shoal.node.client import Client


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("node")
    up = shoal(home, "up", "--detach", "--listen", "/ip4/127.0.0.1/tcp/0", "--json")
    assert up.returncode == 0, up.stderr
    yield home
    down = shoal(home, "down")
    assert down.returncode == 0, down.stderr
    assert not (home / "shoal.sock").exists()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The file of a model with y = x + 1."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in "xy")
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "one"], ["y"])], "g", [x], [y], [one]
    )
    path = tmp_path_factory.mktemp("models") / "add.onnx"
    opsets = [helper.make_opsetid("", 18)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


@pytest.fixture
def rows(tmp_path):
    array = np.arange(400, dtype=np.float32).reshape(100, 4)
    np.save(tmp_path / "x.npy", array)
    return array, f"x={tmp_path}/x.npy"


def environment_of(home):
    return clean_environment() | {"SHOAL_HOME": str(home)}


def shoal(home, *arguments):
    return commands.run(arguments, environment=environment_of(home))


def test_a_running_daemon_says_how_its_worker_is_locked_in(home):
    with Client(home=home) as client:
        eventually(lambda: client.status().sandboxed, 60, "a worker has settled in")
    found = json.loads(shoal(home, "status", "--json").stdout)
    assert found["sandboxed"]
    assert found["sandbox"] == next(
        line.removesuffix(")").partition("the worker's sandbox: ")[2]
        for line in shoal(home, "doctor").stdout.splitlines()
        if "strangers' work is possible" in line
    )


def test_run_shows_or_saves_the_outputs(home, model, rows, tmp_path):
    array, x = rows
    ran = shoal(home, "run", model, "--input", x)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("y  float32[100, 4]  [  1.   2.   3. ")
    ran = shoal(home, "run", model, "--input", x, "--output", tmp_path / "out", "--json")
    told = json.loads(ran.stdout)
    assert (told["schema_version"], told["job"]["state"]) == (1, "done")
    np.testing.assert_array_equal(np.load(told["outputs"]["y"]["path"]), array + 1)


def test_map_gives_the_rows_in_order_and_receipts_that_verify(home, model, rows, tmp_path):
    array, x = rows
    out = tmp_path / "out"
    ran = shoal(home, "map", model, "--input", x, "--batch", 7, "--output", out, "--json")
    assert ran.returncode == 0, ran.stderr
    np.testing.assert_array_equal(np.load(out / "y.npy"), array + 1)
    job_id = json.loads(ran.stdout)["job"]["id"]
    got = shoal(home, "receipt", "fetch", job_id, "--output", tmp_path / "receipts")
    files = got.stdout.split()
    assert len(files) == 15
    assert shoal("/nonexistent", "receipt", "verify", *files).returncode == 0


def test_a_job_whose_results_were_fetched_is_forgotten_and_another_one_with_yes(
    home, model, rows, tmp_path
):
    _, x = rows
    mapped = ("map", model, "--input", x, "--batch", 50, "--json")
    first = json.loads(shoal(home, *mapped, "--output", tmp_path / "out").stdout)["job"]["id"]
    gone = shoal(home, "job", "forget", first)
    assert (gone.returncode, gone.stdout) == (0, f"forgot {first}\n"), gone.stderr
    second = json.loads(shoal(home, *mapped, "--detach").stdout)["job"]["id"]
    shoal(home, "job", "wait", second)
    refused = shoal(home, "job", "forget", second)
    assert refused.returncode == 1
    assert "2 of 2 results" in refused.stderr
    assert "--yes" in refused.stderr
    assert shoal(home, "job", "forget", second, "--yes").returncode == 0
    kept = [job["id"] for job in json.loads(shoal(home, "jobs", "--json").stdout)["jobs"]]
    assert not {first, second} & {*kept}
    assert shoal(home, "job", "show", first).returncode == 1


def test_a_job_says_of_each_unit_who_checked_it_and_what_that_rules_out(home, model, rows):
    ran = shoal(home, "map", model, "--input", rows[1], "--batch", 50, "--json", "--detach")
    job = json.loads(ran.stdout)["job"]["id"]
    shoal(home, "job", "wait", job)
    table = shoal(home, "job", "show", job).stdout
    assert "CHECKED" in table
    assert "2 units run or run again by this node, which rules out" in " ".join(table.split())
    one = " ".join(shoal(home, "job", "show", job, "--unit", 1).stdout.split())
    assert "This node ran it. What this node runs itself needs no check." in one
    assert "This rules out a result that is off by more than the tolerance." in one
    assert "weaker than exact" in one
    told = json.loads(shoal(home, "job", "show", job, "--json").stdout)
    assert told["assurance"]["units"] == {"own": 2}
    assert [(each["unit"], each["ground"]) for each in told["assured"]] == [
        (0, "own"),
        (1, "own"),
    ]
    absent = shoal(home, "job", "show", job, "--unit", 2)
    assert absent.returncode == 1
    assert f"job {job} has no unit 2" in absent.stderr


def test_a_wrong_input_is_one_error_and_no_job(home, model, rows):
    before = json.loads(shoal(home, "jobs", "--json").stdout)
    ran = shoal(home, "run", model, "--input", rows[1].replace("x=", "z="))
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "error: the program has no input 'z'" in ran.stderr
    assert json.loads(shoal(home, "jobs", "--json").stdout) == before


def test_a_second_daemon_on_the_home_is_refused(home):
    for detach in ((), ("--detach",)):
        second = shoal(home, "up", *detach)
        assert second.returncode == 1
        assert "next: " in second.stderr
        assert "Traceback" not in second.stderr
    assert shoal(home, "status").returncode == 0


def test_a_chosen_bulk_port_that_is_taken_is_one_error_that_names_its_flag(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        up = shoal(tmp_path, "up", "--listen", "/ip4/127.0.0.1/tcp/0", "--bulk", port)
    assert up.returncode == 1
    assert f"error: another process listens on /ip4/127.0.0.1/tcp/{port}\n" in up.stderr
    assert "choose another port with --bulk" in up.stderr
    assert "Traceback" not in up.stderr


def test_ctrl_c_lets_a_job_go_on_and_says_how_to_come_back(home, model, rows, tmp_path):
    """The worker is stopped, so that the job cannot end before Ctrl-C comes."""
    status = json.loads(shoal(home, "status", "--json").stdout)
    workers = psutil.Process(status["pid"]).children(recursive=True)
    with Client(home=home) as client:
        jobs_before = len(client.jobs())
    for worker in workers:
        worker.suspend()
    try:
        with subprocess.Popen(
            [*SHOAL, "run", str(model), "--input", rows[1]],
            env=environment_of(home),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as child:
            with Client(home=home) as client:
                eventually(lambda: len(client.jobs()) > jobs_before, 60, "the job is there")
                found = client.jobs()
            time.sleep(1)  # from "submitted" to "following"
            child.send_signal(signal.SIGINT)
            out, err = child.communicate(timeout=60)
            late = shoal(home, "job", "wait", found[0].id, "--timeout", "0.1")
    finally:
        for worker in workers:
            worker.resume()
    assert (child.returncode, out) == (130, "")
    assert f"detached; job {found[0].id} goes on" in err
    assert "error: " not in err
    assert f"come back with `shoal job wait {found[0].id}`" in err
    assert late.returncode == 5
    assert shoal(home, "job", "wait", found[0].id).returncode == 0
