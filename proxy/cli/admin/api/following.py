"""Follows a stream of the admin API: after a cut it goes on, as soon as a hub answers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import click

from audit.escape import escape_lines
from proxy.cli.admin.api.client import NONE, AdminClient, UnreachableError
from proxy.cli.admin.api.server_sent import MalformedStreamError, ServerSent, server_sent
from proxy.cli.errors import CommandError
from proxy.cli.output import Object, text
from proxy.process.untrusted_json import read_json

# Between two attempts to reach a hub again that a follower has lost.
RECONNECT_MIN_S = 1.0
RECONNECT_MAX_S = 10.0
# The ends of a stream after which the hub, or another one, may serve the follower.
_GOES_ON = frozenset({"draining"})


def follow(
    client: AdminClient, *path: str, query: Mapping[str, str] = NONE, cursor: str = ""
) -> Iterator[ServerSent]:
    """Yield the messages of a stream; never ends. `cursor` is the id after which it goes on."""
    delay_s, begun, lost = RECONNECT_MIN_S, False, False
    while True:
        try:
            headers = {"last-event-id": cursor} if cursor else NONE
            with client.stream("GET", *path, query=query, headers=headers) as pieces:
                if lost:
                    _note("connected again")
                delay_s, begun, lost = RECONNECT_MIN_S, True, False
                for message in server_sent(pieces):
                    cursor = message.id or cursor
                    if message.event == "end":
                        _check_end(object_of(message.data))
                    else:
                        yield message
        except MalformedStreamError as error:
            raise CommandError(f"the hub's answer is no stream of events: {error}") from error
        except UnreachableError as error:
            if not begun:
                raise
            if not lost:
                _note(f"{error.message}; trying again")
            lost = True
        time.sleep(delay_s)
        delay_s = min(2 * delay_s, RECONNECT_MAX_S)


def object_of(data: bytes) -> Object:
    """Return the object of a message; raises CommandError."""
    try:
        document = read_json(data)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise CommandError("the hub's answer is not JSON: does it run the same version?")
    return document


def _check_end(document: Object) -> None:
    if text(document, "code") not in _GOES_ON:
        raise CommandError(escape_lines(text(document, "message")))


def _note(sentence: str) -> None:
    click.echo(f"hawse: {sentence}", err=True)
