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
# Return to the start of the line, and clear it.
_CLEAR = "\r\033[K"


@contextmanager
def progress() -> Iterator[Progress]:
    """Show a line on the terminal with the task, the amount done and the total. It is cleared at the end.

    Nothing is shown if standard error is not a terminal.
    """
    on_terminal = sys.stderr.isatty()
    next_s = time.monotonic() + FIRST_S
    shown = False

    def show(task: str, done: int, total: int) -> None:
        nonlocal next_s, shown
        if on_terminal and (now := time.monotonic()) >= next_s:
            next_s, shown = now + EVERY_S, True
            click.echo(f"{_CLEAR}{task}: {done} of {total}", nl=False, err=True)

    try:
        yield show
    finally:
        if shown:
            click.echo(_CLEAR, nl=False, err=True)
