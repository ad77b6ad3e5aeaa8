"""Differences of policies, by rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.policy.diff import Change, PolicyChange, _canonical, diff
from auth.policy.text import Data, PolicyError, Source, read

BASE = """\
apiVersion: hawse.dev/v1
kind: Policy
metadata: {name: app}
spec:
  bind: {teams: [sre]}
  rules:
  # The first rule.
  - id: view
    effect: allow
    verbs: [read]
    resources: [pods]
  - id: exec
    effect: deny
    verbs: [create]
    resources: [pods/exec]
    reason: "no: use logs"
  - id: edit
    effect: allow
    verbs: [write]
    resources: [deployments]
"""


def changes(before: str, after: str) -> list[PolicyChange]:
    return diff([Source(before)], [Source(after)])


def test_equal_documents_have_no_difference() -> None:
    assert changes(BASE, BASE) == []


def test_an_edited_rule_is_shown_whole() -> None:
    [change] = changes(BASE, BASE.replace("resources: [pods/exec]", "resources: [pods/exec, pods/attach]"))
    assert (change.policy, change.change, change.settings) == ("app", Change.EDITED, ())
    [rule] = change.rules
    assert (rule.rule, rule.change, rule.effect, rule.line) == ("exec", Change.EDITED, "deny", 12)
    assert rule.lines == (
        " id: exec",
        " effect: deny",
        " verbs: [create]",
        "-resources: [pods/exec]",
        "+resources: [pods/exec, pods/attach]",
        " reason: 'no: use logs'",
    )


def test_added_and_removed_rules() -> None:
    without = BASE.replace(BASE[BASE.index("  - id: exec") : BASE.index("  - id: edit")], "")
    [removed] = changes(BASE, without)
    assert [(rule.rule, rule.change, rule.line) for rule in removed.rules] == [("exec", Change.REMOVED, 12)]
    assert all(line.startswith("-") for line in removed.rules[0].lines)
    [added] = changes(without, BASE)
    assert [(rule.rule, rule.change, rule.line) for rule in added.rules] == [("exec", Change.ADDED, 12)]
    assert all(line.startswith("+") for line in added.rules[0].lines)


def test_a_moved_rule_is_no_edit() -> None:
    begin = BASE.index("  - id: edit")
    first = BASE.index("  # The first rule.")
    moved = BASE[:first] + BASE[begin:] + BASE[first:begin]
    [change] = changes(BASE, moved)
    assert [(rule.rule, rule.change) for rule in change.rules] == [("edit", Change.MOVED)]
    assert all(line.startswith(" ") for line in change.rules[0].lines)


def test_everything_but_the_rules_is_settings() -> None:
    [change] = changes(BASE, BASE.replace("{teams: [sre]}", "{teams: [sre, dev]}"))
    assert change.rules == ()
    assert "-    teams: [sre]" in change.settings
    assert "+    teams: [sre, dev]" in change.settings
    assert not any("rules" in line for line in change.settings)


def test_comments_and_layout_are_no_edit() -> None:
    other = BASE.replace("  # The first rule.\n", "").replace("[read]", '["read"]')
    assert changes(BASE, other) == [PolicyChange("app", Change.LAYOUT)]


def test_policies_are_compared_by_name() -> None:
    renamed = BASE.replace("name: app", "name: web")
    found = diff([Source(BASE)], [Source(renamed)])
    assert [(each.policy, each.change) for each in found] == [("app", Change.REMOVED), ("web", Change.ADDED)]
    assert [rule.rule for rule in found[1].rules] == ["view", "exec", "edit"]


def test_a_long_list_has_a_line_for_each_entry() -> None:
    names = ", ".join(f"namespace-{number}" for number in range(30))
    before = BASE.replace("resources: [pods]", f"resources: [pods]\n    namespaces: [{names}]")
    [change] = changes(before, before.replace("namespace-17", "other"))
    marked = [line for line in change.rules[0].lines if not line.startswith(" ")]
    assert marked == ["-- namespace-17", "+- other"]


def test_a_text_of_several_lines_keeps_them() -> None:
    before = BASE.replace('"no: use logs"', "|\n      one\n      two")
    [change] = changes(before, before.replace("two", "three"))
    assert [line for line in change.rules[0].lines if line[0] != " "] == ["-  two", "+  three"]


def test_a_document_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(PolicyError):
        diff([Source("a: [")], [])


SCALARS = st.one_of(
    st.none(),
    st.sampled_from(
        ["true", "1.10", "null", "~", "", "*", "!x", "a: b", "- a", "# c", "'", '"', "2001-01-01"]
    ),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20),
    st.text("ab\n :#", max_size=8),
)
VALUES: st.SearchStrategy[Data] = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text("abc", min_size=1), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["effect", "reason", "when", "names"]), VALUES, max_size=4))
def test_the_lines_of_a_rule_are_the_rule(fields: dict[str, Data]) -> None:
    """Pasted into a policy, they are read as what they were made of, whatever text is in them."""
    rule: Data = {"id": "x", **fields}
    assert read(Source("".join(f"{line}\n" for line in _canonical(rule)))).data() == rule
