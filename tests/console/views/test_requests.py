"""What the pages of requests show: differences, approvers, states, pages of the list."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from proxy.console.views.requests import (
    VALUE_LINES_MAX,
    Difference,
    Listed,
    approvers_of,
    commands_of,
    differences,
    may_revoke,
    outcome_of,
    rule_of,
    state_of_request,
    value_of,
)
from proxy.hub.approvals.request import State


def difference(before: str | None, after: str | None, path: str = "spec.replicas") -> Difference:
    [made] = differences([{"path": path, "before": before, "after": after}])
    return made


def signs(made: Difference) -> list[tuple[str, str]]:
    return [(value.sign, value.text) for value in made.values]


def test_a_difference_has_what_was_before_and_what_comes_after() -> None:
    changed, added, removed = difference("3", "0"), difference(None, "0"), difference("3", None)
    assert (changed.word, signs(changed)) == ("changed", [("minus", "3"), ("plus", "0")])
    assert (added.word, signs(added)) == ("added", [("plus", "0")])
    assert (removed.word, signs(removed)) == ("removed", [("minus", "3")])


def test_a_changed_value_that_is_not_shown_is_one_line() -> None:
    assert signs(difference("(not shown)", "(not shown)")) == [("same", "(not shown)")]


def test_a_change_of_the_whole_has_no_path() -> None:
    assert difference("1", "2", "").path == "the whole object"


def test_an_object_has_a_line_for_each_field_and_a_long_one_is_folded() -> None:
    assert value_of("plus", '{"a":[1]}').text == '{\n  "a": [\n    1\n  ]\n}'
    long = value_of("plus", json.dumps([*range(VALUE_LINES_MAX)]))
    assert (long.size, long.fold) == (
        f"{VALUE_LINES_MAX + 2} lines",
        "[ 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 ]…",
    )
    assert value_of("plus", '"' + "x" * 1000 + '"').size == "1,002 characters"


def test_a_text_of_one_line_keeps_its_quotes_so_that_it_is_no_number() -> None:
    assert value_of("plus", '"3"').text == '"3"'
    assert value_of("plus", "3").text == "3"
    # Words about a value, and JSON that was cut.
    assert value_of("same", "changed").text == "changed"
    assert value_of("same", '{"a": [1, …').text == '{"a": [1, …'
    assert value_of("same", "[" * 100_000).text == "[" * 100_000


def test_of_two_long_texts_the_lines_that_differ_are_shown_with_their_neighbours() -> None:
    lines = [f"line {number}" for number in range(30)]
    edited = [*lines[:10], "another", *lines[12:]]
    made = difference(json.dumps("\n".join(lines)), json.dumps("\n".join(edited)))
    assert signs(made) == [
        ("same", "… 8 more lines\nline 8\nline 9"),
        ("minus", "line 10\nline 11"),
        ("plus", "another"),
        ("same", "line 12\nline 13\n… 16 more lines"),
    ]


TEXTS = st.lists(st.sampled_from(["a", "b", "- x", "c d"]), min_size=2, max_size=12).map("\n".join)


@given(TEXTS, TEXTS)
def test_each_line_that_differs_is_shown(before: str, after: str) -> None:
    made = difference(json.dumps(before), json.dumps(after))
    if before == after:
        return
    shown = signs(made)
    at = next(number for number, (sign, _) in enumerate(shown) if sign != "same")
    head = [text for _, text in shown[:at]]
    tail = [text for sign, text in shown[at:] if sign == "same"]
    for sign, whole in (("minus", before), ("plus", after)):
        middle = "\n".join([*head, *(text for one, text in shown if one == sign), *tail])
        # With any lines for those that are counted, it is the whole text again.
        pattern = re.sub(r"\\?…\\ (\d+)\\ more\\ lines?", r"(?:[^\\n]*\\n?){\1}", re.escape(middle))
        assert re.fullmatch(pattern, whole), (middle, whole)


def request(**more: Any) -> dict[str, Any]:
    usual: Mapping[str, Any] = {
        "id": "r-1", "state": "pending", "owner": "ada@example.com", "approvers": ["owner"],
        "rule": "shop/risky", "bundle": "12-0cb4", "shown": "ab12", "decided_by": "", "because": "",
        "what": "delete pods shop/web", "may_approve": False,
    }  # fmt: skip
    return {**usual, **more}


def test_approvers_are_persons_or_the_words_of_the_rule() -> None:
    assert approvers_of(request(approvers=["owner", "grace@example.com"])) == [
        "the agent's owner, ada@example.com",
        "grace@example.com",
    ]
    assert approvers_of(request(owner="", approvers=["owner"])) == ["the agent's owner"]
    assert approvers_of(request(approvers=["any", "!owner"])) == [
        "any approver",
        "any approver but the agent's owner",
    ]


def test_each_state_has_a_word_and_a_sentence() -> None:
    for state in State:
        one = request(state=str(state), decided_by="ada@example.com")
        assert state_of_request(one).text
        assert outcome_of(one).then.endswith(".")
    assert "not used in time" in outcome_of(request(state="expired", decided_by="ada@example.com")).text
    assert "not decided in time" in outcome_of(request(state="expired")).text
    # Of a newer hub.
    assert state_of_request(request(state="new")).text == "new"
    assert outcome_of(request(state="new")).text == ""


def test_the_rule_leads_to_its_text_at_the_version_that_asked() -> None:
    assert rule_of(request()) == "/policies/shop?version=12#rule-risky"


def test_commands_are_those_that_the_person_may_use() -> None:
    assert commands_of(request(state="used")) == ["hawse admin request show r-1"]
    assert commands_of(request(may_approve=True)) == [
        "hawse admin request show r-1",
        "hawse admin request approve r-1 --shown ab12",
        "hawse admin request deny r-1 --because WHY",
    ]


def test_an_approval_is_revoked_while_something_is_left_of_it() -> None:
    assert [str(state) for state in State if may_revoke(request(state=str(state)))] == ["approved", "using"]
    # An exec lasts after its approval was used.
    assert may_revoke(request(state="used", what="create pods/exec shop/web"))


def test_a_page_of_the_list_leads_to_its_neighbours() -> None:
    first, middle = Listed({"state": "denied"}, 0, 100, more=True), Listed({}, 150, 100, more=True)
    assert (first.newer, first.older) == ("", "/requests?state=denied&offset=100")
    assert (middle.newer, middle.older) == ("/requests?offset=50", "/requests?offset=250")
    assert (first.text, middle.text) == ("1–100", "151–250")
    last = Listed({}, 0, 3, more=False)
    assert (last.newer, last.older, last.text) == ("", "", "")
    assert Listed({}, 900, 0, more=False).text == "no more"
