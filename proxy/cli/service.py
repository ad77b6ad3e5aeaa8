"""Runs the long-running commands: the hub and the relay."""

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
    """Run until a signal stops it. Exits with the returned status if it is not 0.

    A `known` exception ends the command with one line.
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
    """Run, and raise a known exception or Ctrl-C without the exception groups that nurseries add.

    Other exceptions are bugs, and keep their traceback.
    """
    expected: tuple[type[BaseException], ...] = (*known, KeyboardInterrupt)
    raised: BaseException | None = None
    try:
        return trio.run(run, config)
    except* expected as group:
        raised = _first_of(group)
    assert raised is not None
    raise raised


def _first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first exception in a tree of groups."""
    first = group.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first
