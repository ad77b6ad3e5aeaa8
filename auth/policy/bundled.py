"""The policies that a hub begins with, and changes of rules in a policy's text."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from importlib.resources import files

import attrs
import yaml

from auth.policy.document import policy_of
from auth.policy.rules import Policy
from auth.policy.text import Fault, Item, PolicyError, Source, read

GRANTED = "granted"
GUARD = "guard"
# Of the lines that are put into a policy; the shipped ones are as wide.
_WIDTH = 110


def first_sources() -> tuple[Source, ...]:
    """The policies of a new hub: everything on granted clusters, and the guard pack."""
    folder = files("auth.policy.policies")
    return tuple(
        Source((folder / f"{name}.yaml").read_text("utf-8"), f"{name}.yaml") for name in (GRANTED, GUARD)
    )


def switch(source: Source, rule: str, *, enabled: bool) -> Source:
    """Switch a rule on or off in a policy's text, which stays as it is otherwise, its comments too.

    Raises PolicyError when there is no such rule, or it has no field `enabled`: that word is what is changed.
    What comes of it is read again, and must be the same policy but for this.
    """
    document = read(source)
    policy = _policy(document, source)
    found = next((each for each in policy.rules if each.id == rule), None)
    if found is None:
        known = ", ".join(each.id for each in policy.rules)
        raise PolicyError([_fault(source, f'policy "{policy.name}" has no rule "{rule}", only {known}')])
    item = _field(document, rule)
    if item is None or not isinstance(item.value, str):
        message = (
            f'rule "{rule}" of policy "{policy.name}" has no line "enabled: true": write one, and apply it'
        )
        raise PolicyError([_fault(source, message)])
    before, after = source.text[: item.at], source.text[item.at + len(item.value) :]
    switched = Source(f"{before}{'true' if enabled else 'false'}{after}", source.file, source.first_line)
    rules = tuple(attrs.evolve(each, enabled=enabled) if each is found else each for each in policy.rules)
    try:
        if _policy(read(switched), switched) == attrs.evolve(policy, rules=rules):
            return switched
    except PolicyError:
        # What was changed is no policy any more, and its faults would be told of a text that nobody wrote.
        pass
    message = f'rule "{rule}" of policy "{policy.name}" cannot be switched in this text: change it by hand'
    raise PolicyError([_fault(source, message)])


def with_rules(source: Source, rules: Sequence[Mapping[str, object]]) -> Source:
    """Put rules before those of a policy, whose text stays as it is otherwise, its comments too.

    A rule whose id the policy has already is left out. Raises PolicyError when the policy cannot be read, or
    has no room for them. The result is read again, and must be the same policy with these rules before it.
    """
    document = read(source)
    policy = _policy(document, source)
    there = {rule.id for rule in policy.rules}
    new = [dict(rule) for rule in rules if rule["id"] not in there]
    if not new:
        return source
    at = _rules(document).at
    if source.text.startswith("[", at):
        inside = ", ".join(json.dumps(rule) for rule in new)
        text = f"{source.text[: at + 1]}{inside}, {source.text[at + 1 :]}"
    else:
        indent = " " * (at - (source.text.rfind("\n", 0, at) + 1))
        block = yaml.safe_dump(new, sort_keys=False, width=_WIDTH, default_flow_style=None)
        text = f"{source.text[:at]}{textwrap.indent(block, indent)[len(indent) :]}{indent}{source.text[at:]}"
    changed = Source(text, source.file, source.first_line)
    result = _policy(read(changed), changed)
    rest = tuple(attrs.evolve(rule, line=0) for rule in result.rules[len(new) :])
    before = attrs.evolve(policy, rules=tuple(attrs.evolve(rule, line=0) for rule in policy.rules))
    added = [rule.id for rule in result.rules[: len(new)]]
    if attrs.evolve(result, rules=rest) != before or added != [rule["id"] for rule in new]:
        message = (
            f'policy "{policy.name}" cannot take the rules {", ".join(map(str, added))}: add them by hand'
        )
        raise PolicyError([_fault(source, message)])
    return changed


def _policy(document: Item, source: Source) -> Policy:
    return policy_of(document, source, lambda _: "")


def _field(document: Item, rule: str) -> Item | None:
    """The field `enabled` of a rule, in a document that was found to be right."""
    rules = _rules(document).value
    assert isinstance(rules, list)
    for entry in rules:
        assert isinstance(entry.value, dict)
        if entry.value["id"].value == rule:
            return entry.value.get("enabled")
    return None


def _rules(document: Item) -> Item:
    """The list of rules, in a document that was found to be right."""
    assert isinstance(document.value, dict)
    spec = document.value["spec"].value
    assert isinstance(spec, dict)
    return spec["rules"]


def _fault(source: Source, message: str) -> Fault:
    return Fault(source.file, source.first_line, "", message)
