"""How far a command has come that goes through a whole trail, which may take minutes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import click

Progress: TypeAlias = Callable[[str, int, int], None]

# What is over by then needs no word.
FIRST_S = 1.0
# Often enough to see that it goes on.
EVERY_S = 0.5
# Back to the line's beginning, and the line away.
_CLEAR = "\r\033[K"


@contextmanager
def progress() -> Iterator[Progress]:
    """A line on the terminal that says what was done, how much of it, and of how much; gone at the end.

    Without a terminal on standard error there is none.
    """
    seen = sys.stderr.isatty()
    tell_at = time.monotonic() + FIRST_S
    told = False

    def tell(what: str, done: int, total: int) -> None:
        nonlocal tell_at, told
        if seen and (now := time.monotonic()) >= tell_at:
            tell_at, told = now + EVERY_S, True
            click.echo(f"{_CLEAR}{what}: {done} of {total}", nl=False, err=True)

    try:
        yield tell
    finally:
        if told:
            click.echo(_CLEAR, nl=False, err=True)
