"""A minimal model of how Go's net/url parses a query."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes


def read_as_go_does(query: bytes) -> dict[str, list[str]]:
    """The values under each name; a pair with ';' or a broken escape is dropped, '+' is a blank."""
    read: dict[str, list[str]] = {}
    for pair in query.split(b"&"):
        if pair and b";" not in pair and not re.search(rb"%(?![0-9A-Fa-f]{2})", pair):
            key, _, value = pair.replace(b"+", b" ").partition(b"=")
            name, said = (unquote_to_bytes(part).decode("utf-8", "replace") for part in (key, value))
            read.setdefault(name, []).append(said)
    return read
