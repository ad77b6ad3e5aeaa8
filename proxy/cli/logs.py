"""Logging of the long-running commands to stderr: one line per event, as text or as JSON for a collector.

With JSON, all lines on stderr have that form: log records, Python's warnings, uncaught exceptions, and the
error that ends the command, even for an invalid option.
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
# Ids in `extra` become separate JSON fields, so that a collector can search by them.
IDS = ("eid", "cluster", "agent", "boot")
_TIME = "%Y-%m-%dT%H:%M:%S"
_log = logging.getLogger("hawse")


def log_format_option(variable: str | None = None) -> Callable[[F], F]:
    """Add `--log-format`. `variable` is the environment variable of the same configuration key."""
    source = "" if variable is None else f" (or the key log_format, or {variable})"
    return click.option(
        "--log-format",
        type=click.Choice([TEXT, JSON]),
        help=f"Format of the log on stderr, one event a line{source}. Default: text.",
    )


def configure_logging(*, verbose: bool, log_format: str = TEXT) -> None:
    """Log to stderr from now on: RFC 3339 time in UTC, level, logger, message."""
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
    # Its messages interest only its authors.
    logging.getLogger("alembic").setLevel(logging.WARNING)


def configure_stated(
    prefix: str, path: Path | None, environment: Mapping[str, str], *, verbose: bool
) -> None:
    """Log in the format of the key log_format. An invalid value is reported by the configuration's reader."""
    from proxy.process.stated import peek

    log_format = peek("log_format", prefix, path, environment)
    configure_logging(verbose=verbose, log_format=JSON if log_format == JSON else TEXT)


class JSONFormatter(logging.Formatter):
    """One JSON object a line, in ASCII, with control characters escaped."""

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
        # JSON does not escape DEL, but terminals interpret it.
        return json.dumps(line).replace("\x7f", "\\u007f")


class LoggedCommand(click.Command):
    """A command whose errors have its log's format, even errors in its options."""

    def __init__(self, *arguments: Any, variable: str | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.variable = variable
        """The environment variable of the format; options override it."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        from os import environ

        if is_json(args, environ, self.variable):
            configure_logging(verbose=False, log_format=JSON)
        return super().make_context(info_name, args, parent, **extra)


def is_json(words: list[str], environment: Mapping[str, str], variable: str | None) -> bool:
    """Whether the arguments, which may be invalid, or the environment ask for JSON."""
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
    """Print or log the error that ends a command, in its log's format."""
    if in_json():
        _log.error("%s", error.format_message())
    else:
        error.show()


def show_warning(text: str) -> None:
    """Print or log a warning of a command that has no log."""
    if in_json():
        _log.warning("%s", text)
    else:
        click.echo(f"warning: {text}", err=True)


def _log_what_python_prints() -> None:
    """Log Python's warnings and uncaught exceptions."""

    def uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        _log.critical("ended by a bug in hawse", exc_info=(kind, error, traceback))

    def in_thread(args: threading.ExceptHookArgs) -> None:
        error = args.exc_value if args.exc_value is not None else args.exc_type()
        _log.error("a thread has failed", exc_info=(args.exc_type, error, args.exc_traceback))

    def unraisable(args: sys.UnraisableHookArgs) -> None:
        what = args.err_msg or "exception ignored in"
        error = args.exc_value if args.exc_value is not None else args.exc_type()
        _log.error("%s: %r", what, args.object, exc_info=(args.exc_type, error, args.exc_traceback))

    logging.captureWarnings(True)
    sys.excepthook = uncaught
    threading.excepthook = in_thread
    sys.unraisablehook = unraisable


def _sound(text: str) -> str:
    """Replace lone surrogates, which some JSON parsers reject."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
