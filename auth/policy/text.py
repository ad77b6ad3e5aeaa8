"""YAML as policies use it: mappings, lists and text, each with its line and path.

This reads the parser's events instead of using PyYAML's constructors. Those turn `on` and `no` into booleans
and `1.10` into 1.1. They also keep the last of two equal keys, which would make a rule that the author did
not write. Here a scalar is its literal text; only where a flag is expected are `true` and `false` booleans.
Aliases, tags and merge keys are refused: they make a rule depend on distant lines, and a few of them expand
without end.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import attrs
import yaml

# A rule's fields are five levels deep. The limit also makes recursion over a document safe.
DEPTH_MAX = 12
# A policy of 500 rules has 100 KB. The admin API accepts 256 KiB per request.
SOURCE_CHARACTERS_MAX = 256 * 1024
# How much of a value a fault quotes.
_SHOWN_CHARACTERS_MAX = 60

_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
# In YAML, the marker cannot begin any other line, not even in a block of text.
_DOCUMENT_MARK = re.compile(r"^---(?=\s|\Z)", re.MULTILINE)


@attrs.frozen(order=True)
class Fault:
    """One fault in a document: where and what, with the value and the limit."""

    file: str
    line: int
    path: str
    message: str

    def __str__(self) -> str:
        if not self.line:
            # A fault of all files together.
            return self.message
        where = f"{self.file}:{self.line}" if self.file else f"line {self.line}"
        return f"{where}: {self.path}: {self.message}" if self.path else f"{where}: {self.message}"


@attrs.frozen
class Item:
    """A value with its position. None stands for an empty value."""

    value: Mapping | list[Item] | str | None
    line: int
    path: str
    plain: bool = False
    """Written without quotes, so that it may be a flag."""
    at: int = -1
    """The offset of a text or list, in characters of its document."""

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
    """The text of one document, and the line of its file where it begins."""

    text: str
    file: str = ""
    first_line: int = 1


class PolicyError(Exception):
    """Documents that are refused as a whole; `faults` lists everything wrong with them."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(sorted(set(faults)))
        super().__init__("\n".join(map(str, self.faults)))


def split(text: str, file: str = "") -> list[Source]:
    """Split a file into its documents, each with its comments; empty ones are left out."""
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
            problem = "a tab is not allowed here: indent with spaces"
        raise PolicyError([Fault(source.file, line, "", f"not valid YAML: {problem}")]) from error
    if reader.faults:
        raise PolicyError(reader.faults)
    return item


def shown(value: object) -> str:
    """Quote a value of a document, truncated and safe for a terminal."""
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
                # Only the last document would count, and a denial in another would be lost.
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
                self._fault(key.line, inside, f"this key is already on line {first}")
            else:
                mapping[key.value] = value
        return mapping

    def _fault(self, line: int, path: str, message: str) -> None:
        self.faults.append(Fault(self._source.file, line, path, message))
