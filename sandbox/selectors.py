"""Label and field selectors: kubectl's `-l` and `--field-selector`, and the selectors in objects."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import attrs

from sandbox.objects import Json, Object, lookup, mapping, string_map, strings, text
from sandbox.status import bad_request

_SET = re.compile(r"\s*(\S+)\s+(in|notin)\s*\(([^)]*)\)\s*")
_EQUALS = re.compile(r"\s*([^\s=!<>,()]+)\s*(==|=|!=)\s*([^\s=!,()]*)\s*")
_COMPARED = re.compile(r"\s*([^\s=!<>,()]+)\s*([<>])\s*(-?\d+)\s*")
_EXISTS = re.compile(r"\s*(!?)\s*([^\s=!<>,()]+)\s*")


@attrs.frozen
class Requirement:
    """One term of a label selector; all terms must match."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels match this term. A missing label differs from every value."""
        present = self.key in labels
        value = labels.get(self.key, "")
        match self.operator:
            case "in":
                return present and value in self.values
            case "notin":
                return not present or value not in self.values
            case "exists":
                return present
            case "!":
                return not present
        if not present or not re.fullmatch(r"-?\d+", value):
            return False
        bound = int(self.values[0])
        return int(value) > bound if self.operator == ">" else int(value) < bound


def parse_labels(selector: str) -> tuple[Requirement, ...]:
    """Parse the string form of a label selector; raises StatusError."""
    return tuple(_label_term(term) for term in _split(selector) if term.strip())


def _label_term(term: str) -> Requirement:
    if found := _SET.fullmatch(term):
        key, operator, values = found.groups()
        return Requirement(key, operator, tuple(value.strip() for value in values.split(",")))
    if found := _EQUALS.fullmatch(term):
        key, operator, value = found.groups()
        return Requirement(key, "notin" if operator == "!=" else "in", (value,))
    if found := _COMPARED.fullmatch(term):
        key, operator, value = found.groups()
        return Requirement(key, operator, (value,))
    if found := _EXISTS.fullmatch(term):
        absent, key = found.groups()
        return Requirement(key, "!" if absent else "exists")
    raise bad_request(f"unable to parse requirement: found '{term.strip()}', expected: a label selector")


def _split(selector: str) -> list[str]:
    """Split at the commas outside parentheses."""
    return re.findall(r"[^,(]*(?:\([^)]*\)[^,(]*)*", selector) if selector else []


_OPERATORS = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "!"}


def from_object(selector: Object) -> tuple[Requirement, ...]:
    """Read a metav1.LabelSelector, such as a Deployment's."""
    equal = [Requirement(key, "in", (value,)) for key, value in string_map(selector, "matchLabels").items()]
    expressions = selector.get("matchExpressions")
    terms = expressions if isinstance(expressions, list) else []
    return (
        *equal,
        *(
            Requirement(text(term, "key"), _OPERATORS[text(term, "operator")], tuple(strings(term, "values")))
            for term in terms
        ),
    )


def labels_match(requirements: Sequence[Requirement], item: Object) -> bool:
    """Whether an object's labels match all terms."""
    labels = string_map(item, "metadata", "labels")
    return all(requirement.matches(labels) for requirement in requirements)


def parse_fields(selector: str) -> tuple[Requirement, ...]:
    """Parse a field selector; raises StatusError."""
    terms = []
    for term in selector.split(","):
        if not term:
            continue
        found = re.fullmatch(r"([^=!]+)(==|=|!=)(.*)", term)
        if found is None:
            raise bad_request(f"invalid selector: '{selector}'; can't understand '{term}'")
        field, operator, value = found.groups()
        value = re.sub(r"\\([\\,=])", r"\1", value)
        terms.append(Requirement(field, "notin" if operator == "!=" else "in", (value,)))
    return tuple(terms)


def exact_name(selector: str) -> str:
    """Return the name that a field selector selects, if it selects exactly one."""
    found = re.search(r"(?:^|,)metadata\.name==?([^,=!]+)(?:,|$)", selector)
    return found[1] if found and "/" not in found[1] and "%" not in found[1] else ""


def field_matcher(requirements: Sequence[Requirement], allowed: Sequence[str]) -> Callable[[Object], bool]:
    """Return a predicate for a field selector; raises StatusError for an unsupported field."""
    for requirement in requirements:
        if requirement.key not in allowed:
            raise bad_request(f"field label not supported: {requirement.key}")
    return lambda item: all(
        requirement.matches({requirement.key: _field(item, requirement.key)}) for requirement in requirements
    )


def _field(item: Object, field: str) -> str:
    if field == "spec.unschedulable":
        return "true" if mapping(item, "spec").get("unschedulable") else "false"
    value: Json = lookup(item, *field.split("."))
    return value if isinstance(value, str) else "" if value is None else str(value)
