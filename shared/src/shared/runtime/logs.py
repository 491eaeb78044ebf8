"""Structured logs on standard error: dotted event names with fields, one line each."""

import logging
import sys
from typing import Final, Literal

import structlog

__all__ = ["configure_logs"]

_MAX_VALUE: Final = 16 * 2**10
"""Characters of a value, such as a traceback."""


def configure_logs(service: str, log_format: Literal["console", "json"]) -> None:
    """Send the logs of this process, of libraries too, to standard error in `log_format`."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_traceback_locals,
        _cut,
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if log_format == "console"
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    _adopt_standard_logging(shared, renderer)


def _without_traceback_locals(
    _logger: object, _name: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Tracebacks as text: the values of local variables may be secret."""
    return structlog.processors.format_exc_info(None, "", event)


def _cut(
    _logger: object, _name: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Bound what a peer can make a process write: keep the beginning and the end of long values."""
    half = _MAX_VALUE // 2
    for name, value in event.items():
        if isinstance(value, str) and len(value) > _MAX_VALUE:
            event[name] = f"{value[:half]} … {value[-half:]}"
    return event


def _adopt_standard_logging(
    processors: list[structlog.typing.Processor], renderer: structlog.typing.Processor
) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=processors, processor=renderer)
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for library in ("aio_pika", "aiormq"):  # tracebacks of lost connections, of which the bus tells
        logging.getLogger(library).setLevel(logging.CRITICAL)
