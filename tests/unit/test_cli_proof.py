"""``shoal proof verify`` and ``show``, with no daemon anywhere."""

import json
import subprocess
import sys

import pytest
from fraud_samples import BOB, Accused, blobs_for, data_of, lying, proof_against, small
from fraud_samples import bit_flipped as flipped

from shoal.compute import accusing
from shoal.node.cli import main


def written(tmp_path, proof, blobs):
    for blob_id, blob in blobs.items():
        (tmp_path / blob_id).write_bytes(blob)
    path = tmp_path / "it.proof"
    path.write_bytes(data_of(proof))
    return path


@pytest.fixture
def lie():
    sample = small()
    with lying("biased", flipped):
        leaves = sample.leaves()
    return proof_against(Accused(sample, leaves))


def test_a_proof_that_convicts_exits_with_0(tmp_path, capsys, lie):
    assert main(["proof", "verify", str(written(tmp_path, *lie))]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"convicted  {BOB.peer_id}\n")
    assert "gives other outputs" in said


def test_it_runs_in_a_process_of_its_own_with_no_home(tmp_path, lie):
    path = written(tmp_path, *lie)
    command = [sys.executable, "-m", "shoal.node.cli", "proof", "verify", str(path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"]["outcome"] == "convicted"


def test_a_proof_that_acquits_exits_with_1(tmp_path, capsys):
    sample = small()
    honest = Accused(sample, sample.leaves())
    proof = accusing.unit_proof(honest.award, honest.receipt)
    path = written(tmp_path, proof, blobs_for(sample, proof))
    assert main(["proof", "verify", str(path), "--json"]) == 1
    verdict = json.loads(capsys.readouterr().out)["verdict"]
    assert (verdict["outcome"], verdict["accused"]) == ("acquitted", BOB.peer_id)


def test_without_its_blobs_a_proof_exits_with_6_and_names_one(tmp_path, capsys, lie):
    proof, _ = lie
    (empty := tmp_path / "empty").mkdir()
    path = written(tmp_path, *lie)
    assert main(["proof", "verify", str(path), "--blobs", str(empty)]) == 6
    assert proof.blobs[0] in capsys.readouterr().out


@pytest.mark.parametrize("data", [b"nonsense", b"\x80" * 200_000])
def test_what_is_no_proof_exits_with_1(tmp_path, capsys, data):
    path = tmp_path / "it.proof"
    path.write_bytes(data)
    assert main(["proof", "verify", str(path)]) == 1
    said = capsys.readouterr()
    assert (said.out, f"{path} is no valid fraud proof" in said.err) == ("", True)
    assert "next: `shoal proof list` shows" in said.err
    assert main(["proof", "show", str(path)]) == 1


def test_a_file_that_is_not_there_says_what_to_do(tmp_path, capsys):
    assert main(["proof", "verify", str(tmp_path / "none")]) == 1
    assert "shoal proof export" in capsys.readouterr().err


def test_show_says_who_is_accused_of_what(tmp_path, capsys, lie):
    path = written(tmp_path, *lie)
    assert main(["proof", "show", str(path)]) == 0
    said = capsys.readouterr().out
    assert BOB.peer_id in said
    assert "2 of 7" in said or "of 7" in said
    assert main(["proof", "show", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["proof"]["kind"] == "operator"
