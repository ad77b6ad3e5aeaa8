"""The policies that a hub begins with, and the switches of rules in a policy's text."""

from __future__ import annotations

import re
from importlib.resources import files

from auth.policy_document import policy_of
from auth.policy_text import Fault, Item, PolicyError, Source, read

GRANTED = "granted"
GUARD = "guard"

_ENABLED = re.compile(r"(\benabled\s*:\s*)(?:true|false)\b")


def first_sources() -> tuple[Source, ...]:
    """The policies of a new hub: everything on granted clusters, and the guard pack."""
    folder = files("auth.policies")
    return tuple(
        Source((folder / f"{name}.yaml").read_text("utf-8"), f"{name}.yaml") for name in (GRANTED, GUARD)
    )


def switch(source: Source, rule: str, *, enabled: bool) -> Source:
    """Switch a rule on or off in a policy's text, which stays as it is otherwise, its comments too.

    Raises PolicyError when there is no such rule, or it has no field `enabled`: that line is what is changed.
    """
    policy = policy_of(read(source), source, lambda _: "")
    found = next((each for each in policy.rules if each.id == rule), None)
    if found is None:
        known = ", ".join(each.id for each in policy.rules)
        raise PolicyError([_fault(source, f'policy "{policy.name}" has no rule "{rule}", only {known}')])
    item = _field(read(source), rule)
    lines = source.text.split("\n")
    number = item.line - source.first_line if item is not None else -1
    changed, count = (
        _ENABLED.subn(rf"\g<1>{'true' if enabled else 'false'}", lines[number]) if item else ("", 0)
    )
    if count != 1:
        message = (
            f'rule "{rule}" of policy "{policy.name}" has no line "enabled: true": write one, and apply it'
        )
        raise PolicyError([_fault(source, message)])
    lines[number] = changed
    return Source("\n".join(lines), source.file, source.first_line)


def _field(document: Item, rule: str) -> Item | None:
    """The field `enabled` of a rule, in a document that was found to be right."""
    assert isinstance(document.value, dict)
    spec = document.value["spec"].value
    assert isinstance(spec, dict)
    rules = spec["rules"].value
    assert isinstance(rules, list)
    for entry in rules:
        assert isinstance(entry.value, dict)
        if entry.value["id"].value == rule:
            return entry.value.get("enabled")
    return None


def _fault(source: Source, message: str) -> Fault:
    return Fault(source.file, source.first_line, "", message)
