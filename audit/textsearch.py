"""Free-text search in events: the path, the arguments, the reasons, and the request for approval.

Each event that may match must be decoded, so a search reads a bounded number of events.
"""

from __future__ import annotations

from urllib.parse import unquote

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from audit.members import Position

_Column = sa.ColumnElement[bytes]

# Maximum events searched: one second of work. The other filters select the newest events for the search.
TEXT_EVENTS_MAX = 100_000


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


class _Approval(msgspec.Struct, frozen=True):
    request: str = ""
    by: str = ""


class _Searched(msgspec.Struct, frozen=True):
    """Only the searched members, so that events of a newer hawse can be searched too."""

    req: _Request = _Request()
    resp: _Response = _Response()
    stream: _Stream = _Stream()
    decision: _Decision = _Decision()
    approval: _Approval = _Approval()
    serves: str = ""
    note: str = ""


_decode = msgspec.json.Decoder(_Searched).decode


class Text:
    """A search text; the search ignores case."""

    def __init__(self, text: str) -> None:
        self._text = text.casefold()

    def conditions(self, own: _Column, common: _Column) -> list[sa.ColumnElement[bool]]:
        """SQL conditions that every event with the text meets; some others meet them too.

        They leave out most events without the text, in a tenth of the time that decoding takes.
        """
        text = self._text
        if not text.isascii() or not text.isprintable() or '"' in text or "\\" in text:
            # JSON may have another form of it.
            return []
        # Some letters beyond ASCII become ASCII if case is ignored, such as the Kelvin sign.
        found = [_has(own, text), _has(common, text), _beyond_ascii(own), _beyond_ascii(common)]
        # In a query a character may be escaped, and a blank is a plus. Between arguments it is a comma.
        marks = ["%", "+", '"command":'] if " " in text else ["%"]
        return [sa.or_(*found, *(_has(own, mark) for mark in marks))]

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
                searched.approval.request,
                searched.approval.by,
                searched.serves,
            ),
        ]
        return any(self._text in text.casefold() for text in texts)


class _Lower(FunctionElement[str]):
    """The text of JSON in lower case."""

    type = sa.String()
    inherit_cache = True


@compiles(_Lower)
def _in_sqlite(element: _Lower, compiler: SQLCompiler, **options: object) -> str:
    return f"lower(CAST({compiler.process(element.clauses, **options)} AS TEXT))"


@compiles(_Lower, "postgresql")
def _in_postgresql(element: _Lower, compiler: SQLCompiler, **options: object) -> str:
    return f"lower(convert_from({compiler.process(element.clauses, **options)}, 'UTF8'))"


def _has(column: _Column, text: str) -> sa.ColumnElement[bool]:
    return Position(_Lower(column), sa.literal(text)) > 0


def _beyond_ascii(column: _Column) -> sa.ColumnElement[bool]:
    """Whether some character has more than one byte."""
    return sa.func.length(_Lower(column)) < sa.func.length(column)
