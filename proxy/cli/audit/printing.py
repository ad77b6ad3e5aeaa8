"""Prints events and notes about them: the same for a trail on this machine and for one at a hub."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from audit.reader import StoredEvent

# Enough for a person. A program, which asks for JSON, gets all events: it would not notice missing ones.
LIMIT = 50
LIMIT_FOLLOWED = 10

_PLURAL = " (name resources in the plural, as the API does: pods, deployments)"


def newest_shown(limit: int | str | None, *, follow: bool, as_json: bool) -> int | None:
    """Return how many of the newest events are shown; None is all."""
    if isinstance(limit, int):
        return limit
    if limit is not None or as_json:
        return None
    return LIMIT_FOLLOWED if follow else LIMIT


def print_events(found: Iterator[StoredEvent], *, as_json: bool) -> int:
    """Print events as they arrive; returns their number."""
    from audit.display import TerminalTable, header_line, json_line, table_line

    line: Callable[[StoredEvent], str]
    if as_json:
        line = json_line
    elif sys.stdout.isatty():
        table = TerminalTable(shutil.get_terminal_size().columns)
        line = table.lines
        click.echo(table.header())
    else:
        line = table_line
        click.echo(header_line())
    shown = 0
    for stored in found:
        click.echo(line(stored))
        shown += 1
    return shown


def print_none_found(*, by_resource: bool) -> None:
    """Mention that no event matches."""
    print_notes("no event matches" + (_PLURAL if by_resource else ""))


def print_more(shown: int) -> None:
    """Mention that older events match as well."""
    print_notes(f"showing the newest {shown} events: for more use --limit {10 * LIMIT} or --limit all")


def print_text_bound(back_to: datetime | None) -> None:
    """Mention where the search for a text stopped."""
    from audit.textsearch import TEXT_EVENTS_MAX

    when = f", back to {back_to:%Y-%m-%d %H:%M:%S} UTC" if back_to is not None else ""
    print_notes(
        f"searched the text in the newest {TEXT_EVENTS_MAX:,} events that match the other options{when}: "
        "to search older ones, narrow with --agent or --until"
    )


def print_began(began: datetime | None, since: datetime | None, shown: int, limit: int | str | None) -> None:
    """Mention where the trail begins, if that may be why an event is missing."""
    if began is not None and ((not shown and limit != 0) or (since is not None and since < began)):
        print_notes(f"the trail begins at {began:%Y-%m-%d %H:%M:%S} UTC")


def print_notes(*sentences: str) -> None:
    """Print notes for a person to standard error."""
    for sentence in sentences:
        click.echo(f"hawse: {sentence}", err=True)
