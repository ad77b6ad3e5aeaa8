"""The difference of two sets of policies, by rule.

It compares what the documents say, so layout and comments alone are no change of a rule. The lines shown are
canonical YAML: pasted into a policy they make the same rule. It needs no valid documents of this version of
hawse, only readable ones: a stored bundle may be older.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from enum import StrEnum

import attrs
import yaml

from auth.policy.text import Data, Item, Source, read

# A list up to this length stays on one line; in a longer one, each entry has a line, so that a changed entry
# shows.
_LIST_CHARACTERS_MAX = 80
_DUMPER: type[yaml.SafeDumper] = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_NULL = "tag:yaml.org,2002:null"


class Change(StrEnum):
    """How a policy or a rule differs."""

    ADDED = "added"
    EDITED = "edited"
    REMOVED = "removed"
    MOVED = "moved"
    """A rule only: the same text after other rules."""
    LAYOUT = "layout"
    """A policy only: other comments or another layout."""


@attrs.frozen
class RuleChange:
    """The difference of one rule."""

    rule: str
    change: Change
    effect: str
    line: int
    """Where it begins in its new document; that of a removed rule in the old one."""
    lines: tuple[str, ...]
    """The whole rule, each line after one of ' ', '-', '+'."""


@attrs.frozen
class PolicyChange:
    """The difference of one policy."""

    policy: str
    change: Change
    settings: tuple[str, ...] = ()
    """Everything but the rules, as the lines of a rule; empty if that is equal."""
    rules: tuple[RuleChange, ...] = ()


def diff(before: Iterable[Source], after: Iterable[Source]) -> list[PolicyChange]:
    """Compare documents by the names of their policies. Raises PolicyError for one that cannot be read."""
    old, new = list(before), list(after)
    same = {source.text for source in old} & {source.text for source in new}
    was = _by_name(source for source in old if source.text not in same)
    now = _by_name(source for source in new if source.text not in same)
    return [_compare(name, was.get(name), now.get(name)) for name in sorted(was.keys() | now.keys())]


def _by_name(sources: Iterable[Source]) -> dict[str, Item]:
    items = map(read, sources)
    return {_text(_entry(_entry(item, "metadata"), "name")): item for item in items}


def _compare(name: str, before: Item | None, after: Item | None) -> PolicyChange:
    settings, rules = _lines_of(_settings(before), _settings(after)), _compare_rules(before, after)
    if before is None:
        change = Change.ADDED
    elif after is None:
        change = Change.REMOVED
    else:
        change = Change.EDITED if settings or rules else Change.LAYOUT
    return PolicyChange(name, change, settings, rules)


def _compare_rules(before: Item | None, after: Item | None) -> tuple[RuleChange, ...]:
    old, new = _rules(before), _rules(after)
    moved = _moved(old, new)
    changes = []
    for rule in [*new, *(rule for rule in old if rule not in new)]:
        was, now = old.get(rule), new.get(rule)
        lines = _lines_of(_data(was), _data(now))
        if was is None:
            change = Change.ADDED
        elif now is None:
            change = Change.REMOVED
        elif lines:
            change = Change.EDITED
        elif rule in moved:
            change = Change.MOVED
            lines = tuple(f" {line}" for line in _canonical(now.data()))
        else:
            continue
        shown = now or was
        assert shown is not None  # it is a rule of one of them
        changes.append(RuleChange(rule, change, _text(_entry(shown, "effect")), shown.line, lines))
    return tuple(changes)


def _moved(old: Mapping[str, Item], new: Mapping[str, Item]) -> set[str]:
    """Return the rules of both that are in another order."""
    was, now = [rule for rule in old if rule in new], [rule for rule in new if rule in old]
    if was == now:
        return set()
    blocks = difflib.SequenceMatcher(None, was, now, autojunk=False).get_matching_blocks()
    return {*now} - {rule for block in blocks for rule in was[block.a : block.a + block.size]}


def _settings(item: Item | None) -> Data:
    """Return a document's data without its rules."""
    data = _data(item)
    if not isinstance(data, dict):
        return data
    spec = data.get("spec")
    if isinstance(spec, dict):
        data["spec"] = {key: value for key, value in spec.items() if key != "rules"}
    return data


def _rules(item: Item | None) -> dict[str, Item]:
    rules = _entry(_entry(item, "spec"), "rules")
    if rules is None or not isinstance(rules.value, list):
        return {}
    return {_text(_entry(rule, "id")): rule for rule in rules.value}


def _entry(item: Item | None, key: str) -> Item | None:
    return item.value.get(key) if item is not None and isinstance(item.value, dict) else None


def _text(item: Item | None) -> str:
    return item.value if item is not None and isinstance(item.value, str) else ""


def _data(item: Item | None) -> Data:
    return None if item is None else item.data()


def _lines_of(before: Data, after: Data) -> tuple[str, ...]:
    """Return all lines of both with their marks; none if the data is equal."""
    if before == after:
        return ()
    was, now = _canonical(before), _canonical(after)
    lines: list[str] = []
    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(None, was, now, autojunk=False).get_opcodes():
        if tag == "equal":
            lines += (f" {line}" for line in was[i1:i2])
        else:
            lines += (f"-{line}" for line in was[i1:i2])
            lines += (f"+{line}" for line in now[j1:j2])
    return tuple(lines)


def _canonical(data: Data) -> list[str]:
    if data is None:
        return []
    text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 30)
    # Not splitlines: YAML's own line ends alone.
    return text.removesuffix("\n").split("\n")


class _Dumper(_DUMPER):  # type: ignore[misc, valid-type]  # a variable as base class: with libyaml or without
    """Writes text as policies read it: only what stands for an empty value has quotes."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's interface
        first: [entry for entry in entries if entry[0] == _NULL]
        for first, entries in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }

    def ignore_aliases(self, data: object) -> bool:
        """Write equal lists twice: policies have no aliases."""
        return True


def _list(dumper: yaml.SafeDumper, data: list[Data]) -> yaml.Node:
    texts = [entry for entry in data if isinstance(entry, str)]
    short = len(texts) == len(data) and sum(len(text) + 2 for text in texts) <= _LIST_CHARACTERS_MAX
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=short)


def _mapping(dumper: yaml.SafeDumper, data: dict[str, Data]) -> yaml.Node:
    return dumper.represent_mapping("tag:yaml.org,2002:map", data, flow_style=False)


def _string(dumper: yaml.SafeDumper, data: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)


_Dumper.add_representer(list, _list)
_Dumper.add_representer(dict, _mapping)
_Dumper.add_representer(str, _string)
