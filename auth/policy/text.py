"""YAML as policies use it: mappings, lists and text, each with the line and the path where it stands.

Built from the parser's events, not by PyYAML's constructors. Those turn `on` and `no` into booleans, `1.10`
into 1.1, and take the last of two equal keys, which in a policy is a rule that nobody wrote. Here a scalar is
the text that stands there, and only where a flag is expected `true` and `false` are one. Aliases, tags and
merge keys are refused: they make a rule depend on lines far from it, and a few make a document without end.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import attrs
import yaml

# A rule's fields are five levels deep; this is also what makes every walk over a document safe to recurse.
DEPTH_MAX = 12
# A policy of 500 rules has 100 KB; the admin API takes 256 KiB a request.
SOURCE_CHARACTERS_MAX = 256 * 1024
# What a fault quotes of a value.
_SHOWN_CHARACTERS_MAX = 60

_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
# YAML lets the marker stand nowhere else at the beginning of a line, not even in a block of text.
_DOCUMENT_MARK = re.compile(r"^---(?=\s|\Z)", re.MULTILINE)


@attrs.frozen(order=True)
class Fault:
    """One thing that is wrong in a document: where, and what, with the value and the limit."""

    file: str
    line: int
    path: str
    message: str

    def __str__(self) -> str:
        if not self.line:
            # Of all files together.
            return self.message
        where = f"{self.file}:{self.line}" if self.file else f"line {self.line}"
        return f"{where}: {self.path}: {self.message}" if self.path else f"{where}: {self.message}"


@attrs.frozen
class Item:
    """A value with its place. None stands for an empty one."""

    value: Mapping | list[Item] | str | None
    line: int
    path: str
    plain: bool = False
    """Written without quotes, so that it may be a flag."""
    at: int = -1
    """Where a text or a list begins, in characters of its document."""

    def data(self) -> Data:
        """The value alone."""
        if isinstance(self.value, dict):
            return {key: item.data() for key, item in self.value.items()}
        if isinstance(self.value, list):
            return [item.data() for item in self.value]
        return self.value


Mapping: TypeAlias = dict[str, Item]
Data: TypeAlias = "dict[str, Data] | list[Data] | str | None"


@attrs.frozen
class Source:
    """The text of one document, and where in its file it begins."""

    text: str
    file: str = ""
    first_line: int = 1


class PolicyError(Exception):
    """Documents that are refused as a whole; `faults` are all that is wrong with them."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(sorted(set(faults)))
        super().__init__("\n".join(map(str, self.faults)))


def split(text: str, file: str = "") -> list[Source]:
    """Cut a file into its documents, each with its comments; an empty one is left out."""
    starts = [0, *(match.start() for match in _DOCUMENT_MARK.finditer(text)), len(text)]
    sources = []
    begins = 1
    for start, end in itertools.pairwise(starts):
        part, line = text[start:end], begins
        begins += part.count("\n")
        if part.startswith("---"):
            body = part.partition("\n")[2] if not part[3:].partition("\n")[0].strip() else part[3:]
            line += part[: len(part) - len(body)].count("\n")
            part = body
        if any(line.strip() and not line.lstrip().startswith("#") for line in part.splitlines()):
            sources.append(Source(part, file, line))
    return sources


def read(source: Source) -> Item:
    """Read one document; raises PolicyError."""
    if len(source.text) > SOURCE_CHARACTERS_MAX:
        message = f"{len(source.text)} characters exceed the {SOURCE_CHARACTERS_MAX} of a document"
        raise PolicyError([Fault(source.file, source.first_line, "", message)])
    reader = _Reader(source)
    try:
        item = reader.document(yaml.parse(source.text, Loader=_LOADER))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = source.first_line + (mark.line if mark is not None else 0)
        problem = getattr(error, "problem", None) or "it cannot be read"
        if mark is not None and source.text[mark.index : mark.index + 1] == "\t":
            problem = "a tab cannot stand here: indent by blanks"
        raise PolicyError([Fault(source.file, line, "", f"this is no YAML: {problem}")]) from error
    if reader.faults:
        raise PolicyError(reader.faults)
    return item


def shown(value: object) -> str:
    """Quote what stands in a document, short and safe for a terminal."""
    text = value if isinstance(value, str) else type(value).__name__
    cut = text[:_SHOWN_CHARACTERS_MAX] + "…" if len(text) > _SHOWN_CHARACTERS_MAX else text
    return '"' + "".join(char if char.isprintable() else ascii(char)[1:-1] for char in cut) + '"'


class _Reader:
    def __init__(self, source: Source) -> None:
        self._source = source
        self.faults: list[Fault] = []

    def document(self, events: Iterator[yaml.Event]) -> Item:
        """The one document among the parser's events; raises yaml.YAMLError, PolicyError."""
        item: Item | None = None
        for event in events:
            if isinstance(event, yaml.StreamStartEvent | yaml.StreamEndEvent):
                continue
            if isinstance(event, yaml.DocumentStartEvent | yaml.DocumentEndEvent):
                continue
            before, item = item, self._item(event, events, "", 0)
            if before is not None:
                # Of what is read only the last would count, and a denial in another be lost.
                self._fault(item.line, "", "a second document begins here: give each by itself")
        return item if item is not None else Item(None, self._source.first_line, "")

    def _item(self, event: yaml.Event, events: Iterator[yaml.Event], path: str, depth: int) -> Item:
        line = self._source.first_line + (event.start_mark.line if event.start_mark is not None else 0)
        if isinstance(event, yaml.AliasEvent):
            self._fault(line, path, "an alias (*name) is refused: write out what it stands for")
            return Item(None, line, path)
        if getattr(event, "anchor", None) is not None or getattr(event, "tag", None) is not None:
            self._fault(line, path, "an anchor (&name) or a tag (!name) is refused")
        if depth > DEPTH_MAX:
            message = f"it is nested deeper than {DEPTH_MAX} levels"
            raise PolicyError([Fault(self._source.file, line, path, message)])
        if isinstance(event, yaml.ScalarEvent):
            plain = event.style in {None, ""}
            empty = plain and event.value in _NULLS
            at = event.start_mark.index if event.start_mark is not None else -1
            return Item(None if empty else event.value, line, path, plain, at)
        if isinstance(event, yaml.SequenceStartEvent):
            begins = event.start_mark.index if event.start_mark is not None else -1
            listed: list[Item] = []
            while not isinstance(event := next(events), yaml.SequenceEndEvent):
                listed.append(self._item(event, events, f"{path}[{len(listed)}]", depth + 1))
            return Item(listed, line, path, at=begins)
        return Item(self._mapping(events, path, depth), line, path)

    def _mapping(self, events: Iterator[yaml.Event], path: str, depth: int) -> Mapping:
        mapping: Mapping = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            key = self._item(event, events, path, depth + 1)
            inside = f"{path}.{key.value}" if path else str(key.value)
            value = self._item(next(events), events, inside, depth + 1)
            if not isinstance(key.value, str):
                self._fault(key.line, path, "a key must be text")
            elif key.value == "<<":
                self._fault(key.line, path, "a merge key (<<) is refused: write out what it stands for")
            elif key.value in mapping:
                first = mapping[key.value].line
                self._fault(key.line, inside, f"this key stands here twice, first in line {first}")
            else:
                mapping[key.value] = value
        return mapping

    def _fault(self, line: int, path: str, message: str) -> None:
        self.faults.append(Fault(self._source.file, line, path, message))
