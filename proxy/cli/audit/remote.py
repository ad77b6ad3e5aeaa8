"""Reads a hub's trail over its admin API, for `hawse audit --hub`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from audit.calls import FoundCall
from audit.escape import escape
from audit.reader import StoredEvent
from audit.search.filters import Filters
from proxy.cli.admin.api.client import AdminClient
from proxy.cli.admin.api.following import follow, object_of
from proxy.cli.admin.api.server_sent import ServerSent
from proxy.cli.audit.printing import (
    newest_shown,
    print_began,
    print_events,
    print_more,
    print_none_found,
    print_notes,
    print_text_bound,
)
from proxy.cli.errors import CommandError
from proxy.cli.output import Object, objects, text, texts

# What the hub gives in one answer.
PAGE_EVENTS_MAX = 500


def list_remote(
    client: AdminClient,
    filters: Filters,
    limit: int | str | None,
    *,
    follow: bool,
    as_json: bool,
) -> None:
    """Print the events that match, as `hawse audit list` does on the hub's machine."""
    asked = dict(filters.items())
    newest = newest_shown(limit, follow=follow, as_json=as_json)
    pages = _pages(client, asked, newest)
    first = next(pages)
    notes = texts(first, "notes")
    print_notes(*map(escape, notes))
    last = first
    events: Iterator[StoredEvent]
    # Here too, a search for a text ends after so many events.
    ended = text(first, "stopped") == "text"
    if newest is None and not follow and first.get("older") and not ended:
        # More than one answer holds: one request for them all, the oldest first.
        events = _export(client, asked)
    else:
        found = []
        for last in itertools.chain([first], pages):
            found += [_stored(row["event"]) for row in objects(last, "events")]
        events = reversed(found[: len(found) if newest is None else newest])
    if follow:
        events = itertools.chain(events, follow_remote(client, asked, text(first, "follow")))
    shown = print_events(events, as_json=as_json)
    if not shown and not notes and limit != 0:
        print_none_found(by_resource="resource" in asked)
    stopped = text(last, "stopped")
    if last.get("older") and not stopped and limit is None and newest is not None:
        print_more(shown)
    if stopped == "text":
        print_text_bound(_time(last, "searched_to"))
    print_began(_time(first, "began"), filters.since, shown, limit)


def find_remote(client: AdminClient, event: str) -> FoundCall:
    """Find a call; raises CommandError."""
    found = client.get("audit", "events", event)
    return FoundCall([_stored(row["event"]) for row in objects(found, "rows")], found.get("open") is True)


def _pages(client: AdminClient, asked: Mapping[str, str], newest: int | None) -> Iterator[Object]:
    """Read answers, the newest events first, until they have so many, or all."""
    left, before = newest, ""
    while True:
        size = PAGE_EVENTS_MAX if left is None else min(max(left, 1), PAGE_EVENTS_MAX)
        more = {"before": before} if before else {}
        page = client.get("audit", "events", **asked, **more, limit=str(size))
        yield page
        left = None if left is None else left - len(objects(page, "events"))
        before = text(page, "older")
        # A search that its deadline has stopped goes on; one for a text ends after so many events.
        if not before or text(page, "stopped") == "text" or (left is not None and left <= 0):
            return


def _export(client: AdminClient, asked: Mapping[str, str]) -> Iterator[StoredEvent]:
    with client.stream("GET", "audit", "export", query={**asked, "format": "jsonl"}) as pieces:
        for line in _lines(pieces):
            yield _stored(object_of(line))


def follow_remote(client: AdminClient, asked: Mapping[str, str], cursor: str) -> Iterator[StoredEvent]:
    """Yield new events; never ends. After a cut it goes on where it was, as soon as a hub answers."""
    for message in follow(client, "audit", "stream", query=asked, cursor=cursor):
        yield from _events_of(message)


def _events_of(message: ServerSent) -> Iterator[StoredEvent]:
    document = object_of(message.data)
    if message.event == "events":
        for row in objects(document, "events"):
            yield _stored(row["event"])
    elif message.event == "gap":
        # The hub keeps the place, and goes on from it.
        print_notes(f"{escape(text(document, 'message'))}; trying again")


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
    if rest:
        raise CommandError("the hub's answer ends within an event: ask again")


def _stored(event: object) -> StoredEvent:
    """Return the event that a line of `hawse audit list --json` shows."""
    if not isinstance(event, dict) or not isinstance(number := event.get("seq"), int):
        raise CommandError("the hub's answer has an event without a number: does it run the same version?")
    body = {name: value for name, value in event.items() if name not in {"seq", "epoch"}}
    epoch = event.get("epoch")
    place = (epoch, number) if isinstance(epoch, int) else None
    return StoredEvent(number, json.dumps(body, separators=(",", ":")).encode("ascii"), place)


def _time(document: Object, key: str) -> datetime | None:
    value = text(document, key)
    return datetime.fromisoformat(value).astimezone(UTC) if value else None
