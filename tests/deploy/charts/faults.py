"""Two faults for each rule of the chart's schema, each with the path that the error must name."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from tests.deploy.charts.sets import CHART, DEFAULTS, SETS, merged

SCHEMA: Mapping[str, Any] = json.loads((CHART / "values.schema.json").read_text())
# Valid, with a value at each path of the schema.
VALID: Mapping[str, Any] = merged(DEFAULTS, SETS["everything"].values) | {
    "tolerations": [{**SETS["everything"].values["tolerations"][0], "tolerationSeconds": 60}],
    "extraEnv": [
        {"name": "A", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b", "optional": True}}},
        {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "b", "optional": True}}},
        {"name": "C", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.hostIP"}}},
        {"name": "D", "value": "x"},
    ],
    "networkPolicy": {
        "enabled": True,
        "egressPorts": [6443],
        "scrapeFrom": [
            {
                kind: {
                    "matchLabels": {"a": "b"},
                    "matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}],
                }
                for kind in ("namespaceSelector", "podSelector")
            }
            | {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}
        ],
    },
}
Path = tuple["str | int", ...]
# Where an array of the schema takes several forms, the index at which VALID has the one that a path needs.
_INDEX: Mapping[Path, int] = {
    ("extraEnv", 0, "valueFrom", "configMapKeyRef"): 1,
    ("extraEnv", 0, "valueFrom", "fieldRef"): 2,
    ("extraEnv", 0, "value"): 3,
}
# Keywords that describe, or whose rules are below them.
_NO_RULES = {"description", "title", "$schema", "$ref", "definitions", "properties", "items", "if", "then"}
_WRONG_TYPES: tuple[object, ...] = (1.5, "text", True, ["text"], {"text": "text"})
_TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}
# Of rules that need to know what a value means.
_CHOSEN: Mapping[tuple[Path, str], tuple[object, object]] = {
    (("impersonate", "agents", 0), "not"): ("system", "kubernetes"),
    (("impersonate", "groups", 0), "not"): ("system/masters", "acme/kubernetes"),
    (("extraEnv", 0, "name"), "not"): ("HAWSE_RELAY_MODE", "HAWSE_RELAY_INSTANCE"),
    (("extraEnv", 0), "oneOf"): (
        {"name": "A"},
        {"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "a"}}},
    ),
    (("networkPolicy", "scrapeFrom", 0), "minProperties"): ({}, {}),
    (("extraEnv", 0, "valueFrom"), "minProperties"): ({}, {}),
    (("extraEnv", 0, "valueFrom"), "maxProperties"): (
        {"fieldRef": {"fieldPath": "a"}, "secretKeyRef": {"name": "a", "key": "b"}},
        {"fieldRef": {"fieldPath": "a"}, "configMapKeyRef": {"name": "a", "key": "b"}},
    ),
    (("image", "pullSecrets"), "uniqueItems"): (["a", "a"], ["b", "a", "b"]),
}


@attrs.frozen
class Fault:
    """Values with one fault: the rule that it breaks, and the path that the error names."""

    path: Path
    keyword: str
    values: Mapping[str, Any]

    @property
    def pointer(self) -> str:
        """The path as a JSON pointer, as Helm 4 and validators name it."""
        return "".join("/" + str(each).replace("~", "~0").replace("/", "~1") for each in self.path)

    @property
    def dotted(self) -> str:
        """The path as Helm 3 names it."""
        return ".".join(map(str, self.path)) or "(root)"

    @property
    def name(self) -> str:
        return f"{self.pointer} {self.keyword}"


def rules(schema: Mapping[str, Any] = SCHEMA, path: Path = ()) -> Iterator[tuple[Path, str, Any]]:
    """Yield each rule of the schema: the path of what it is about, its keyword and its argument."""
    while "$ref" in schema:
        schema = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]]
    for keyword in schema.keys() - _NO_RULES:
        # A file of values that is no map is no file of values to Helm either.
        if not (path == () and keyword == "type") and not isinstance(schema[keyword], dict):
            yield path, keyword, schema[keyword]
    if "not" in schema:
        yield path, "not", schema["not"]
    for name, below in schema.get("properties", {}).items():
        yield from rules(below, (*path, name))
    if isinstance(below := schema.get("additionalProperties"), dict):
        yield from rules(below, (*path, next(iter(at(VALID, path)))))
    if "items" in schema:
        yield from rules(schema["items"], (*path, 0))


def faults() -> list[Fault]:
    """Return two faults for each rule, and those of the rules that join two values."""
    found = []
    for path, keyword, argument in sorted(rules(), key=lambda each: (*map(str, each[0]), each[1])):
        place = _place(path)
        if keyword == "required":
            made = [(place, change(VALID, (*place, name), None)) for name in argument[:2]]
        elif keyword == "additionalProperties":
            made = [(place, change(VALID, (*place, name), "x")) for name in ("unknown", "Unknown")]
        else:
            made = [(place, change(VALID, place, value)) for value in _wrong(path, keyword, argument)]
        found += [Fault(at, keyword, values) for at, values in made]
    wildcard = {"form": "wildcard", "agents": [], "groups": []}
    for impersonate in (wildcard, wildcard | {"iKnow": False}):
        values = {**DEFAULTS, **VALID, "impersonate": impersonate}
        found.append(Fault(("impersonate", "iKnow"), "const", values))
    for name in ("mine", "hawse-relay-guardrails"):
        values = {**VALID, "guardrails": {"text": "x", "configMap": name}}
        found.append(Fault(("guardrails", "configMap"), "const", values))
    return found


def _place(path: Path) -> Path:
    for start, index in _INDEX.items():
        if path[: len(start)] == start:
            return (path[0], index, *path[2:])
    return path


def _wrong(path: Path, keyword: str, argument: Any) -> tuple[object, ...]:
    """Return two values that break a rule."""
    if chosen := _CHOSEN.get((path, keyword)):
        return chosen
    match keyword:
        case "type":
            types = tuple(_TYPES[each] for each in ([argument] if isinstance(argument, str) else argument))
            wrong = [
                each
                for each in _WRONG_TYPES
                if not isinstance(each, types) or (isinstance(each, bool) and bool not in types)
            ]
            return tuple(wrong[:2])
        case "pattern":
            return ("a b", "!")
        case "enum" | "const":
            return ("other", "Plain")
        case "minimum":
            return (argument - 1, -argument)
        case "maximum":
            return (argument + 1, argument * 10)
        case "minLength":
            return ("", "")
        case "maxLength":
            return ("x" * (argument + 1), "x" * (argument + 100))
        case "maxItems":
            [item, *_] = at(VALID, path)
            return tuple(
                [f"{item}-{each}" if isinstance(item, str) else item for each in range(number)]
                for number in (argument + 1, argument + 2)
            )
    raise AssertionError(f"no faults for {keyword} at {path}")


def at(values: Any, path: Path) -> Any:
    for key in path:
        values = values[key]
    return values


def change(values: Mapping[str, Any], path: Path, value: object) -> dict[str, Any]:
    """Return a copy of the values with another value at a path."""
    changed: Any = copy.deepcopy(dict(values))
    place = at(changed, path[:-1])
    # Helm takes a null as the removal of a default, and a list has no defaults.
    if value is None and any(isinstance(each, int) for each in path):
        del place[path[-1]]
    else:
        place[path[-1]] = value
    assert isinstance(changed, dict)
    return changed


def without_nulls(values: Any) -> Any:
    """Return the values as Helm validates them, without those that a null removes."""
    if isinstance(values, dict):
        return {key: without_nulls(value) for key, value in values.items() if value is not None}
    return values
