"""The whole path by the command line: submit, run on other nodes, verify, deliver.

Also what happens to a job when a provider dies, the submitter's own daemon dies,
the user lets go, or the program is at fault.
"""

import json
import signal
import subprocess
from pathlib import Path

import models
import numpy as np
import onnxruntime
import pytest
from daemons import SHOAL, clean_environment, eventually, peers_of, shoal

from shoal.node.records import JobState, UnitState
from shoal.protocol.statements import open_receipt

FP32_TOLERANCE = 1e-6
SLOW_TURNS = 150_000
"""A unit then takes some tenths of a second."""


@pytest.fixture
def dense(tmp_path):
    path = tmp_path / "dense.onnx"
    path.write_bytes(models.dense())
    return path


@pytest.fixture
def slow(tmp_path):
    path = tmp_path / "slow.onnx"
    path.write_bytes(models.slow(SLOW_TURNS))
    return path


@pytest.fixture
def array(tmp_path):
    """Write rows to a file and give the flag that names it."""

    def write(count):
        np.save(tmp_path / "x.npy", models.rows(count))
        return f"--input=x={tmp_path}/x.npy"

    return write


def locally(model, rows):
    """What ONNX Runtime gives in this process."""
    session = onnxruntime.InferenceSession(Path(model).read_bytes())
    return session.run(None, {"x": rows})[0]


def assert_delivered_once(node, job_id):
    """Every unit of a done job ended once: one verified receipt for each, for it alone."""
    with node.client() as client:
        job = client.job(job_id)
        units = client.units(job_id, 0, 1000)
        receipts = [open_receipt(client.receipt(r)) for r in client.receipts(job_id)]
    assert (job.state, job.units_done) == (JobState.DONE, job.units_total)
    assert [unit.index for unit in units] == list(range(job.units_total))
    assert {unit.state for unit in units} == {UnitState.DONE}
    assert sorted(receipt.unit for receipt in receipts) == sorted(
        f"{job_id}/{unit.index}" for unit in units
    )
    assert {receipt.provider for receipt in receipts} == {unit.provider for unit in units}
    return units


def start_map(node, model, rows):
    """Submit a job of one row a unit; gives its id once some units are done."""
    with node.client() as client:
        job = client.submit(model, ({"x": row[None]} for row in rows))
        eventually(lambda: client.job(job.id).units_done >= 2, 60, "some units done")
    return job.id


# --- run and map ----------------------------------------------------------------------


def test_a_model_run_by_the_swarm_gives_what_it_gives_locally(node, dense, array, tmp_path):
    ended = shoal("run", dense, array(5), f"--output={tmp_path}/out", "--json", node=node)
    assert ended.code == 0, ended
    assert ended.json["job"]["units_done"] == 1
    (file,) = ended.json["outputs"].values()
    found = np.load(file["path"])
    np.testing.assert_allclose(
        found, locally(dense, models.rows(5)), rtol=FP32_TOLERANCE, atol=FP32_TOLERANCE
    )


def test_a_map_is_spread_over_all_nodes_and_put_together_in_order(swarm, slow, array, tmp_path):
    node = swarm.nodes[1]
    ended = shoal(
        "map", slow, array(25), "--batch=2", f"--output={tmp_path}/out", "--json", node=node
    )
    assert ended.code == 0, ended
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "y.npy"), models.rows(25))
    units = assert_delivered_once(node, ended.json["job"]["id"])
    assert len(units) == 13
    assert {unit.provider for unit in units} == {each.peer for each in swarm.nodes}


