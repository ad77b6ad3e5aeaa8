"""The examples in docs/policy.md are correct."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from auth.policy.ask import APPROVERS_MAX, VALID_FOR_S, VALID_FOR_S_MAX, WAIT_S, WAIT_S_MAX, Ask
from auth.policy.bundled import first_sources
from auth.policy.document import ASK_FIELDS, RULE_FIELDS
from auth.policy.match import compile_bundle
from auth.policy.rules import VERBS, Effect
from proxy.cli.admin.policy.tests import read_cases, run_cases
from tests.auth.policies import CONDITIONS, sources

PAGE = (Path(__file__).parents[3] / "docs" / "policy.md").read_text()


def block(start: str) -> str:
    """The indented block that contains this line."""
    found = re.search(rf"^    {re.escape(start)}\n(?:    .*\n|\n(?=    ))*", PAGE, re.MULTILINE)
    assert found is not None, start
    return textwrap.dedent(found[0])


def test_the_first_policy_and_its_cases_hold() -> None:
    policy = block("# sre.yaml").partition("\nhawse")[0]
    made = compile_bundle(sources(policy), CONDITIONS)
    [source] = sources(block("kind: PolicyTest"))
    results = run_cases(made, read_cases(source), 0.0)
    assert len(results) == 3
    assert all(result.passed for result in results)


def test_the_rule_that_asks_is_one_and_the_table_has_every_field_of_ask() -> None:
    made = compile_bundle(sources(block("# approvals.yaml")), CONDITIONS)
    [rule] = made.policies[0].rules
    assert rule.ask == Ask(("you@example.com", "owner"), WAIT_S, VALID_FOR_S)
    table = PAGE[PAGE.index("| field of `ask` | |") :].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == list(ASK_FIELDS)
    for limit in (f"`0s` to `{WAIT_S_MAX}s`; without it, `{WAIT_S}s`", f"Up to {APPROVERS_MAX};"):
        assert limit in table
    assert (VALID_FOR_S, VALID_FOR_S_MAX) == (15 * 60, 3600)
    assert "`1s` to `1h`; without it, `15m`" in table


def test_the_table_of_a_rule_has_every_field_and_effect() -> None:
    table = PAGE[PAGE.index("## Fields of a rule") :].partition("\n\n- ")[0]
    first = " ".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    assert {field.partition(".")[0] for field in re.findall(r"`([\w.]+)`", first)} == set(RULE_FIELDS)
    row = next(line for line in PAGE.splitlines() if line.startswith("| `effect`"))
    assert set(re.findall(r"`(\w+)`", row)) == {"effect", *Effect}


def test_the_conditions_are_conditions() -> None:
    texts = re.findall(r"^    when: (.*)$", PAGE, re.MULTILINE)
    assert len(texts) == 3
    assert [CONDITIONS.check(text) for text in texts] == ["", "", ""]


def test_the_tables_have_every_verb_and_every_rule_of_the_guard() -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith("| `verbs`"))
    assert set(re.findall(r"[a-z*]+", row.partition("`verbs`")[2])) >= set(VERBS)
    guard = compile_bundle(first_sources(), CONDITIONS).policies[1]
    table = PAGE[PAGE.index("| rule | denies | |") :].partition("\n\n")[0]
    listed = {
        name: line.rstrip().removesuffix("|").split("|")[-1].strip()
        for line in table.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([a-z-]+)`", line.split("|")[1])
    }
    assert listed == {rule.id: "on" if rule.enabled else "off" for rule in guard.rules}
