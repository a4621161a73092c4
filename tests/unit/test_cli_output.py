"""What commands print: tables, sizes and times, on a terminal or to a program."""

import io
import subprocess
import sys

import pytest
from cli_in_process import home

from shoal.node.cli.output import (
    duration_text,
    print_table,
    size_text,
)

__all__ = ["home"]  # the fixture


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
