"""Free-text search in events: the path, the arguments and the reasons.

Each event must be decoded, so a search reads a bounded number of events.
"""

from __future__ import annotations

from urllib.parse import unquote

import msgspec

# Maximum events searched: one second of work. The other filters select the newest events for the search.
TEXT_EVENTS_MAX = 100_000
# More than people type; a target has up to 64 KiB.
TEXT_CHARACTERS_MAX = 1024


class _Request(msgspec.Struct, frozen=True):
    raw_target: str = ""
    name: str = ""


class _Response(msgspec.Struct, frozen=True):
    reason: str = ""


class _Stream(msgspec.Struct, frozen=True):
    command: tuple[str, ...] = ()
    close_reason: str = ""


class _Decision(msgspec.Struct, frozen=True):
    rule: str = ""
    policy: str = ""


class _Searched(msgspec.Struct, frozen=True):
    """Only the searched members, so that events of a newer hawse can be searched too."""

    req: _Request = _Request()
    resp: _Response = _Response()
    stream: _Stream = _Stream()
    decision: _Decision = _Decision()
    note: str = ""


_decode = msgspec.json.Decoder(_Searched).decode


class Text:
    """A search text; the search ignores case."""

    def __init__(self, text: str) -> None:
        self._text = text.casefold()

    def is_in(self, body: bytes) -> bool:
        """Whether the event with this JSON contains the text."""
        searched = _decode(body)
        target = searched.req.raw_target
        texts = [
            *(target, unquote(target.replace("+", " ")), searched.req.name),
            # As one line, since the search text may contain a blank.
            " ".join(searched.stream.command),
            *(
                searched.stream.close_reason,
                searched.resp.reason,
                searched.note,
                searched.decision.rule,
                searched.decision.policy,
            ),
        ]
        return any(self._text in text.casefold() for text in texts)
