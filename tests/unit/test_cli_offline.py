"""Commands that need no daemon: keys, receipts, completion, and the doctor without one."""

import io
import json
import subprocess
import sys

import pytest
from cli_in_process import home, shoal

from shoal.compute.sandbox import Feature
from shoal.crypto import identity
from shoal.crypto.content import blob_id_of
from shoal.crypto.envelope import Statement
from shoal.protocol.codec import encode
from shoal.protocol.statements import Receipt

__all__ = ["home"]  # the fixture


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
