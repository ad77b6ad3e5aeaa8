"""How the long-running commands log to stderr: a line an event, for a person or (json) for a collector.

In JSON everything that such a command writes to stderr is a line of that form: what it logs, warnings of
Python's, an uncaught exception, and the error that ends it, a wrong option too.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

F = TypeVar("F", bound=Callable[..., object])

TEXT = "text"
JSON = "json"
# Ids that a text names stand beside it as well, for a collector to search by: those of `extra` at the call.
IDS = ("eid", "cluster", "agent", "boot")
_TIME = "%Y-%m-%dT%H:%M:%S"
_log = logging.getLogger("hawse")


def log_format_option(variable: str | None = None) -> Callable[[F], F]:
    """`--log-format`; `variable` is that of the same key of the configuration."""
    stated = "" if variable is None else f", else by the key log_format or {variable}"
    return click.option(
        "--log-format",
        type=click.Choice([TEXT, JSON]),
        help=f"How the log on stderr is written, one event a line{stated}; text by default.",
    )


def configure_logging(*, verbose: bool, log_format: str = TEXT) -> None:
    """Log to stderr from now on: RFC 3339 time in UTC, level, logger, text."""
    formatter: logging.Formatter
    if log_format == JSON:
        formatter = JSONFormatter()
        _log_what_python_prints()
    else:
        formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s", _TIME)
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    # Of interest to its own authors.
    logging.getLogger("alembic").setLevel(logging.WARNING)


def configure_stated(
    prefix: str, path: Path | None, environment: Mapping[str, str], *, verbose: bool
) -> None:
    """Log in the form that the key log_format states. The configuration's reader reports a wrong value."""
    from proxy.process.config import peek

    log_format = peek("log_format", prefix, path, environment)
    configure_logging(verbose=verbose, log_format=JSON if log_format == JSON else TEXT)


class JSONFormatter(logging.Formatter):
    """One JSON object a line, in ASCII; control characters are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "ts": f"{self.formatTime(record, _TIME)}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "msg": _sound(record.getMessage()),
        }
        line |= {name: _sound(str(value)) for name in IDS if (value := record.__dict__.get(name)) is not None}
        if record.exc_info:
            line["traceback"] = _sound(self.formatException(record.exc_info))
        # JSON leaves DEL alone as it is, which a terminal does not.
        return json.dumps(line).replace("\x7f", "\\u007f")


class LoggedCommand(click.Command):
    """A command whose failures take the form of its log, from the first look at its options on."""

    def __init__(self, *arguments: Any, variable: str | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.variable = variable
        """What states the form where no option does."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        from os import environ

        if is_json(args, environ, self.variable):
            configure_logging(verbose=False, log_format=JSON)
        return super().make_context(info_name, args, parent, **extra)


def is_json(words: list[str], environment: Mapping[str, str], variable: str | None) -> bool:
    """Whether the words of a command line, which may be wrong, or the environment ask for JSON."""
    stated = "" if variable is None else environment.get(variable, "")
    for number, word in enumerate(words):
        if word == "--":
            break
        if word == "--log-format":
            stated = "".join(words[number + 1 : number + 2])
        elif word.startswith("--log-format="):
            stated = word.partition("=")[2]
    return stated == JSON


def in_json() -> bool:
    """Whether this process logs JSON."""
    return any(isinstance(handler.formatter, JSONFormatter) for handler in logging.getLogger().handlers)


def show_failure(error: click.ClickException) -> None:
    """Print or log the error that ends a command, in the form of its log."""
    if in_json():
        _log.error("%s", error.format_message())
    else:
        error.show()


def show_warning(text: str) -> None:
    """Print or log a warning of a command that logs nothing else."""
    if in_json():
        _log.warning("%s", text)
    else:
        click.echo(f"warning: {text}", err=True)


def _log_what_python_prints() -> None:
    """Log warnings and uncaught exceptions as lines of the log."""

    def uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        _log.critical("ended by a fault of ours", exc_info=(kind, error, traceback))

    def in_thread(told: threading.ExceptHookArgs) -> None:
        error = told.exc_value if told.exc_value is not None else told.exc_type()
        _log.error("a thread has failed", exc_info=(told.exc_type, error, told.exc_traceback))

    def unraisable(told: sys.UnraisableHookArgs) -> None:
        what = told.err_msg or "exception ignored in"
        error = told.exc_value if told.exc_value is not None else told.exc_type()
        _log.error("%s: %r", what, told.object, exc_info=(told.exc_type, error, told.exc_traceback))

    logging.captureWarnings(True)
    sys.excepthook = uncaught
    threading.excepthook = in_thread
    sys.unraisablehook = unraisable


def _sound(text: str) -> str:
    """A text without half characters, which not every reader of JSON takes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
