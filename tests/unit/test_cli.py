"""The command line: exit codes, errors, help, and what works without a daemon."""

import io
import json
import subprocess
import sys

import msgspec
import numpy as np
import pytest
import safetensors.numpy

from shoal.compute.sandbox import Feature
from shoal.crypto import identity
from shoal.crypto.content import BlobId, blob_id_of
from shoal.crypto.envelope import Statement
from shoal.node.cli import main
from shoal.node.cli.arrays import InputError, OutputFiles, read_inputs
from shoal.node.cli.follow import DetachedError, follow
from shoal.node.cli.output import (
    duration_text,
    print_table,
    remember_place,
    runnable,
    size_text,
)
from shoal.node.errors import (
    ConfigError,
    DaemonError,
    DaemonUnreachableError,
    JobFailedError,
    WaitTimeoutError,
)
from shoal.node.records import Failure, Job, JobId, JobState, Policy
from shoal.protocol.codec import encode
from shoal.protocol.statements import Receipt

COMMANDS = [
    *("init", "up", "down", "status", "peers", "devices", "identity"),
    *("invite", "join", "leave", "reload", "log-level"),
    *("run", "map", "jobs", "job", "receipt"),
    *("doctor", "bugreport", "demo", "completion", "version"),
]
M = np.arange(12, dtype=np.float32).reshape(3, 4)
JOB = Job(
    id=JobId("1a20"),
    policy=Policy.RUN,
    program=BlobId("00" * 32),
    numeric_class="fp32",
    label="",
    state=JobState.RUNNING,
    created_at=0.0,
    ended_at=None,
    units_total=1,
    units_done=0,
    units_failed=0,
)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    for name in ("SHOAL_SOCKET", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def shoal(capsys, *arguments):
    """Run a command line in this process; gives its exit code, stdout and stderr."""
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


# --- exit codes and errors -------------------------------------------------------


def test_the_help_lists_every_command_with_a_sentence(capsys):
    code, out, _ = shoal(capsys, "--help")
    assert code == 0
    for command in COMMANDS:
        (line,) = [row for row in out.splitlines() if row.startswith(f"│ {command} ")]
        assert len(line.split()) > 4, line


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(capsys, command):
    code, out, _ = shoal(capsys, command, "--help")
    assert code == 0
    assert f"Usage: shoal {command}" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["statsu"],
        ["status", "--nope"],
        ["run"],
        ["run", "m.onnx"],
        ["job", "show"],
        ["jobs", "x"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2_and_says_what_was_wrong(capsys, arguments):
    code, out, err = shoal(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert "  next: " in err


def test_a_second_file_after_one_input_is_answered_with_what_to_write(capsys):
    code, _, err = shoal(capsys, "run", "m.onnx", "--input", "x=a.npy", "y=b.npy")
    assert code == 2
    assert "each input needs its own --input" in err
    assert "`--input y=b.npy`" in err
    _, _, err = shoal(capsys, "run", "m.onnx", "--input", "x=a.npy", "x=b.npy")
    assert err.startswith("error: input 'x' is given twice\n  next: ")


def test_units_that_are_no_numbers_are_answered_with_an_example(capsys):
    code, _, err = shoal(capsys, "job", "again", "1a20", "--units", "0-3")
    assert (code, "'0-3' is not the number of a unit" in err) == (2, True)
    assert "`shoal job again 1a20 --units 3 5`" in err


def test_units_without_rows_are_wrong_usage(capsys):
    code, _, err = shoal(capsys, "map", "m.onnx", "--input", "x=a.npy", "--batch", "0")
    assert (code, "--batch: a unit of 0 rows" in err) == (2, True)


def test_every_command_of_a_job_is_listed_with_a_sentence(capsys):
    out = shoal(capsys, "job", "--help")[1]
    (line,) = [row for row in out.splitlines() if row.startswith("│ why ")]
    assert len(line.split()) > 4
    assert "6 undecided" in " ".join(out.split())


def test_a_typing_error_is_answered_with_a_suggestion(capsys):
    assert 'Did you mean "status"?' in shoal(capsys, "statsu")[2]


@pytest.mark.parametrize(
    "arguments",
    [["status"], ["peers"], ["jobs"], ["job", "why", "x"]],
    ids=" ".join,
)
def test_no_daemon_exits_with_3_and_the_next_step(capsys, arguments):
    code, out, err = shoal(capsys, *arguments)
    assert (code, out) == (3, "")
    assert "error: no daemon answers on " in err
    assert "  next: start it with `shoal up`" in err


def test_with_no_daemon_down_does_not_say_to_start_one(capsys):
    code, out, err = shoal(capsys, "down")
    assert (code, out) == (3, "")
    assert err.startswith("error: no daemon runs")
    assert "  next: there is nothing to end" in err
    assert "`shoal up`" not in err


def test_a_hint_carries_the_home_and_the_socket_that_the_user_gave(capsys, tmp_path):
    place = ("--home", tmp_path / "a home", f"--socket={tmp_path}/s")
    _, out, err = shoal(capsys, "status", "--json", *place)
    wanted = f"start it with `shoal up --home '{tmp_path}/a home' --socket {tmp_path}/s`"
    assert json.loads(out)["error"]["hint"] == wanted
    assert wanted in err
    assert wanted in shoal(capsys, "doctor", *place)[1]
    assert "`shoal up`" in shoal(capsys, "status")[2]


@pytest.mark.parametrize("flags", [(), ("--home=x",), ("--socket=y", "--home=x")])
def test_only_commands_that_talk_to_the_daemon_get_its_place(flags):
    remember_place(flags)
    for text in (
        "`shoal run --help`",
        "`shoal down --home ITS`",
        "`shoal version`",
        "shoal up",
    ):
        assert runnable(text) == text
    assert "--socket" not in runnable("`shoal identity show`")
    remember_place(())


def test_the_command_comes_before_its_options(capsys):
    code, _, err = shoal(capsys, "--home", "X", "status")
    assert code == 2
    assert "  next: `shoal status --home X`" in err


def test_wrong_usage_of_a_command_leads_to_its_own_help(capsys):
    assert "`shoal job fetch --help`" in shoal(capsys, "job", "fetch", "x")[2]
    assert "`shoal run --help`" in shoal(capsys, "run")[2]


def test_a_typing_error_in_the_settings_is_a_warning_to_commands_and_an_error_to_up(
    capsys, home
):
    home.mkdir()
    (home / "config.toml").write_text("bootsrap = []\n")
    code, _, err = shoal(capsys, "status")
    assert code == 3
    assert err.startswith("warning: ")
    assert "next: did you mean 'bootstrap'?" in err
    assert shoal(capsys, "up")[0] == 2
    shoal(capsys, "identity", "show")  # makes no key
    code, out, _ = shoal(capsys, "doctor")
    assert code == 1
    lines = [line.split()[:2] for line in out.splitlines()]
    assert [words[1] for words in lines if words[:1] == ["failure"]] == ["settings", "daemon"]
    assert ["warning", "key"] in lines  # what needs no settings is looked at all the same
    assert out.splitlines()[-1].startswith("2 failures, ")


def test_with_json_an_error_is_an_object_on_stdout(capsys):
    code, out, _ = shoal(capsys, "status", "--json")
    told = json.loads(out)
    assert code == 3
    assert told["schema_version"] == 1
    assert told["error"]["code"] == "daemon_unreachable"
    assert told["error"]["hint"] == "start it with `shoal up`"


def test_a_bad_setting_exits_with_2(capsys):
    code, _, err = shoal(capsys, "up", "--cores", "many")
    assert code == 2
    assert '--cores: "many" is not a number of cores' in err


def test_a_home_that_cannot_be_used_exits_with_4(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = shoal(capsys, "up", "--home", tmp_path / "file" / "home")
    assert code == 4
    assert "cannot be used" in err


def test_what_is_no_receipt_and_a_directory_of_some_lead_to_the_next_step(capsys, tmp_path):
    (tmp_path / "a").write_text("no receipt")
    code, _, err = shoal(capsys, "receipt", "verify", tmp_path / "a")
    assert (code, "  next: `shoal receipt fetch JOB" in err) == (1, True)
    code, _, err = shoal(capsys, "receipt", "verify", tmp_path)
    assert (code, f"`shoal receipt verify {tmp_path}/*`" in err) == (1, True)


def test_a_missing_file_is_named(capsys):
    code, _, err = shoal(capsys, "receipt", "show", "nothing.receipt")
    assert code == 1
    assert "there is no file nothing.receipt" in err
    assert "`shoal receipt fetch JOB --output DIR`" in err


def test_receipts_to_verify_are_to_be_named(capsys):
    code, _, err = shoal(capsys, "receipt", "verify")
    assert code == 2
    assert "shoal receipt fetch" in err
    assert "shoal receipt fetch" in shoal(capsys, "receipt", "verify", "missing")[2]


# --- without a daemon ------------------------------------------------------------


def test_version_in_words_and_as_json(capsys):
    import shoal as package

    assert shoal(capsys, "version")[1].startswith(f"shoal {package.__version__}, protocol ")
    told = json.loads(shoal(capsys, "version", "--json")[1])
    assert (told["schema_version"], told["version"]) == (1, package.__version__)


def last_line_of(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


def test_the_errors_that_a_client_raises_are_public():
    import shoal as package

    for name in ("DaemonError", "DaemonUnreachableError", "JobFailedError", "WaitTimeoutError"):
        assert issubclass(getattr(package, name), package.ShoalError)
        assert name in dir(package)


def test_quick_commands_import_nothing_heavy():
    heavy = "numpy,onnx,onnxruntime,torch,httpx,trio,libp2p,starlette"
    code = (
        "import sys; from shoal.node.cli import main; main(['version'])\n"
        f"print([m for m in '{heavy}'.split(',') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_status_imports_neither_numpy_nor_onnx():
    code = (
        "import sys; from shoal.node.cli import main; main(['status'])\n"
        "print([m for m in ('numpy', 'onnx', 'torch', 'libp2p') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_init_makes_a_home_once_and_keeps_what_is_there(capsys, home):
    code, out, err = shoal(capsys, "init", "--name", "attic")
    assert code == 0
    assert "shoal up" in err
    assert 'name = "attic"' in (home / "config.toml").read_text()
    peer = json.loads(shoal(capsys, "init", "--json")[1])["peer"]
    assert peer in out
    code, _, err = shoal(capsys, "init", "--name", "cellar")
    assert code == 1
    assert "there are settings" in err
    assert 'name = "attic"' in (home / "config.toml").read_text()


def test_a_key_moves_to_another_home_under_a_passphrase(capsys, tmp_path, home):
    shoal(capsys, "init")
    secret = tmp_path / "secret"
    secret.write_text("open sesame\n")
    pem = tmp_path / "key.pem"
    assert (
        shoal(capsys, "identity", "export", "--output", pem, "--passphrase-file", secret)[0]
        == 0
    )
    assert pem.stat().st_mode & 0o777 == 0o600
    assert b"ENCRYPTED" in pem.read_bytes()
    other = ("--home", tmp_path / "other")
    code, _, err = shoal(capsys, "identity", "import", pem, *other)
    assert code == 4
    assert "passphrase" in err
    assert shoal(capsys, "identity", "import", pem, "--passphrase-file", secret, *other)[0] == 0
    shown = [
        json.loads(shoal(capsys, "identity", "show", "--json", *at)[1]) for at in ((), other)
    ]
    assert shown[0]["peer"] == shown[1]["peer"]


def test_a_key_is_imported_from_standard_input(capsys, tmp_path, monkeypatch):
    key = identity.generate()
    stdin = io.TextIOWrapper(io.BytesIO(key.export_pem()))
    monkeypatch.setattr("sys.stdin", stdin)
    assert shoal(capsys, "identity", "import", "-", "--home", tmp_path / "other")[0] == 0
    assert identity.load(tmp_path / "other" / "identity.key").seed == key.seed


def test_neither_a_key_nor_an_exported_file_is_overwritten(capsys, tmp_path, home):
    shoal(capsys, "init")
    pem = tmp_path / "key.pem"
    shoal(capsys, "identity", "export", "--output", pem)
    before = (home / "identity.key").read_bytes(), pem.read_bytes()
    assert "never overwritten" in shoal(capsys, "identity", "import", pem)[2]
    assert "never overwritten" in shoal(capsys, "identity", "export", "--output", pem)[2]
    assert before == ((home / "identity.key").read_bytes(), pem.read_bytes())


def receipt_bytes():
    own = identity.generate()
    receipt = Receipt(
        protocol=(1, 0),
        exact_spec="",
        award="11" * 32,
        unit="job/0",
        program="22" * 32,
        numeric_class="fp32",
        precision=None,
        inputs=(("x", "33" * 32),),
        outputs=(("y", "44" * 32),),
        error=None,
        trace=None,
        provider=own.peer_id,
        requester=own.peer_id,
        started_at_ms=1,
        ended_at_ms=2,
        device="cpu",
        runtime="r",
    )
    return own.sign(Statement.RECEIPT, encode(receipt))


def test_a_receipt_is_shown_and_verified_with_no_daemon(capsys, tmp_path):
    path = tmp_path / "a.receipt"
    path.write_bytes(receipt_bytes())
    code, out, _ = shoal(capsys, "receipt", "verify", path)
    assert code == 0
    assert out.startswith(f"valid  {path}  unit job/0, signed by 12D3KooW")
    shown = json.loads(shoal(capsys, "receipt", "show", path, "--json")[1])
    assert shown["id"] == blob_id_of(path.read_bytes())
    assert shown["receipt"]["outputs"] == [["y", "44" * 32]]
    assert "output y" in shoal(capsys, "receipt", "show", path)[1]


def test_a_changed_receipt_is_rejected_beside_a_good_one(capsys, tmp_path):
    good, bad = tmp_path / "good.receipt", tmp_path / "bad.receipt"
    good.write_bytes(receipt_bytes())
    data = good.read_bytes()
    bad.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    code, out, err = shoal(capsys, "receipt", "verify", good, bad)
    assert code == 1
    assert out.count("valid") == 1
    assert err.startswith(f"error: {bad}: ")
    told = json.loads(shoal(capsys, "receipt", "verify", good, bad, "--json")[1])
    assert [one["valid"] for one in told["receipts"]] == [True, False]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_the_commands_and_flags(capsys, shell):
    code, out, _ = shoal(capsys, "completion", shell)
    assert code == 0
    assert "receipt" in out
    assert "blob-quota" in out


def test_doctor_names_what_is_missing_and_the_next_step(capsys, home):
    code, out, _ = shoal(capsys, "doctor", "--json", "--socket", home / "no.sock")
    checks = {one["check"]: one for one in json.loads(out)["checks"]}
    assert code == 1
    assert checks["daemon"]["verdict"] == "failure"
    assert checks["daemon"]["hint"] == f"start it with `shoal up --socket {home}/no.sock`"
    assert checks["home"] == {
        "check": "home",
        "verdict": "warning",
        "message": f"{home} is not there yet",
        "hint": "run `shoal init`",
    }
    assert checks["worker"]["verdict"] == "ok"


def test_doctor_says_what_the_kernel_lacks_and_that_strangers_work_is_not_possible(
    capsys, home, monkeypatch
):
    missing = Feature("landlock", offered=False, message="not to be had", hint="boot with it")
    monkeypatch.setattr("shoal.compute.sandbox.features", lambda: (missing,))
    _, out, _ = shoal(capsys, "doctor", "--json", "--socket", home / "no.sock")
    checks = [one for one in json.loads(out)["checks"] if one["check"] == "sandbox"]
    assert [one["verdict"] for one in checks] == ["warning", "warning"]
    assert (checks[0]["message"], checks[0]["hint"]) == (
        "landlock: not to be had", "boot with it",
    )  # fmt: skip
    assert "strangers' work is not possible" in checks[1]["message"]


def test_doctor_says_that_strangers_work_is_possible_where_the_kernel_offers_all(
    capsys, home, monkeypatch
):
    there = Feature("landlock", offered=True, message="ABI 7")
    monkeypatch.setattr("shoal.compute.sandbox.features", lambda: (there,))
    out = shoal(capsys, "doctor", "--socket", home / "no.sock")[1]
    assert "landlock: ABI 7" in out
    assert "strangers' work is possible" in out


def test_doctor_names_a_variable_that_nothing_reads(capsys, monkeypatch):
    monkeypatch.setenv("SHOAL_BOOTSTRP", "x")
    assert "no setting reads the variable SHOAL_BOOTSTRP" in shoal(capsys, "doctor")[1]


# --- arrays ----------------------------------------------------------------------


@pytest.mark.parametrize("text", ["x", "=a.npy", "x="])
def test_an_input_of_another_form_is_a_usage_error(text):
    with pytest.raises(ConfigError, match="NAME=FILE") as caught:
        read_inputs([text])
    assert caught.value.code == "usage"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives_give_one_input_or_all_of_them(tmp_path, save):
    save(tmp_path / "a.npz", x=np.arange(3), y=np.zeros((2, 0)), z=np.asfortranarray(M))
    safetensors.numpy.save_file({"x": np.arange(3), "z": M}, tmp_path / "a.safetensors")
    for file in (tmp_path / "a.npz", tmp_path / "a.safetensors"):
        found = read_inputs([str(file)])
        assert isinstance(found["z"], np.memmap)  # never read whole
        np.testing.assert_array_equal(found["z"], M)
        np.testing.assert_array_equal(read_inputs([f"x={file}"])["x"], np.arange(3))
        with pytest.raises(InputError, match="none is 'w'") as caught:
            read_inputs([f"w={file}"])
        assert str(file) in caught.value.message
    assert read_inputs([str(tmp_path / "a.npz")])["y"].shape == (2, 0)


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", bytes(200), b"PK\3\4" + bytes(90)])
def test_an_archive_that_is_none_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name.replace(".", r"\.")) as caught:
        read_inputs([str(tmp_path / name)])
    assert "write it with" in caught.value.hint


def test_an_archive_that_was_cut_off_is_named(tmp_path):
    safetensors.numpy.save_file({"x": np.arange(300)}, tmp_path / "whole")
    np.savez(tmp_path / "whole.npz", x=np.arange(300))
    for whole, cut in (("whole", "cut.safetensors"), ("whole.npz", "cut.npz")):
        (tmp_path / cut).write_bytes((tmp_path / whole).read_bytes()[:-800])
        with pytest.raises(InputError, match="cut"):
            read_inputs([str(tmp_path / cut)])


def test_text_is_no_input(tmp_path):
    np.save(tmp_path / "a.npy", np.array(["some", "words"]))
    with pytest.raises(InputError, match=r"a\.npy holds <U5") as caught:
        read_inputs([f"x={tmp_path}/a.npy"])
    assert "tokenizer" in caught.value.hint


@pytest.mark.parametrize("file_format", ["npz", "safetensors"])
def test_outputs_are_put_together_in_one_file(tmp_path, file_format):
    with OutputFiles(tmp_path, file_format) as files:
        for count in (3, 1):
            files.append({"a/b": np.full((count, 2), count, np.float32), "s": np.int8(count)})
        written = files.finish()
    (path,) = tmp_path.iterdir()  # nothing else stays
    assert {one["path"] for one in written.values()} == {str(path)}
    load = np.load if file_format == "npz" else safetensors.numpy.load_file
    found = load(path)
    np.testing.assert_array_equal(found["a/b"][:, 0], np.float32([3, 3, 3, 1]))
    np.testing.assert_array_equal(found["s"], np.int8([3, 1]))
    assert written["a/b"]["shape"] == [4, 2]


def test_an_output_that_names_a_file_is_refused_before_the_job(capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    for name in ("file", "a.npy"):
        for command in (["run", "m.onnx", "--input", "x=a.npy"], ["job", "fetch", "J"]):
            code, _, err = shoal(capsys, *command, "--output", tmp_path / name)
            assert code == 2
            assert f"--output is a directory, and {tmp_path / name} is a file" in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "flags",
    [
        *(("--time-limit", value) for value in ("-1", "0", "nan", "1e9")),
        *(("--timeout", value) for value in ("-1", "nan")),
        ("--class", "int8"),
        ("--class", "low"),
        ("--priority", "5"),
        ("--memory-limit", "much"),
        ("--job-id", "1a20"),
        ("--proofs", "friends"),
        ("--proofs", "private"),
        ("--proofs", "private", "--class", "exact", "--verify", "receipt"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("command", ["run", "map"])
def test_a_limit_that_no_unit_can_have_is_a_usage_error(capsys, command, flags):
    code, _, err = shoal(capsys, command, "m.onnx", "--input", "x=a.npy", *flags)
    assert code == 2
    assert err.startswith(f"error: {flags[0]}: ")
    assert "  next: " in err


def test_an_input_given_twice_is_a_usage_error(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(ConfigError, match="twice"):
        read_inputs([f"x={tmp_path}/a.npy"] * 2)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY\x01\x00\xff\xff"])
def test_an_input_that_is_no_array_is_named(tmp_path, content):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.npy") as caught:
        read_inputs([f"x={path}"])
    assert caught.value.code == "bad_npy"


def test_an_input_of_pickled_objects_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(InputError):
        read_inputs([f"x={tmp_path}/a.npy"])


def test_outputs_are_put_together_row_by_row(tmp_path):
    with OutputFiles(tmp_path / "out") as files:
        for count in (3, 3, 1):
            files.append(
                {"a/b": np.full((count, 2), count, np.float32), "s": np.float64(count)}
            )
        written = files.finish()
    assert written["a/b"]["shape"] == [7, 2]
    np.testing.assert_array_equal(
        np.load(tmp_path / "out" / "a_b.npy")[:, 0], np.float32([3, 3, 3, 3, 3, 3, 1])
    )
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "s.npy"), [3, 3, 1])


def test_one_unit_keeps_its_shape(tmp_path):
    with OutputFiles(tmp_path) as files:
        files.append({"s": np.array(2.5), "e": np.zeros((0, 3), np.int8)})
        files.finish()
    assert np.load(tmp_path / "s.npy").shape == ()
    assert np.load(tmp_path / "e.npy").shape == (0, 3)


def test_an_output_cannot_leave_its_directory_nor_take_anothers_name(tmp_path):
    names = ["../../x", "/etc/passwd", "..", "a/b", "a_b", "x" * 300]
    with OutputFiles(tmp_path / "out") as files:
        files.append({name: np.array([index]) for index, name in enumerate(names)})
        written = files.finish()
    assert len(list((tmp_path / "out").iterdir())) == len(names)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    for index, name in enumerate(names):
        assert np.load(written[name]["path"]) == [index]


def test_nothing_half_written_remains_after_an_error(tmp_path):
    with OutputFiles(tmp_path) as files:
        files.append({"y": np.zeros((2, 3))})
        with pytest.raises(InputError, match="do not make one array"):
            files.append({"y": np.zeros((2, 4))})
    assert list(tmp_path.iterdir()) == []


# --- following a job -------------------------------------------------------------


class Waiting:
    """Stands for a client's `wait` and `why` alone."""

    def __init__(self, answer):
        self.answer = answer
        self.asked_why = 0

    def why(self, job_id):
        self.asked_why += 1
        return [], "one\ntwo\nthree\nfour"

    def wait(self, job_id, timeout_s):
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def test_ctrl_c_lets_the_job_go_on_and_says_how_to_come_back():
    with pytest.raises(DetachedError) as caught:
        follow(Waiting(KeyboardInterrupt()), JOB)
    assert (caught.value.code, caught.value.hint) == (
        "interrupted",
        "come back with `shoal job wait 1a20`, or end it with `shoal job cancel 1a20`",
    )


def test_a_daemon_that_ends_meanwhile_keeps_the_job_and_that_is_said():
    with pytest.raises(DaemonUnreachableError) as caught:
        follow(Waiting(DaemonUnreachableError("it is gone")), JOB)
    assert "it is gone; job 1a20 is kept" in caught.value.message
    assert caught.value.hint == "`shoal up`, then `shoal job wait 1a20`"


def test_a_job_over_its_time_raises_the_time_out():
    with pytest.raises(WaitTimeoutError, match="job 1a20 still runs after 0 s"):
        follow(Waiting(JOB), JOB, timeout_s=0)


def test_a_job_that_makes_no_progress_says_why_once(capsys, monkeypatch):
    monkeypatch.setattr("shoal.node.cli.follow.NO_PROGRESS_S", 0.01)
    client = Waiting(JOB)
    with pytest.raises(WaitTimeoutError):
        follow(client, JOB, timeout_s=0.1)
    assert client.asked_why == 1
    assert capsys.readouterr().err.splitlines() == [
        *("one", "two", "three"),
        "  next: `shoal job why 1a20` tells more; Ctrl-C lets the job go on",
    ]


def test_a_job_that_makes_progress_is_not_explained(capsys, monkeypatch):
    monkeypatch.setattr("shoal.node.cli.follow.NO_PROGRESS_S", 60)
    with pytest.raises(WaitTimeoutError):
        follow(Waiting(JOB), JOB, timeout_s=0.05)
    assert capsys.readouterr().err == ""


def test_off_a_terminal_a_line_tells_of_progress_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr("shoal.node.cli.follow.LINE_INTERVAL_S", 0.0)
    job = msgspec.structs.replace(JOB, units_done=40, units_failed=2, units_total=250)
    with pytest.raises(WaitTimeoutError):
        follow(Waiting(job), JOB, timeout_s=0.01)
    assert "running: 42 of 250 units after " in capsys.readouterr().err


def test_a_failed_job_raises_its_failure():
    failed = msgspec.structs.replace(
        JOB, state=JobState.FAILED, failure=Failure("no_bids", "nobody bid", "wait")
    )
    with pytest.raises(JobFailedError, match="nobody bid"):
        follow(Waiting(failed), JOB)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DetachedError("detached"), 130),
        (KeyboardInterrupt(), 130),
        (WaitTimeoutError("late"), 5),
        (JobFailedError("failed"), 1),
        (PermissionError(13, "Permission denied", "f"), 4),
    ],
)
def test_each_way_to_end_has_its_exit_code(capsys, monkeypatch, error, code):
    from shoal.node.cli.options import Daemon

    def fail(self):
        raise error

    monkeypatch.setattr(Daemon, "client", fail)
    assert shoal(capsys, "status")[0] == code


def test_a_reader_that_has_seen_enough_is_no_error():
    command = [sys.executable, "-m", "shoal.node.cli", "completion", "bash"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdout.close()
        assert (child.stderr.read(), child.wait()) == (b"", 0)


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [
        (0.0312, "31 ms"),
        (3.21, "3.2 s"),
        (125, "2 min 5 s"),
        (7500, "2 h 5 min"),
        (2e5, "2 d 7 h"),
    ],
)
def test_durations_are_told_as_people_tell_them(duration_s, text):
    assert duration_text(duration_s) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1500, "1.5 kB"), (20e9, "20.0 GB"), (3e15, "3000.0 TB")],
)
def test_sizes_are_told_as_people_tell_them(size_bytes, text):
    assert size_text(size_bytes) == text


def test_what_a_peer_wrote_cannot_move_the_terminals_cursor(capsys):
    print_table(["DETAIL"], [["evil\x1b[2J\x07\r\nline"]])
    assert capsys.readouterr().out == "DETAIL\nevil\ufffd[2J\ufffd\ufffd line\n"


class Ended(Waiting):
    """Stands for a client whose one job has ended."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def job(self, job_id):
        return self.answer


@pytest.mark.parametrize(("units_done", "told"), [(3, True), (0, False)])
def test_what_is_done_of_a_cancelled_job_can_be_fetched_and_is_said_to_be(
    capsys, monkeypatch, tmp_path, units_done, told
):
    job = msgspec.structs.replace(
        JOB, state=JobState.CANCELLED, units_total=9, units_done=units_done
    )
    monkeypatch.setattr("shoal.node.cli.options.Daemon.client", lambda _: Ended(job))
    code, _, err = shoal(capsys, "job", "fetch", "1a20", "--output", tmp_path)
    assert code == 1
    assert "job 1a20 was cancelled" in err
    assert ("`shoal job fetch 1a20 --output DIR --unit N`" in err) is told


class Open(Ended):
    """Stands for a client whose one job is open."""

    def jobs(self, limit):
        return [self.answer]

    def seal(self, job_id):
        return msgspec.structs.replace(self.answer, open=False)


def test_an_open_job_is_shown_as_open_with_the_ways_to_end_it(capsys, monkeypatch):
    job = msgspec.structs.replace(JOB, state=JobState.RUNNING, open=True)
    monkeypatch.setattr("shoal.node.cli.options.Daemon.client", lambda _: Open(job))
    code, out, err = shoal(capsys, "jobs")
    assert (code, " open " in out) == (0, True)
    assert "`shoal job seal 1a20`" in err
    assert "`shoal job cancel 1a20`" in err
    code, out, _ = shoal(capsys, "job", "seal", "1a20")
    assert code == 0
    assert "state    running\n" in out
    ended = msgspec.structs.replace(job, state=JobState.CANCELLED)
    monkeypatch.setattr("shoal.node.cli.options.Daemon.client", lambda _: Open(ended))
    assert " cancelled " in shoal(capsys, "jobs")[1]


class Interrupted(Open):
    """Its user presses Ctrl-C while units are handed over, or results are fetched."""

    there = True

    def submit(self, *_arguments, **options):
        self.chosen = options["id"]
        raise KeyboardInterrupt

    def cancel(self, job_id):
        assert job_id == self.chosen
        if isinstance(self.there, Exception):
            raise self.there

    def results(self, job_id, *, ordered):
        raise KeyboardInterrupt


def test_ctrl_c_says_what_becomes_of_the_job_wherever_it_comes(capsys, monkeypatch, tmp_path):
    np.save(tmp_path / "x.npy", M)
    done = msgspec.structs.replace(JOB, state=JobState.DONE)
    monkeypatch.setattr("shoal.node.cli.options.Daemon.client", lambda _: Interrupted(done))
    run = ("run", "m.onnx", "--input", f"x={tmp_path}/x.npy", "--job-id", "1a2" * 9)
    code, _, err = shoal(capsys, *run)
    assert (code, f"job {'1a2' * 9} was handed over; it is cancelled" in err) == (130, True)
    none = DaemonError("there is no job", code="no_such_job", status=404)
    monkeypatch.setattr(Interrupted, "there", none)
    code, _, err = shoal(capsys, *run)
    assert (code, "was handed over; nothing of it goes on" in err) == (130, True)
    monkeypatch.setattr(Interrupted, "there", DaemonUnreachableError("it is gone"))
    code, _, err = shoal(capsys, *run)
    assert (code, "may have been handed over, and go on" in err) == (130, True)
    assert f"`shoal job cancel {'1a2' * 9}` ends it" in err
    code, _, err = shoal(capsys, "job", "fetch", "1a20", "--output", tmp_path / "out")
    assert (code, "the outputs of job 1a20 are kept" in err) == (130, True)
    assert "`shoal job fetch 1a20" in err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("state", [JobState.DONE, JobState.FAILED, JobState.CANCELLED])
def test_to_cancel_a_job_that_has_ended_changes_nothing_and_says_so(capsys, monkeypatch, state):
    job = msgspec.structs.replace(JOB, state=state)
    monkeypatch.setattr("shoal.node.cli.options.Daemon.client", lambda _: Ended(job))
    code, out, err = shoal(capsys, "job", "cancel", "1a20")
    assert code == 0
    assert f"state    {state}" in out
    assert err == "job 1a20 had ended already; nothing was changed\n"


class Screen(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("columns", "shown"), [("200", "12D3KooWAdBtZE2gUu"), ("20", "…BtZE2gUu")]
)
def test_ids_are_shortened_where_the_terminal_is_too_narrow(monkeypatch, columns, shown):
    screen = Screen()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("COLUMNS", columns)
    print_table(["UNIT", "PROVIDER"], [[0, "12D3KooWAdBtZE2gUu"], [1, "-"]], ids=["PROVIDER"])
    assert screen.getvalue().splitlines()[1:] == [f"0     {shown}", "1     -"]


def test_ids_are_whole_where_a_program_reads_them(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "20")
    print_table(["PROVIDER"], [["12D3KooWAdBtZE2gUu"]], ids=["PROVIDER"])
    assert "12D3KooWAdBtZE2gUu" in capsys.readouterr().out
