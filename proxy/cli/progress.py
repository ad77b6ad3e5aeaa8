"""A progress line for commands that read a whole trail, which may take minutes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import click

Progress: TypeAlias = Callable[[str, int, int], None]

# Shorter work needs no progress line.
FIRST_S = 1.0
# Often enough to show that the work goes on.
EVERY_S = 0.5
LOGGED_EVERY_S = 1.0
# Return to the start of the line, and clear it.
_CLEAR = "\r\033[K"


@contextmanager
def progress(*, logged: bool = False) -> Iterator[Progress]:
    """Show a line on the terminal with the task, the amount done and the total. It is cleared at the end.

    If standard error is not a terminal, nothing is shown, or a line per second with `logged`.
    """
    on_terminal = sys.stderr.isatty()
    next_s = time.monotonic() + FIRST_S
    shown = False

    def show(task: str, done: int, total: int) -> None:
        nonlocal next_s, shown
        if (on_terminal or logged) and (now := time.monotonic()) >= next_s:
            next_s, shown = now + (EVERY_S if on_terminal else LOGGED_EVERY_S), on_terminal
            click.echo(
                f"{_CLEAR if on_terminal else ''}{task}: {done} of {total}", nl=not on_terminal, err=True
            )

    try:
        yield show
    finally:
        if shown:
            click.echo(_CLEAR, nl=False, err=True)
