"""Logs: one form for our modules and for libraries; JSON off a terminal."""

import io
import json
import logging
from contextlib import suppress
from pathlib import Path

import pytest
import structlog

from shoal.node.errors import ConfigError
from shoal.node.logs import MODULES_LIMIT, LogFile, set_up_logs


class Terminal(io.StringIO):
    def isatty(self):
        return True


MODULE = "shoal.node.made_up"


@pytest.fixture(autouse=True)
def as_before():
    root = logging.getLogger()
    handlers = root.handlers[:]
    loggers = [root, *map(logging.getLogger, ("shoal", "libp2p", "libp2p.network", MODULE))]
    levels = [logger.level for logger in loggers]
    yield
    root.handlers[:] = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    structlog.reset_defaults()


def lines_of(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_off_a_terminal_each_line_is_json_from_ours_and_from_libraries():
    stream = io.StringIO()
    set_up_logs("info", stream)
    structlog.get_logger("shoal.node.jobs").info("job ended", job="1a", units=3)
    logging.getLogger("hypercorn.error").warning("lost %s", "x")
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


def test_libp2p_which_calls_every_refused_dial_an_error_is_heard_at_debug_only():
    stream = io.StringIO()
    logs = set_up_logs("info", stream)
    logging.getLogger("libp2p").propagate = False  # as importing it does
    dial = logging.getLogger("libp2p.network.swarm")
    dial.error("fail to dial")
    assert lines_of(stream) == []
    logs.set_level("debug")
    dial.error("fail to dial")
    assert [line["message"] for line in lines_of(stream)] == ["fail to dial"]


def test_a_level_is_changed_for_all_for_one_module_and_back_to_the_settings():
    stream = io.StringIO()
    logs = set_up_logs("warning", stream)
    ours, other = structlog.get_logger(MODULE), structlog.get_logger("shoal.node.jobs")
    ours.info("1")
    logs.set_level("debug", MODULE)
    ours.debug("2")
    other.info("3")
    logs.set_level("info")
    other.info("4")
    view = logs.view()
    assert (view.level, view.configured, view.modules) == ("info", "warning", {MODULE: "debug"})
    logs.configure("error")
    ours.warning("5")
    other.warning("6")
    assert [line["message"] for line in lines_of(stream)] == ["2", "4"]
    assert (logs.view().level, logs.view().modules) == ("error", {})


@pytest.mark.parametrize(
    "module", ["", "root", "os", "shoal.node.nowhere", "libp2px", "shoal."]
)
def test_a_module_that_nothing_logs_as_is_refused(module):
    logs = set_up_logs("info", io.StringIO())
    with pytest.raises(ConfigError) as caught:
        logs.set_level("debug", module)
    assert caught.value.code == "no_such_module"
    assert logs.view().modules == {}


def test_modules_with_a_level_of_their_own_are_bounded():
    logs = set_up_logs("info", io.StringIO())
    names = [f"{MODULE}.{number}" for number in range(MODULES_LIMIT + 1)]
    for name in names:
        logging.getLogger(name)
    for name in names[:-1]:
        logs.set_level("debug", name)
    logs.set_level("error", names[0])
    with pytest.raises(ConfigError, match="already"):
        logs.set_level("debug", names[-1])
    logs.configure("info")


def test_a_log_file_stays_within_its_bound_with_the_one_before_it(tmp_path):
    path = tmp_path / "daemon.log"
    log_file = LogFile(path, limit_bytes=1000)
    for number in range(100):
        log_file.emit(logging.makeLogRecord({"msg": f"{number:090}"}))
    sizes = {found.name: found.stat().st_size for found in tmp_path.iterdir()}
    assert sizes.keys() == {"daemon.log", "daemon.log.1"}
    assert max(sizes.values()) <= 1000
    assert path.read_text().splitlines()[-1].endswith("99")
    assert log_file.lost == 0
    log_file.close()


def test_a_log_file_that_was_moved_away_is_opened_anew(tmp_path):
    path = tmp_path / "daemon.log"
    logs = set_up_logs("info", file=path)
    log = structlog.get_logger("shoal.node")
    log.info("before")
    path.rename(tmp_path / "kept")
    log.info("still there")
    logs.reopen()
    log.info("after")
    kept = [json.loads(line)["message"] for line in (tmp_path / "kept").open()]
    assert kept == ["before", "still there"]
    assert [json.loads(line)["message"] for line in path.open()] == ["after"]


def test_a_file_that_cannot_be_renamed_grows_on(tmp_path):
    path = tmp_path / "daemon.log"
    (tmp_path / "daemon.log.1").mkdir()  # nothing can be renamed to it
    (tmp_path / "daemon.log.1" / "x").touch()
    log_file = LogFile(path, limit_bytes=100)
    for number in range(10):
        log_file.emit(logging.makeLogRecord({"msg": f"{number:090}"}))
    assert len(path.read_text().splitlines()) == 10
    log_file.close()


@pytest.mark.parametrize("to_file", [True, False], ids=["file", "stream"])
def test_a_full_disk_costs_lines_and_they_are_counted(to_file, capfd):
    with Path("/dev/full").open("w", buffering=1) as full:
        logs = set_up_logs("info", full, file=Path("/dev/full") if to_file else None)
        for _ in range(3):
            structlog.get_logger("shoal.node").info("lost")
        assert logs.lines_lost == 3
        logging.getLogger().handlers[:] = []
        with suppress(OSError):
            full.close()
    assert capfd.readouterr().err == ""


def test_a_log_file_that_cannot_be_opened_is_a_warning_on_stderr(tmp_path):
    stream = io.StringIO()
    set_up_logs("info", stream, file=tmp_path / "nowhere" / "daemon.log")
    (line,) = lines_of(stream)
    assert line["level"] == "warning"
    assert "nowhere/daemon.log" in line["path"]
