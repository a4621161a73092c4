"""The command line: exit codes, errors and help."""

import json
import os
import subprocess
import sys

import pytest
from cli_in_process import home, shoal

from shoal.node.cli.output import (
    remember_place,
    runnable,
)

__all__ = ["home"]  # the fixture

COMMANDS = [
    *("init", "up", "down", "status", "peers", "devices", "identity"),
    *("invite", "join", "leave", "reload", "log-level"),
    *("run", "map", "jobs", "job", "receipt"),
    *("doctor", "bugreport", "demo", "completion", "version"),
]


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
        ["job", "forget"],
        ["jobs", "x"],
        ["receipt", "verify"],
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
    assert "`shoal job again 1a20 --units 0 1`" in err


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


def test_a_word_that_a_command_does_not_take_is_named(capsys):
    code, _, err = shoal(capsys, "pause", "gpu0")
    assert code == 2
    assert "`shoal pause` takes no argument gpu0" in err
    assert "`shoal pause --help`" in err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux's")  # noqa: PTH110
def test_a_full_disk_is_told_with_where_results_are():
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "shoal.node.cli", "version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "error: what was to be written found no room: No space left on device" in done.stderr
    assert "`shoal job fetch JOB --output DIR`" in done.stderr
    assert "who may use it" not in done.stderr


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
