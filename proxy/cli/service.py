"""Running what does not end by itself: the hub, the relay."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from proxy.cli.errors import CommandError

_Config = TypeVar("_Config")


def run_service(
    run: Callable[[_Config], Awaitable[None]],
    config: _Config,
    name: str,
    known: tuple[type[Exception], ...],
) -> None:
    """Run until it is told to stop; what it is known to fail with ends the command by one line.

    Whatever else comes out is a fault of ours, and keeps its traceback.
    """
    failure: BaseException | None = None
    try:
        trio.run(run, config)
    except* known as group:
        failure = first_of(group)
    if failure is not None:
        raise CommandError(f"the {name} cannot run: {failure}") from failure


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first exception of a tree: what nurseries wrap on the way out."""
    first = group.exceptions[0]
    return first_of(first) if isinstance(first, BaseExceptionGroup) else first
