"""Follows the requests of a hub: those that are there, and then each change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from proxy.cli.admin.api.client import AdminClient, MissingError
from proxy.cli.admin.api.following import follow, object_of
from proxy.cli.output import Object, objects, text, texts

TOPIC = "requests"
# The most that the hub gives in one answer.
ROWS = 500


def followed(client: AdminClient, chosen: Mapping[str, str | None]) -> Iterator[Object]:
    """Yield the requests that match, the oldest first, and then each that changes its state; never ends."""
    known: dict[str, Object] = {}
    for message in follow(client, "stream"):
        topics = texts(object_of(message.data), "topics")
        # The first message has no topics: the list has all that changed before it.
        if topics and TOPIC not in topics:
            continue
        rows = objects(client.get("requests", **chosen, limit=str(ROWS)), "requests")
        found = {text(row, "id"): row for row in reversed(rows)}
        for row in [*_left(client, (each for each in known if each not in found)), *found.values()]:
            before = known.get(text(row, "id"))
            if before is None or before.get("state") != row.get("state"):
                yield row
        known = found


def _left(client: AdminClient, request_ids: Iterable[str]) -> Iterator[Object]:
    """Yield requests that have left the chosen states. Those of removed agents and clusters are deleted."""
    for request_id in request_ids:
        with suppress(MissingError):
            yield client.get("requests", request_id)
