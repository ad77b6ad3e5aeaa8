"""The built-in policies of a new hub, and edits of rules in a policy's text."""

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
# Line width of inserted rules, the same as in the built-in policies.
_WIDTH = 110


def first_sources() -> tuple[Source, ...]:
    """The policies of a new hub: full access on granted clusters, and the guard pack."""
    folder = files("auth.policy.policies")
    return tuple(
        Source((folder / f"{name}.yaml").read_text("utf-8"), f"{name}.yaml") for name in (GRANTED, GUARD)
    )


def switch(source: Source, rule: str, *, enabled: bool) -> Source:
    """Enable or disable a rule in a policy's text. The rest of the text, with its comments, is unchanged.

    Only the value of the field `enabled` changes. Raises PolicyError if the rule does not exist or has no
    such field. The result is parsed and must be the same policy apart from this field.
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
        # The edited text is not a valid policy. Its faults would confuse: the user did not write that text.
        pass
    message = f'rule "{rule}" of policy "{policy.name}" cannot be switched in this text: change it by hand'
    raise PolicyError([_fault(source, message)])


def with_rules(source: Source, rules: Sequence[Mapping[str, object]]) -> Source:
    """Insert rules before those of a policy. The rest of the text, with its comments, is unchanged.

    Rules whose id the policy already has are skipped. Raises PolicyError if the policy cannot be read, or if
    the rules do not fit in. The result is parsed and must be the same policy with these rules before its own.
    """
    document = read(source)
    policy = _policy(document, source)
    existing = {rule.id for rule in policy.rules}
    new = [dict(rule) for rule in rules if rule["id"] not in existing]
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
    """The field `enabled` of a rule, in a valid document."""
    rules = _rules(document).value
    assert isinstance(rules, list)
    for entry in rules:
        assert isinstance(entry.value, dict)
        if entry.value["id"].value == rule:
            return entry.value.get("enabled")
    return None


def _rules(document: Item) -> Item:
    """The list of rules, in a valid document."""
    assert isinstance(document.value, dict)
    spec = document.value["spec"].value
    assert isinstance(spec, dict)
    return spec["rules"]


def _fault(source: Source, message: str) -> Fault:
    return Fault(source.file, source.first_line, "", message)
