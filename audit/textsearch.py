"""Free text over what an event says: its path, its arguments, and the reasons in it.

Each event is decoded for it, so a search looks at a bounded number of them.
"""

from __future__ import annotations

from urllib.parse import unquote

import msgspec

# A second's work. The other filters decide which events these are: the newest that they leave.
TEXT_EVENTS_MAX = 100_000
# More than a person types; a target has up to 64 KiB.
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


class _Said(msgspec.Struct, frozen=True):
    """Only what is searched, so that events of a newer hawse are searched as well."""

    req: _Request = _Request()
    resp: _Response = _Response()
    stream: _Stream = _Stream()
    decision: _Decision = _Decision()
    note: str = ""


_said = msgspec.json.Decoder(_Said).decode


class Text:
    """A search text; the search ignores case."""

    def __init__(self, text: str) -> None:
        self._wanted = text.casefold()

    def is_in(self, body: bytes) -> bool:
        """Whether the event of this JSON says it."""
        said = _said(body)
        target = said.req.raw_target
        texts = [
            *(target, unquote(target.replace("+", " ")), said.req.name),
            # As one line, since what is looked for may have a blank.
            " ".join(said.stream.command),
            *(
                said.stream.close_reason,
                said.resp.reason,
                said.note,
                said.decision.rule,
                said.decision.policy,
            ),
        ]
        return any(self._wanted in text.casefold() for text in texts)