def test_receipts_verify_offline_and_not_with_one_byte_changed(node, dense, array, tmp_path):
    job_id = shoal("map", dense, array(4), "--json", node=node).json["job"]["id"]
    fetched = shoal("receipt", "fetch", job_id, f"--output={tmp_path}/r", "--json", node=node)
    files = [Path(file) for file in fetched.json["files"]]
    assert len(files) == 4
    good = shoal("receipt", "verify", "--json", *files)
    assert good.code == 0, good
    assert [verdict["valid"] for verdict in good.json["receipts"]] == [True] * 4
    for number, file in enumerate(files):
        envelope = bytearray(file.read_bytes())
        envelope[len(envelope) * number // 4] ^= 1
        file.write_bytes(envelope)
    bad = shoal("receipt", "verify", "--json", *files)
    assert bad.code == 1, bad
    assert [verdict["valid"] for verdict in bad.json["receipts"]] == [False] * 4


# --- deaths ---------------------------------------------------------------------------


def test_a_provider_killed_in_the_middle_costs_no_unit(swarm, slow):
    submitter, provider = swarm.nodes[1], swarm.nodes[2]
    rows = models.rows(24)
    job_id = start_map(submitter, slow, rows)
    provider.kill()
    with submitter.client() as client:
        assert client.wait(job_id, 60).state is JobState.DONE
        found = np.concatenate([outputs["y"] for outputs in client.results(job_id)])
    np.testing.assert_array_equal(found, rows)
    units = assert_delivered_once(submitter, job_id)
    assert max(unit.attempts for unit in units) > 1  # it held some, and others ran them


def test_a_job_whose_own_daemon_is_killed_goes_on_after_its_restart(swarm, slow):
    submitter = swarm.nodes[1]
    rows = models.rows(24)
    job_id = start_map(submitter, slow, rows)
    with submitter.client() as client:
        before = [unit for unit in client.units(job_id, 0, 100) if unit.state is UnitState.DONE]
    submitter.kill()
    swarm.start(submitter)
    swarm.wait_ready(submitter)
    with submitter.client() as client:
        assert client.wait(job_id, 60).state is JobState.DONE
        found = np.concatenate([outputs["y"] for outputs in client.results(job_id)])
    np.testing.assert_array_equal(found, rows)
    after = assert_delivered_once(submitter, job_id)
    assert before
    assert [after[unit.index] for unit in before] == before  # nothing was run again


# --- the user lets go, ends it, or asks why -------------------------------------------------


def test_ctrl_c_lets_a_map_go_on_and_says_how_to_come_back(node, slow, array):
    command = [*SHOAL, "map", str(slow), array(16), "--label=let go", f"--home={node.home}"]
    following = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=clean_environment()
    )
    try:
        with node.client() as client:
            job = eventually(
                lambda: next((j for j in client.jobs(1) if j.label == "let go"), None),
                60,
                "the job is submitted",
            )
            eventually(lambda: client.job(job.id).units_done, 60, "a unit is done")
        following.send_signal(signal.SIGINT)
        _, said = following.communicate(timeout=60)
    finally:
        following.kill()
        following.wait()
    assert following.returncode == 130, said
    assert f"shoal job wait {job.id}" in said
    waited = shoal("job", "wait", job.id, "--json", node=node)
    assert waited.code == 0, waited
    assert waited.json["job"]["state"] == "done"
    assert_delivered_once(node, job.id)


def test_a_cancelled_job_ends_at_once_and_keeps_what_was_done(node, slow):
    job_id = start_map(node, slow, models.rows(60))
    cancelled = shoal("job", "cancel", job_id, "--json", node=node)
    assert cancelled.code == 0, cancelled
    assert cancelled.json["job"]["state"] == "cancelled"
    assert 2 <= cancelled.json["job"]["units_done"] < 60
    waited = shoal("job", "wait", job_id, node=node)
    assert waited.code == 1
    assert "cancelled" in waited.stderr
    with node.client() as client:
        assert client.status().jobs_running == 0
        assert client.job(job_id).units_done == len(client.receipts(job_id))
        assert "cancelled" in client.why(job_id)[1]


def test_why_knows_the_nodes_that_do_not_trust_the_requester_when_another_has_done_it(
    swarm, stranger, dense, array
):
    known = {each.peer for each in swarm.nodes}
    joined = shoal("peers", f"--connect={swarm.nodes[0].address}", node=stranger)
    assert joined.code == 0, joined
    eventually(lambda: known <= peers_of(stranger), 60, "acquainted")
    job_id = shoal("run", dense, array(1), "--detach", "--json", node=stranger).json["job"][
        "id"
    ]
    with stranger.client() as client:
        eventually(
            lambda: known <= {answer.peer for answer in client.why(job_id)[0]}, 60, "answered"
        )
        assert client.wait(job_id, 60).state is JobState.DONE  # the stranger's own node does it
    why = shoal("job", "why", job_id, "--json", node=stranger)
    assert why.code == 0, why
    answers = {answer["peer"]: answer["verdict"] for answer in why.json["answers"]}
    assert {answers[peer] for peer in known} == {"untrusted_requester"}
    assert "allow" not in why.json["summary"]  # it is done: there is nothing to be changed


