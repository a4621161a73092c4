"""Submitters with real daemons: executors, lazy maps and open jobs, whatever dies."""

import json
import signal
import subprocess
import sys
import time

import httpx
import models
import msgpack
import numpy as np
import onnxruntime
import pytest
from daemons import clean_environment, curl, eventually, shoal

from shoal import Executor, remote
from shoal.compute.tensor import to_blob
from shoal.node.client.futures import Future
from shoal.node.client.submitting import UNITS_PER_REQUEST
from shoal.protocol.statements import open_receipt

TURNS = 40_000


def locally(model, array):
    return onnxruntime.InferenceSession(model).run(None, {"x": array})[0]


def test_futures_outlive_the_daemon_that_is_killed_in_the_middle(swarm):
    node, model = swarm.nodes[0], models.slow(TURNS)
    with Executor(node.home, label="killed") as executor:
        futures = [executor.submit(model, models.rows(n % 5 + 1)) for n in range(40)]
        assert isinstance(futures[0], Future)
        futures[0].result(90)
        node.kill()
        late = executor.submit(model, models.rows(7))  # while there is no daemon
        time.sleep(0.5)
        swarm.start(node)
        for number, future in enumerate(futures):
            wanted = models.rows(number % 5 + 1)
            np.testing.assert_array_equal(future.result(120)["y"], wanted)
        np.testing.assert_array_equal(late.result(120)["y"], models.rows(7))
        assert {future.job_id for future in futures} == {late.job_id}
        receipt = open_receipt(futures[3].receipt())
        assert receipt.unit == f"{futures[3].job_id}/3"
    with node.client() as client:
        job = client.wait(late.job_id, 60)
        assert (job.state, job.open, job.units_done) == ("done", False, 41)
        assert len(client.receipts(job.id)) == 41


def test_a_map_over_an_iterator_runs_out_there(node):
    model = models.dense()
    with node.client() as client:
        inputs = ({"x": models.rows(n % 7 + 1)} for n in range(600))
        results = client.map(model, inputs, ordered=False, ahead=200)
        found = {one.unit: one["y"] for one in results}
    assert sorted(found) == [*range(600)]
    for unit in (0, 300, 599):
        wanted = locally(model, models.rows(unit % 7 + 1))
        np.testing.assert_allclose(found[unit], wanted, rtol=1e-6, atol=1e-6)


HALF = """
import sys, time, itertools
import models
from shoal import Client
def units():
    for n in itertools.count():
        if n == 600:
            print("there", flush=True)
            time.sleep(60)
        yield {"x": models.rows(1)}
with Client(home=sys.argv[1]) as client:
    client.submit(models.dense(), units(), label="half")
"""


def test_a_submitter_that_is_killed_leaves_an_open_job_that_says_how_to_end_it(node):
    with subprocess.Popen(
        [sys.executable, "-c", HALF, str(node.home)],
        stdout=subprocess.PIPE,
        env=clean_environment() | {"PYTHONPATH": ":".join(sys.path)},
    ) as child:
        assert child.stdout.readline() == b"there\n"
        child.send_signal(signal.SIGKILL)
    listed = shoal("jobs", node=node)
    with node.client() as client:
        job = next(job for job in client.jobs() if job.label == "half")
        assert (job.open, job.units_total, job.state) == (True, 512, "running")  # whole writes
        assert "open" in listed.stdout
        assert f"`shoal job seal {job.id} --home" in listed.stderr
        assert shoal("job", "seal", job.id, node=node).code == 0
        job = client.wait(job.id, 60)
        assert (job.state, job.units_done) == ("done", 512)
        assert len(list(client.results(job.id))) == 512


def test_half_a_stream_leaves_whole_units_and_a_bad_one_names_itself(node):
    with node.client() as client:
        program = client.prepare(models.dense()).program_id
    job = {"policy": "map", "program": program, "units": [], "open": True}
    code, body = curl(node, "-d", json.dumps(job), "http://shoal/v1/jobs")
    assert code == 201, body
    job_id = json.loads(body)["job"]["id"]
    units = f"http://shoal/v1/jobs/{job_id}/units"
    bad = msgpack.packb({"x": to_blob(models.rows(1))}) + msgpack.packb(
        {"x": to_blob(np.zeros((1, 9), np.float32))}
    )
    code, body = post(node, units, bad)
    assert code == 400
    error = json.loads(body)["error"]
    assert error["code"] == "wrong_shape"
    assert error["message"].startswith("unit 1: ")
    with node.client() as client:
        assert client.job(job_id).units_total == 0
        assert client.cancel(job_id).state == "cancelled"


def test_a_unit_takes_the_output_of_another_and_journals_tensors_are_found(node):
    model = models.dense()
    with node.client() as client:
        program = client.prepare(model).program_id
        first = client.submit(program, [{"x": models.rows(2)}])
        spec = {"policy": "map", "program": program}
        reference = {"job": first.id, "unit": 0, "output": "y"}
        body = msgpack.packb(spec) + msgpack.packb({"x": reference})
        code, answered = post(node, "http://shoal/v1/jobs", body)
        assert code == 201, answered
        second = json.loads(answered)["job"]["id"]
        (found,) = client.results(second)
        once = locally(model, models.rows(2))
        np.testing.assert_allclose(found["y"], locally(model, once), rtol=1e-6, atol=1e-6)
        assert client.outputs(first.id)["y"].shape == (2, models.WIDTH)
        wrong = {"job": first.id, "unit": 9, "output": "y"}
        code, answered = post(
            node, "http://shoal/v1/jobs", msgpack.packb(spec) + msgpack.packb({"x": wrong})
        )
        assert (code, json.loads(answered)["error"]["code"]) == (404, "no_such_unit")


def test_ctrl_c_while_units_are_handed_over_leaves_nothing(node, tmp_path):
    (tmp_path / "m.onnx").write_bytes(models.dense())
    np.save(tmp_path / "x.npy", models.rows(60_000))
    with node.client() as client:
        before = {job.id for job in client.jobs()}
    with (
        subprocess.Popen(
            [
                *(
                    sys.executable,
                    "-P",
                    "-m",
                    "shoal.node.cli",
                    "map",
                    str(tmp_path / "m.onnx"),
                ),
                *("--input", f"x={tmp_path}/x.npy", f"--home={node.home}"),
            ],
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        ) as child,
        node.client() as client,
    ):

        def known_to_the_child():
            """Its job, once the daemon's answer to its first request has come."""
            return [
                job
                for job in client.jobs()
                if job.id not in before and job.units_total > UNITS_PER_REQUEST
            ]

        (job,) = eventually(known_to_the_child, 120)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
        assert child.returncode == 130, err
        assert "nothing of it goes on" in err
        assert client.job(job.id).state == "cancelled"


def post(node, url, body):
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(node.socket))) as web:
        response = web.post(
            url, content=body, headers={"content-type": "application/msgpack"}, timeout=60
        )
        return response.status_code, response.content


def test_a_torch_function_runs_out_there_as_it_does_here(node, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="shoal.remote exports torch functions")
    pytest.importorskip("onnxscript", reason="torch exports with it")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    x = torch.arange(12.0).reshape(3, 4)

    @remote(home=node.home)
    def norms(x):
        return x.pow(2).sum(1).sqrt()

    torch.testing.assert_close(norms(x), norms.local(x))
    many = list(norms.map([x + n for n in range(5)]))
    for n, found in enumerate(many):
        torch.testing.assert_close(found, norms.local(x + n))
    assert norms.submit(x).receipt()
