"""What a user or an operator can get wrong on one machine.

Each is one clear error that names the cause and the next step, with the right
exit code; the daemon stays up and nothing half-written remains.
"""

import json
import os

import models
import numpy as np
import pytest
from daemons import curl, shoal

from shoal.node.config import load

ANY_PORT = "--listen=/ip4/127.0.0.1/tcp/0"


def assert_one_clear_error(ended, code, *words):
    """A sentence with all of ``words``, then the next step, and no more."""
    assert ended.code == code, ended
    assert ended.stdout == ""
    assert ended.stderr.count("error: ") == 1, ended.stderr
    assert ended.stderr.startswith("error: "), ended.stderr
    assert "\n  next: " in ended.stderr, ended.stderr
    for word in words:
        assert word in ended.stderr, ended.stderr


@pytest.fixture
def unhurt(node):
    """The daemon, which must be well at the end, with no job begun and no file half-written."""
    with node.client() as client:
        before = client.jobs(1)
    yield node
    with node.client() as client:
        assert client.status().peer == node.peer
        assert client.jobs(1) == before
    for place in ("tmp", "partial"):
        assert not list((node.home / "blobs" / place).iterdir())
    assert not [p for p in node.home.iterdir() if p.name.startswith((".", "tmp"))]


# --- starting a daemon ----------------------------------------------------------------


def test_a_second_daemon_on_one_home_is_refused(unhurt):
    ended = shoal("up", ANY_PORT, node=unhurt)
    assert_one_clear_error(ended, 1, f"process {unhurt.process.pid}", "shoal down", "--home")


def test_a_second_daemon_on_one_port_is_refused(unhurt, tmp_path):
    place = unhurt.address.rpartition("/p2p/")[0]
    for detach in ((), ("--detach",)):
        # Of a bulk port that somebody else has by chance there would be a line too.
        flags = (f"--home={tmp_path}/home", f"--listen={place}", "--bulk=off", *detach)
        ended = shoal("up", *flags)
        assert_one_clear_error(ended, 1, place, "--listen", "`shoal down --home ITS_HOME`")
        assert ended.stderr.count("next: ") == 1
    assert not (tmp_path / "home" / "shoal.sock").exists()


def test_a_file_where_the_socket_should_be_is_left_as_it_is(tmp_path):
    (tmp_path / "notes").write_text("mine")
    ended = shoal("up", f"--home={tmp_path}/home", f"--socket={tmp_path}/notes", ANY_PORT)
    assert_one_clear_error(ended, 1, str(tmp_path / "notes"), "not a socket", "--socket")
    assert (tmp_path / "notes").read_text() == "mine"


def test_a_home_below_a_file_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("mine")
    ended = shoal("up", f"--home={tmp_path}/file/home", ANY_PORT)
    assert_one_clear_error(ended, 4, f"{tmp_path}/file/home", "Not a directory", "--home")


def test_a_home_that_cannot_be_written_to_cannot_be_used(tmp_path):
    if os.geteuid() == 0:
        home = "/sys/kernel"  # root may write wherever a file system lets anybody
    else:
        home = tmp_path
        home.chmod(0o500)
    ended = shoal("up", f"--home={home}", ANY_PORT)
    assert_one_clear_error(ended, 4, str(home), "--home or SHOAL_HOME")


def test_a_setting_that_does_not_exist_is_named_and_one_that_does_is_offered(tmp_path):
    (tmp_path / "config.toml").write_text("bootstrp = []\n")
    ended = shoal("up", f"--home={tmp_path}", ANY_PORT)
    assert_one_clear_error(ended, 2, "config.toml", "'bootstrp'", "'bootstrap'")
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


def test_a_typing_error_in_the_settings_keeps_nobody_from_the_daemon_that_runs(unhurt):
    settings = unhurt.home / "config.toml"
    settings.write_text("bootstrp = []\n")
    try:
        ended = shoal("status", node=unhurt)
        told = shoal("status", f"--socket={unhurt.socket}", node=unhurt)
    finally:
        settings.unlink()
    assert ended.code == told.code == 0, ended
    assert unhurt.peer in ended.stdout
    assert ended.stderr.startswith("warning: ")
    assert told.stderr == ""


def test_a_daemon_on_another_socket_is_found_by_its_home_or_told(stranger, tmp_path):
    told = shoal("status", f"--socket={tmp_path}/none", node=stranger)
    assert_one_clear_error(told, 3, "but not on the socket", str(stranger.socket))
    assert shoal("down", node=stranger).code == 0
    elsewhere = f"--socket={tmp_path}/s"
    started = shoal("up", "--detach", ANY_PORT, elsewhere, node=stranger)
    assert started.code == 0, started
    found = shoal("status", "--json", node=stranger)
    assert found.code == 0, found
    assert found.json["socket"] == f"{tmp_path}/s"
    again = shoal("up", "--detach", ANY_PORT, node=stranger)
    assert_one_clear_error(again, 1, str(found.json["pid"]), "shoal down")


