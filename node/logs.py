"""How a process logs: lines for a person on a terminal, JSON otherwise, on stderr.

Our modules log through structlog; libraries log through the standard library
and come out in the same form. py-libp2p and hypercorn tell of every closed
connection as if it mattered, so libraries speak from WARNING on.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog


def set_up_logs(level: str = "info", stream: TextIO | None = None) -> None:
    """Send all logs of this process to ``stream`` (stderr), from ``level`` on.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        stream: In place of stderr.
    """
    stream = stream or sys.stderr
    threshold = logging.getLevelNamesMapping()[level.upper()]
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
        if stream.isatty()
        else [
            structlog.processors.dict_tracebacks,
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(),
        ]
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(threshold, logging.WARNING))
    logging.getLogger("shoal").setLevel(threshold)
    logging.getLogger("libp2p").propagate = True  # importing py-libp2p turns it off
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