def test_a_job_that_nobody_can_serve_keeps_running_and_why_tells(node, dense, array):
    too_large = "--memory-limit=1000GB"
    job_id = shoal("run", dense, array(1), too_large, "--detach", node=node).stdout.strip()
    with node.client() as client:
        eventually(lambda: "memory" in client.why(job_id)[1], 60, client.why(job_id)[1])
        assert client.job(job_id).state is JobState.RUNNING
    waited = shoal("job", "wait", job_id, "--timeout=0.1", node=node)
    assert waited.code == 5
    assert f"shoal job why {job_id}" in waited.stderr
    assert shoal("job", "cancel", job_id, node=node).code == 0


def test_a_class_that_nothing_runs_is_refused_at_once_and_those_that_are_run_are_named(
    node, dense, array
):
    refused = shoal("run", dense, array(1), "--class=int8", "--detach", node=node)
    assert (refused.code, refused.stdout) == (2, "")
    assert "fp32" in refused.stderr


# --- a program at fault -----------------------------------------------------------------


def failed_job(node, model, inputs, *flags):
    """Run what fails; gives its error as JSON, its one unit, and its checked receipt."""
    label = f"--label={model}"
    ended = shoal("run", model, inputs, label, *flags, "--json", node=node)
    assert ended.code == 1, ended
    with node.client() as client:
        (job,) = (j for j in client.jobs(20) if j.label == str(model))
        (unit,) = client.units(job.id, 0, 10)
        envelope = client.receipt(unit.receipt)
    assert (job.state, unit.state) == (JobState.FAILED, UnitState.FAILED)
    return ended.json["error"], unit, envelope


def verified(envelope, tmp_path):
    (tmp_path / "error.receipt").write_bytes(envelope)
    assert shoal("receipt", "verify", tmp_path / "error.receipt").code == 0
    return open_receipt(envelope)


def test_a_fault_while_running_is_a_signed_error_that_names_the_operator(node, tmp_path):
    (tmp_path / "gather.onnx").write_bytes(models.gather())
    np.save(tmp_path / "i.npy", np.array([0, 9]))
    error, unit, envelope = failed_job(
        node, tmp_path / "gather.onnx", f"--input=x={tmp_path}/i.npy"
    )
    assert error["code"] == "operator_failed"
    assert "look_up" in error["message"]
    assert "Gather" in error["message"]
    assert unit.failure.code == "operator_failed"
    receipt = verified(envelope, tmp_path)
    assert receipt.outputs is None
    assert (receipt.error.code, receipt.error.node, receipt.error.operator) == (
        "operator_failed",
        "look_up",
        "Gather",
    )


def test_a_unit_over_its_time_limit_is_a_signed_error_too(node, tmp_path, array):
    (tmp_path / "endless.onnx").write_bytes(models.slow(10**9))
    error, unit, envelope = failed_job(
        node, tmp_path / "endless.onnx", array(1), "--time-limit=0.3"
    )
    assert "0.3 s" in error["message"]
    assert unit.failure.code == "time_limit"
    assert verified(envelope, tmp_path).error.code == "time_limit"
    with node.client() as client:  # and the workers are good for the next one
        assert client.run(models.dense(), {"x": models.rows(1)})


def test_everything_that_commands_print_as_json_has_a_schema_version(node):
    for command in (
        ("status",),
        ("peers",),
        ("devices",),
        ("jobs",),
        ("doctor",),
        ("version",),
    ):
        ended = shoal(*command, "--json", node=None if command == ("version",) else node)
        assert json.loads(ended.stdout)["schema_version"] == 1, command
