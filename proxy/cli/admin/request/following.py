"""Follows the requests of a hub: those that are there, and then each change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NoReturn

import click

from audit.escape import escape
from proxy.cli.admin.api.client import AdminClient
from proxy.cli.admin.api.following import follow, object_of
from proxy.cli.admin.request.showing import sentence_of
from proxy.cli.output import Object, objects, text, texts

TOPIC = "requests"
# The most that the hub gives in one answer.
ROWS = 500


def follow_requests(client: AdminClient, chosen: Mapping[str, str], *, as_json: bool) -> NoReturn:
    """Print the requests that match, the oldest first, and then each that changes; never ends."""
    known: dict[str, Object] = {}
    for message in follow(client, "stream"):
        topics = texts(object_of(message.data), "topics")
        # The first message has no topics: whatever changed before it is in the list.
        if topics and TOPIC not in topics:
            continue
        rows = objects(client.get("requests", **chosen, limit=str(ROWS)), "requests")
        found = {text(row, "id"): row for row in reversed(rows)}
        # These have left the chosen states.
        gone = [client.get("requests", request_id) for request_id in known if request_id not in found]
        for row in [*gone, *found.values()]:
            before = known.get(text(row, "id"))
            if before is None or before.get("state") != row.get("state"):
                _print(row, as_json=as_json)
        known = found
    raise AssertionError("a stream that is followed never ends")


def _print(row: Object, *, as_json: bool) -> None:
    click.echo(json.dumps(row) if as_json else escape(sentence_of(row)))
