"""Logs: one form for our modules and for libraries; JSON off a terminal."""

import io
import json
import logging

import pytest
import structlog

from shoal.node.logs import set_up_logs


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def as_before():
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.getLogger("shoal").level
    yield
    root.handlers[:], level, shoal_level = before
    root.setLevel(level)
    logging.getLogger("shoal").setLevel(shoal_level)
    structlog.reset_defaults()


def lines_of(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_off_a_terminal_each_line_is_json_from_ours_and_from_libraries():
    stream = io.StringIO()
    set_up_logs("info", stream)
    structlog.get_logger("shoal.node.jobs").info("job ended", job="1a", units=3)
    logging.getLogger("libp2p.host").warning("lost %s", "x")
    ours, theirs = lines_of(stream)
    assert (ours["message"], ours["job"], ours["units"]) == ("job ended", "1a", 3)
    assert (ours["level"], ours["logger"]) == ("info", "shoal.node.jobs")
    assert (theirs["message"], theirs["level"]) == ("lost x", "warning")
    assert ours["timestamp"].endswith("Z")


def test_libraries_speak_from_warning_on_and_ours_from_the_level_set():
    stream = io.StringIO()
    set_up_logs("debug", stream)
    logging.getLogger("libp2p.host").info("noise")
    structlog.get_logger("shoal.node").debug("detail")
    assert [line["message"] for line in lines_of(stream)] == ["detail"]


def test_a_traceback_stays_within_its_line():
    stream = io.StringIO()
    set_up_logs("info", stream)
    try:
        raise ValueError("inner")
    except ValueError:
        structlog.get_logger("shoal.node").exception("it failed")
    (line,) = lines_of(stream)
    assert line["message"] == "it failed"
    assert line["exception"][0]["exc_value"] == "inner"


def test_on_a_terminal_it_is_a_line_for_a_person():
    stream = Terminal()
    set_up_logs("info", stream)
    structlog.get_logger("shoal.node").info("ready", peer="12D3")
    assert "ready" in stream.getvalue()
    assert not stream.getvalue().startswith("{")
