"""Parses server-sent events, as they arrive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs

# The hub sends 200 events in one message, each of some kilobytes.
LINE_BYTES_MAX = 16 * 1024 * 1024


class MalformedStreamError(Exception):
    """The peer does not send server-sent events."""


@attrs.frozen
class ServerSent:
    """One message."""

    event: str
    data: bytes
    id: str


def server_sent(pieces: Iterable[bytes]) -> Iterator[ServerSent]:
    """Yield the messages in a body that arrives in pieces; comments, and a message without data, are skipped.

    A message that the end cuts is dropped, as the specification requires. Raises MalformedStreamError.
    """
    fields: dict[str, list[bytes]] = {}
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > LINE_BYTES_MAX:
            raise MalformedStreamError(f"a line has more than {LINE_BYTES_MAX} bytes")
        for line in lines:
            if line:
                name, _, value = line.partition(b":")
                fields.setdefault(name.decode("utf-8", "replace"), []).append(value.removeprefix(b" "))
                continue
            if "data" in fields:
                yield ServerSent(
                    _last(fields, "event") or "message", b"\n".join(fields["data"]), _last(fields, "id")
                )
            fields = {}


def _last(fields: dict[str, list[bytes]], name: str) -> str:
    return fields.get(name, [b""])[-1].decode("utf-8", "replace")
