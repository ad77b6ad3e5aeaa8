"""Running what does not end by itself: the hub, the relay."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from proxy.cli.errors import CommandError

_Config = TypeVar("_Config")
_Result = TypeVar("_Result")


def run_service(
    run: Callable[[_Config], Awaitable[int]],
    config: _Config,
    name: str,
    known: tuple[type[Exception], ...],
) -> None:
    """Run until a signal stops it, and exit with the status that it returns, if that is not 0.

    What it is known to fail with ends the command by one line.
    """
    try:
        status = run_ungrouped(run, config, known)
    except known as error:
        raise CommandError(f"the {name} cannot run: {error}") from error
    if status:
        sys.exit(status)


def run_ungrouped(
    run: Callable[[_Config], Awaitable[_Result]], config: _Config, known: tuple[type[Exception], ...]
) -> _Result:
    """Run, and raise what it is known to fail with, or Ctrl-C, as it is: nurseries wrap both.

    Whatever else comes out is a fault of ours, and keeps its traceback.
    """
    told: tuple[type[BaseException], ...] = (*known, KeyboardInterrupt)
    raised: BaseException | None = None
    try:
        return trio.run(run, config)
    except* told as group:
        raised = _first_of(group)
    assert raised is not None
    raise raised


def _first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first exception of a tree."""
    first = group.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first
