"""What a person reads at the end of the demo, and what a program does."""

import json
import sys
from dataclasses import replace

import pytest

from shoal.crypto import identity
from shoal.crypto.content import blob_id_of
from shoal.node.demo.account import Share
from shoal.node.demo.conviction import Caught
from shoal.node.demo.report import (
    LabelledFile,
    LeftOut,
    Report,
    Totals,
    print_report,
    shoal_command,
    short,
)

REQUESTER, PROVIDER, KILLED, LIAR = (identity.generate().peer_id for _ in range(4))
REPORT = Report(
    root="/checkout",
    model="standard_v3_3",
    program=blob_id_of(b"program"),
    job="job",
    nodes=(
        Share(REQUESTER, "requester and provider", False, 2, 2, 2, 1.5),
        Share(PROVIDER, "provider", False, 2, 2, 2, 1.25),
        Share(KILLED, "provider, killed half-way", True, 1, 1, 1, 0.5),
    ),
    killed=None,
    totals=Totals(
        files=5, files_of_model=5, units=5, receipts_verified=5, labels_equal=6, labels=6
    ),
    files=tuple(
        LabelledFile(f"{number}.py", "python", "Python source", PROVIDER) for number in range(5)
    ),
    without_model=(LabelledFile("empty", "empty", "Empty file", None),),
    left_out=(LeftOut("link", "a link"),),
    more_files=False,
    problems=(),
    receipts_at="/receipts",
    seconds=12.0,
    liar=Caught(
        peer=LIAR,
        units=32,
        false=3,
        checked_by=(REQUESTER, PROVIDER),
        finding="an operator gave other bits.",
        proof="/proof/liar.proof",
        verdict="convicted",
        command="shoal proof verify /proof/liar.proof",
    ),
)


def printed(capsys, report, *, as_json=False):
    print_report(report, as_json=as_json)
    return capsys.readouterr().out


def test_a_person_reads_who_did_what_and_how_it_was_checked(capsys):
    out = printed(capsys, REPORT)
    assert "5 of 5 files labelled: none lost, none twice" in out
    assert "5 of 5 receipts verified offline" in out
    assert "6 of 6 labels equal magika's own" in out
    assert "Labelled by magika without its model: 1" in out
    assert "Not looked at: 1" in out
    assert "requester and provider" in out
    assert "killed half-way" in out
    assert "no provider was killed" in out
    assert "Python source" in out
    assert f"{shoal_command()} receipt verify /receipts/*.receipt" in out
    assert "\x1b" not in out  # no terminal, no colours


def test_a_command_is_shown_as_it_can_be_typed_again(tmp_path, monkeypatch):
    script = tmp_path / "bin" / "shoal"
    script.parent.mkdir()
    script.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(script), "demo"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shoal_command() == str(script)
    monkeypatch.setenv("PATH", str(script.parent))
    assert shoal_command() == "shoal"
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "__main__.py"), "demo"])
    assert shoal_command() == f"{sys.executable} -m shoal.node.cli"


def test_a_person_reads_of_the_liar_and_how_to_see_it_again(capsys):
    out = printed(capsys, REPORT)
    assert f"{short(LIAR)} lied: one bit of each result that it gave was false" in out
    assert f"3 results of it ran again at the requester itself and {short(PROVIDER)}" in out
    assert "It is convicted and banned: an operator gave other bits." in out
    assert "\n    shoal proof verify /proof/liar.proof\n" in out
    once = printed(capsys, replace(REPORT, liar=replace(REPORT.liar, false=1)))
    assert "1 result of it ran again" in once


@pytest.mark.parametrize("liar", [None, Caught(peer=LIAR)])
def test_of_a_liar_that_was_not_convicted_nothing_is_claimed(capsys, liar):
    assert "lied" not in printed(capsys, replace(REPORT, liar=liar))


def test_what_does_not_add_up_is_all_that_is_said_of_the_sums(capsys):
    out = printed(capsys, replace(REPORT, problems=("a receipt is missing",)))
    assert "✗ a receipt is missing" in out
    assert "none lost" not in out


def test_a_program_reads_the_same_as_one_object(capsys):
    read = json.loads(printed(capsys, REPORT, as_json=True))
    assert (read["schema_version"], read["ok"]) == (1, True)
    assert read["liar"]["proof"] == "/proof/liar.proof"
    assert [file["path"] for file in read["files"]] == [f"{n}.py" for n in range(5)]
    assert not json.loads(printed(capsys, replace(REPORT, problems=("x",)), as_json=True))["ok"]
