"""Reads a hub's trail over its admin API, for `hawse audit --hub`."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from audit.calls import FoundCall
from audit.escape import escape, escape_lines
from audit.reader import StoredEvent
from audit.search.filters import Filters
from proxy.cli.admin.api.client import AdminClient, UnreachableError
from proxy.cli.audit.printing import (
    newest_shown,
    print_began,
    print_events,
    print_more,
    print_none_found,
    print_notes,
    print_text_bound,
)
from proxy.cli.audit.server_sent import MalformedStreamError, ServerSent, server_sent
from proxy.cli.errors import CommandError
from proxy.cli.output import Object, objects, text, texts
from proxy.process.untrusted_json import read_json

# What the hub gives in one answer.
PAGE_EVENTS_MAX = 500
# Between two attempts to reach a hub again that a follower has lost.
RECONNECT_MIN_S = 1.0
RECONNECT_MAX_S = 10.0
# The ends of a stream after which the hub, or another one, may serve the follower.
_GOES_ON = frozenset({"draining"})


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
            yield _stored(_json(line))


def follow_remote(client: AdminClient, asked: Mapping[str, str], cursor: str) -> Iterator[StoredEvent]:
    """Yield new events; never ends. After a cut it goes on where it was, as soon as a hub answers."""
    delay_s, begun, lost = RECONNECT_MIN_S, False, False
    while True:
        try:
            stream = client.stream("GET", "audit", "stream", query=asked, headers={"last-event-id": cursor})
            with stream as pieces:
                if lost:
                    print_notes("connected again")
                delay_s, begun, lost = RECONNECT_MIN_S, True, False
                for message in server_sent(pieces):
                    cursor = message.id or cursor
                    yield from _events_of(message)
        except MalformedStreamError as error:
            raise CommandError(f"the hub's answer is no stream of events: {error}") from error
        except UnreachableError as error:
            if not begun:
                raise
            if not lost:
                print_notes(f"{error.message}; trying again")
            lost = True
        time.sleep(delay_s)
        delay_s = min(2 * delay_s, RECONNECT_MAX_S)


def _events_of(message: ServerSent) -> Iterator[StoredEvent]:
    document = _json(message.data)
    if message.event == "events":
        for row in objects(document, "events"):
            yield _stored(row["event"])
    elif message.event == "gap":
        # The hub keeps the place, and goes on from it.
        print_notes(f"{escape(text(document, 'message'))}; trying again")
    elif message.event == "end" and text(document, "code") not in _GOES_ON:
        raise CommandError(escape_lines(text(document, "message")))


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
    if rest:
        raise CommandError("the hub's answer ends within an event: ask again")


def _json(data: bytes) -> Object:
    try:
        document = read_json(data)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise CommandError("the hub's answer is not JSON: does it run the same version?")
    return document


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