def test_a_key_that_others_can_read_is_refused(tmp_path):
    assert shoal("init", f"--home={tmp_path}").code == 0
    key = load({"home": tmp_path}, environment={}).key_path
    key.chmod(0o644)
    ended = shoal("up", f"--home={tmp_path}", ANY_PORT)
    assert_one_clear_error(ended, 4, str(key), "0644", f"chmod 600 {key}")


def test_a_command_without_a_daemon_says_how_to_start_one(tmp_path):
    ended = shoal("status", f"--home={tmp_path}")
    assert_one_clear_error(ended, 3, "no daemon answers", "shoal up")
    as_json = shoal("status", "--json", f"--home={tmp_path}")
    assert as_json.code == 3
    assert as_json.json["error"]["code"] == "daemon_unreachable"


def test_a_command_line_that_makes_no_sense_is_a_usage_error():
    for arguments, help_of in (
        (("frobnicate",), "shoal --help"),
        (("run",), "shoal run --help"),
        (("status", "--nonsense"), "shoal status --help"),
    ):
        assert_one_clear_error(shoal(*arguments), 2, help_of)


# --- models and inputs ------------------------------------------------------------------

MODELS = [
    pytest.param(b"", ("empty_model", "0 bytes"), id="0 bytes"),
    pytest.param(b"not a model at all", ("malformed_model", "protobuf"), id="no model"),
    pytest.param(
        models.with_custom_domain(), ("custom_domain", "com.example"), id="a custom domain"
    ),
    pytest.param(
        models.with_external_data("../../etc/passwd"),
        ("external_data", "../../etc/passwd"),
        id="external data",
    ),
]

INPUTS = [
    pytest.param(
        "x", models.rows(2)[:, :3], ("wrong_shape", ", 3], and float32[n, 4]"), id="shape"
    ),
    pytest.param("x", models.rows(2).astype("int32"), ("wrong_dtype", "int32"), id="dtype"),
    pytest.param("z", models.rows(2), ("unknown_input", "'z'"), id="an unknown input"),
]


@pytest.mark.parametrize(("model", "wanted"), MODELS)
def test_a_model_that_is_no_program_is_refused_by_the_command_line(
    unhurt, tmp_path, model, wanted
):
    (tmp_path / "m.onnx").write_bytes(model)
    np.save(tmp_path / "x.npy", models.rows(1))
    flags = (tmp_path / "m.onnx", f"--input=x={tmp_path}/x.npy")
    assert_one_clear_error(shoal("run", *flags, node=unhurt), 1, wanted[1])


@pytest.mark.parametrize(("model", "wanted"), MODELS)
def test_a_model_that_is_no_program_is_refused_over_http(unhurt, tmp_path, model, wanted):
    (tmp_path / "m.onnx").write_bytes(model)
    status, body = curl(
        unhurt, "--data-binary", f"@{tmp_path}/m.onnx", "http://shoal/v1/programs"
    )
    assert_refused(status, body, *wanted)


def assert_refused(status, body, code, word):
    error = json.loads(body)["error"]
    assert 400 <= status < 500
    assert error["code"] == code
    assert word in error["message"]
    assert error["hint"]


@pytest.mark.parametrize(("name", "array", "wanted"), INPUTS)
def test_an_input_that_does_not_fit_is_refused_by_the_command_line(
    unhurt, tmp_path, name, array, wanted
):
    (tmp_path / "m.onnx").write_bytes(models.dense())
    np.save(tmp_path / "a.npy", array)
    flags = (tmp_path / "m.onnx", f"--input={name}={tmp_path}/a.npy")
    for command in ("run", "map"):
        assert_one_clear_error(shoal(command, *flags, node=unhurt), 1, wanted[1])


@pytest.mark.parametrize(
    ("name", "array", "wanted"),
    [*INPUTS, pytest.param(None, None, ("missing_input", "'x'"), id="a missing input")],
)
def test_an_input_that_does_not_fit_is_refused_over_http(unhurt, tmp_path, name, array, wanted):
    unit = {}
    if name is not None:
        np.save(tmp_path / "a.npy", array)
        _, body = curl(unhurt, "-T", tmp_path / "a.npy", "http://shoal/v1/tensors")
        unit = {name: json.loads(body)["tensors"]["tensor"]}
    with unhurt.client() as client:
        program = client.prepare(models.dense()).program_id
    spec = {"policy": "run", "program": program, "units": [unit]}
    status, body = curl(unhurt, "-d", json.dumps(spec), "http://shoal/v1/jobs")
    assert_refused(status, body, *wanted)


def test_files_that_are_not_there_are_named(unhurt, tmp_path):
    (tmp_path / "m.onnx").write_bytes(models.dense())
    np.save(tmp_path / "x.npy", models.rows(1))
    missing = tmp_path / "missing"
    for model, array in ((missing, tmp_path / "x.npy"), (tmp_path / "m.onnx", missing)):
        ended = shoal("run", model, f"--input=x={array}", node=unhurt)
        assert_one_clear_error(ended, 1, str(missing))
