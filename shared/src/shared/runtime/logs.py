"""Structured logs on standard error: dotted event names with fields, one line each."""

import logging
import sys
from types import TracebackType
from typing import Final, Literal

import structlog

from shared.logged_errors import render

__all__ = ["configure_logs"]

_MAX_VALUE: Final = 16 * 2**10
"""Characters of a value, such as a traceback."""


def configure_logs(service: str, log_format: Literal["console", "json"]) -> None:
    """Write the logs of this process and its libraries to standard error in `log_format`.

    The exception that ends the process is logged as any other: its text can have values of rows.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _render_exception,
        _truncate_values,
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
    sys.excepthook = _log_uncaught


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, Exception):
        structlog.get_logger().critical("process.failed", exc_info=error)
    else:  # Ctrl-C
        sys.__excepthook__(kind, error, trace)


def _render_exception(
    _logger: object, _name: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Render `exc_info` without values; they may be secret or personal."""
    error = _error_of(event.pop("exc_info", None))
    if error is not None:
        event["exception"] = render(error)
    record = event.get("_record")
    if record is not None and record.name == "asyncio":  # further lines quote the exception
        event["event"] = str(event["event"]).partition("\n")[0]
    return event


def _error_of(info: object) -> BaseException | None:
    """Return the exception of an `exc_info`: itself, in a tuple, or the current one for True."""
    match info:
        case BaseException():
            return info
        case (_, BaseException() as error, _):
            return error
        case True:
            return sys.exception()
    return None


def _truncate_values(
    _logger: object, _name: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Shorten long values to their beginning and end, so that a peer cannot flood the log."""
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
    for library in ("aio_pika", "aiormq"):  # their tracebacks repeat what the bus logs
        logging.getLogger(library).setLevel(logging.CRITICAL)
