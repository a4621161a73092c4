"""How a process logs: lines for a person on a terminal, JSON otherwise.

They go to stderr, or to a file that never outgrows its bound and is opened anew when
it was moved away. A disk that is full, or a terminal that has gone, costs lines and
nothing else: they are counted, and the count is told with the metrics.

Our modules log through structlog; libraries log through the standard library and come
out in the same form. Hypercorn tells of every closed connection as if it mattered, so
libraries speak from WARNING on; py-libp2p calls every refused dial and stream an
error, so it is heard at the level ``debug`` only: what an operator needs to know of
it, our own events say. Levels can be changed while the process runs.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

import structlog

from shoal.node.errors import ConfigError
from shoal.node.status_views import LogLevelView

if TYPE_CHECKING:
    from pathlib import Path

LOG_FILE_LIMIT_BYTES = 32 << 20
"""From so much on the file becomes ``NAME.1``, and what was that is gone."""

MODULES_LIMIT = 32
"""Modules with a level of their own; an operator looks into one or two."""

_OURS, _LIBP2P = "shoal", "libp2p"


class LogFile(logging.handlers.RotatingFileHandler):
    """A file of at most `LOG_FILE_LIMIT_BYTES`, and the one before it.

    A daemon that was detached has its file as stdout and stderr as well, for what does
    not come through `logging`; those descriptors follow the file when it is renamed.
    """

    def __init__(self, path: Path, limit_bytes: int = LOG_FILE_LIMIT_BYTES) -> None:
        super().__init__(path, maxBytes=limit_bytes, backupCount=1, encoding="utf-8")
        self.lost = 0
        self._standard = [fd for fd in (1, 2) if self._is_ours(fd)]

    def reopen(self) -> None:
        """Open the file under its name: what had it may have been moved away."""
        self.acquire()
        try:
            before, self.stream = self.stream, None
            with suppress(OSError):
                if before is not None:
                    before.close()
            with suppress(OSError):  # else the next line opens it
                self.stream = self._open()
                self._take_along()
        finally:
            self.release()

    def doRollover(self) -> None:  # noqa: N802  # the standard library's name
        """Begin a new file; where the old one cannot be renamed, that grows on."""
        with suppress(OSError):
            super().doRollover()
            self._take_along()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802
        """A line could not be written: count it, and go on."""
        self.lost += 1

    def _is_ours(self, descriptor: int) -> bool:
        assert self.stream is not None
        try:
            return os.path.samestat(os.fstat(descriptor), os.fstat(self.stream.fileno()))
        except OSError:
            return False

    def _take_along(self) -> None:
        assert self.stream is not None  # opened just now
        for descriptor in self._standard:
            os.dup2(self.stream.fileno(), descriptor)


class _Stream(logging.StreamHandler[TextIO]):
    """A stream that may be full, or gone."""

    lost = 0

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802
        """As `LogFile.handleError`."""
        self.lost += 1


class Logs:
    """The logs of this process. Made by `set_up_logs`."""

    def __init__(self, handler: LogFile | _Stream | None, level: str) -> None:
        self._handler = handler
        self._configured = self._level = level
        self._modules: dict[str, str] = {}
        self._apply()

    @property
    def lines_lost(self) -> int:
        """How many lines could not be written."""
        return self._handler.lost if self._handler else 0

    def view(self) -> LogLevelView:
        """The levels at this moment."""
        return LogLevelView(self._level, self._configured, dict(self._modules))

    def configure(self, level: str) -> None:
        """Go back to the level of the settings, for all modules."""
        self._configured = self._level = level
        for module in self._modules:
            logging.getLogger(module).setLevel(logging.NOTSET)
        self._modules = {}
        self._apply()

    def set_level(self, level: str, module: str | None = None) -> None:
        """Change the level of all of shoal's modules, or of one (and of those under it).

        Args:
            level: ``debug``, ``info``, ``warning`` or ``error``.
            module: Such as ``shoal.node.membership``, or ``libp2p``.

        Raises:
            ConfigError: ``no_such_module``, or too many have a level of their own.
        """
        if module is None or module == _OURS:
            self._level = level
        else:
            if module.partition(".")[0] not in (_OURS, _LIBP2P) or not _exists(module):
                raise ConfigError(
                    f"there is no module {module[:80]!r} whose level could be set",
                    code="no_such_module",
                    hint="a line of the log names its module as `logger`; "
                    "`libp2p` is one as well",
                )
            if module not in self._modules and len(self._modules) >= MODULES_LIMIT:
                raise ConfigError(
                    f"{MODULES_LIMIT} modules have a level of their own already",
                    code="too_many_modules",
                    hint="`shoal reload` goes back to the level of the settings",
                )
            self._modules[module] = level
        self._apply()

    def reopen(self) -> None:
        """Open the log file anew, where the log goes to one."""
        if isinstance(self._handler, LogFile):
            self._handler.reopen()

    def close(self) -> None:
        """Leave nothing in stdout and stderr that the interpreter's end would fail of."""
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # a full disk, or a terminal that is gone
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)

    def _apply(self) -> None:
        if self._handler is None:
            return
        level = _number(self._level)
        logging.getLogger().setLevel(max(level, logging.WARNING))
        logging.getLogger(_OURS).setLevel(level)
        libp2p = logging.getLogger(_LIBP2P)
        libp2p.propagate = True  # importing it turns that off
        libp2p.setLevel(logging.WARNING if level <= logging.DEBUG else logging.CRITICAL)
        for module, own in self._modules.items():
            logging.getLogger(module).setLevel(_number(own))


def set_up_logs(
    level: str = "info", stream: TextIO | None = None, file: Path | None = None
) -> Logs:
    """Send all logs of this process to one place, from ``level`` on.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        stream: In place of stderr.
        file: In place of both. Where it cannot be opened it is stderr all the same,
            with a warning: a log is no reason to have no daemon.
    """
    stream = stream or sys.stderr
    handler: LogFile | _Stream = _Stream(stream)
    refused: OSError | None = None
    if file is not None:
        try:
            handler = LogFile(file)
        except OSError as error:
            refused = error
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    ending: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(colors=True)]
        if isinstance(handler, _Stream) and stream.isatty()
        else [
            structlog.processors.dict_tracebacks,
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(),
        ]
    )
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending],
        )
    )
    logging.getLogger().handlers[:] = [handler]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    logs = Logs(handler, level)
    if refused is not None:
        structlog.get_logger(__name__).warning(
            "the log file cannot be opened: the log is here", path=str(file), error=str(refused)
        )
    return logs


def no_logs(level: str) -> Logs:
    """Logs of a process that keeps its own: levels are noted here, and change nothing."""
    return Logs(None, level)


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


def _exists(module: str) -> bool:
    """Whether anything logs under this name, or under one that begins with it."""
    known = logging.root.manager.loggerDict
    return any(name == module or name.startswith(f"{module}.") for name in known)
