"""The fields of the served kinds, read from schema.txt, for protobuf, validation, patches and OpenAPI.

The table has each field's name, protobuf number, type, and merge strategy. It converts protobuf to JSON,
detects unknown fields, and supplies `kubectl explain`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from importlib import resources

import attrs

_MESSAGE = re.compile(r"(\w+) (\w+)\.(\w+): (.*)")
_FIELD = re.compile(r"(\d+) (\S+) (\*?)((?:\[\]|\{\})*)(\w+)(!?)(?: merge(?:=(\w+))?)?")


@attrs.frozen
class Field:
    """One field. `containers` are the lists and maps around `type`, the outermost first."""

    number: int
    name: str
    type: str
    containers: tuple[str, ...]
    pointer: bool
    required: bool
    merges: bool
    merge_key: str | None
    description: str

    @property
    def inline(self) -> bool:
        """True if the type's fields are inlined into the surrounding object."""
        return self.name == "."


@attrs.frozen
class Message:
    """One type of object."""

    name: str
    group: str
    version: str
    description: str
    fields: tuple[Field, ...]

    @functools.cached_property
    def by_name(self) -> Mapping[str, Field]:
        """Return the fields by JSON name, including those of inlined types."""
        return {field.name: field for field in self.flat()}

    @functools.cached_property
    def by_number(self) -> Mapping[int, Field]:
        """Return the fields by protobuf number."""
        return {field.number: field for field in self.fields}

    def flat(self) -> Iterator[Field]:
        """Yield the fields, with inlined types replaced by their fields."""
        for field in self.fields:
            if field.inline:
                yield from load()[field.type].flat()
            else:
                yield field


@functools.cache
def load() -> Mapping[str, Message]:
    """Return all messages by name."""
    source = resources.files("sandbox").joinpath("schema.txt").read_text(encoding="utf-8")
    messages = {}
    for block in source.split("\n\n"):
        lines = [line for line in block.splitlines() if line and not line.startswith("#")]
        if lines:
            message = _message(lines)
            messages[message.name] = message
    return messages


def _message(lines: list[str]) -> Message:
    found = _MESSAGE.fullmatch(lines[0])
    assert found, lines[0]
    fields = [field for line in lines[1:] for field in _fields(line)]
    name, group, version, description = found.groups()
    return Message(name, group, version, description, tuple(fields))


def _fields(line: str) -> Iterator[Field]:
    declarations, _, description = line.partition(": ")
    for declaration in declarations.split("; "):
        found = _FIELD.fullmatch(declaration)
        assert found, line
        number, name, pointer, containers, kind, required, merge_key = found.groups()
        yield Field(
            number=int(number),
            name=name,
            type=kind,
            containers=tuple(re.findall(r"\[\]|\{\}", containers)),
            pointer=bool(pointer),
            required=bool(required),
            merges=" merge" in declaration,
            merge_key=merge_key,
            description=description,
        )
