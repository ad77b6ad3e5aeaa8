"""Policies over the admin API: dry runs, and the difference of stored versions."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.hub.store.roles import Role
from tests.auth.policies import policy
from tests.fakes.admin import ROLE_TOKENS, Bench, give_each_role_a_token

LOOK = policy("- {id: look, effect: allow, verbs: [read], resources: [pods]}", name="look")


def body(*texts: str, **more: object) -> dict[str, object]:
    return {"files": [{"name": f"{at}.yaml", "text": text} for at, text in enumerate(texts)], **more}


@pytest.mark.parametrize("asked", [("?dry_run=true", {}), ("", {"dry_run": True})], ids=["query", "body"])
async def test_a_dry_run_shows_the_difference_and_changes_nothing(
    bench: Bench, asked: tuple[str, dict[str, object]]
) -> None:
    query, more = asked
    before = bench.directory.current.bundle
    found = await bench.ok("POST", f"/v1/policies{query}", body(LOOK, **more))
    assert bench.directory.current.bundle is before
    assert (found["dry_run"], found["bundle"], found["faults"], found["warnings"]) == (
        True,
        before.id,
        [],
        [],
    )
    assert (found["added"], found["edited"], found["removed"]) == (["look"], [], [])
    [change] = found["diff"]
    assert (change["policy"], change["change"]) == ("look", "added")
    [rule] = change["rules"]
    assert (rule["rule"], rule["change"], rule["effect"]) == ("look", "added", "allow")
    assert "+verbs: [read]" in rule["lines"]
    assert "dry run, nothing is changed" in bench.recorder.events[-1].note


async def test_a_dry_run_lists_every_fault_with_its_line(bench: Bench) -> None:
    wrong = LOOK.replace("effect: allow", "effect: maybe").replace("[read]", "[reed]")
    found = await bench.ok("POST", "/v1/policies?dry_run=true", body(LOOK, wrong))
    assert {(fault["file"], fault["path"]) for fault in found["faults"]} == {
        ("1.yaml", "spec.rules[0].effect"),
        ("1.yaml", "spec.rules[0].verbs[0]"),
    }
    assert all(fault["line"] > 0 and fault["message"] for fault in found["faults"])
    assert (found["diff"], found["added"], found["missing"]) == ([], [], [])


async def test_a_dry_run_warns_of_what_is_valid_and_rarely_meant(bench: Bench) -> None:
    denies = LOOK.replace("effect: allow", "effect: deny").replace('teams: ["*"]', "teams: [ops]")
    found = await bench.ok("POST", "/v1/policies?dry_run=true", body(denies, only=True))
    assert found["missing"] == [{"policy": "look", "kind": "team", "name": "ops"}]
    assert found["warnings"] == [
        "policy look names team ops, which does not exist",
        "no rule allows anything: every call but discovery is denied",
        "the guard policy is removed: agents may then use ways around RBAC",
    ]


ASKS = policy(
    """\
    - {id: risky, effect: ask, verbs: [write], namespaces: [shop], reason: it is production,
       ask: {approvers: [ann@example.com, owner], wait: 55s, dryRun: ["*.example.com"]}}
    - {id: deletes, effect: ask, verbs: [delete], ask: {approvers: [any], wait: 0s, validFor: 1h, show: env}}
    """,
    name="asks",
)
ASK_WARNINGS = [
    "asks/risky waits 55 s: many load balancers end a silent request after 60 s, so wait at most 45 s",
    "asks/risky and asks/deletes may ask about the same call, and their approvers differ: the first of them "
    "decides",
]


async def test_long_waits_and_different_approvers_are_warned_of_with_and_without_a_dry_run(
    bench: Bench,
) -> None:
    assert (await bench.ok("POST", "/v1/policies?dry_run=true", body(ASKS)))["warnings"] == ASK_WARNINGS
    assert (await bench.ok("POST", "/v1/policies", body(ASKS)))["warnings"] == ASK_WARNINGS
    # Only of the policies that were given, with all that are in force.
    assert (await bench.ok("POST", "/v1/policies", body(LOOK)))["warnings"] == []
    other = policy("- {id: all, effect: ask, verbs: [write], ask: {approvers: ['!owner']}}", name="last")
    found = await bench.ok("POST", "/v1/policies", body(other))
    assert [warning.split(" may ask")[0] for warning in found["warnings"]] == [
        "asks/risky and last/all", "asks/deletes and last/all",
    ]  # fmt: skip
    only_asks = await bench.ok("POST", "/v1/policies?dry_run=true", body(other, only=True))
    assert only_asks["warnings"] == ["the guard policy is removed: agents may then use ways around RBAC"]


async def test_a_rule_that_asks_is_listed_with_what_it_asks_for(bench: Bench) -> None:
    await bench.ok("POST", "/v1/policies", body(ASKS))
    risky, deletes = (await bench.ok("GET", "/v1/policies/asks"))["rules"]
    assert (risky["effect"], deletes["effect"]) == ("ask", "ask")
    assert risky["ask"] == {
        "approvers": ["ann@example.com", "owner"],
        "wait_s": 55,
        "valid_for_s": 900,
        "interactive": False,
        "dry_run": ["*.example.com"],
        "show_env": False,
    }
    assert (deletes["ask"]["wait_s"], deletes["ask"]["show_env"], deletes["ask"]["dry_run"]) == (0, True, [])
    assert "ask" not in (await bench.ok("GET", "/v1/policies/granted"))["rules"][0]
    found = await bench.ok("GET", "/v1/policy-versions/1/diff/2")
    assert [rule["effect"] for rule in found["diff"][0]["rules"]] == ["ask", "ask"]


async def test_a_misspelt_dry_run_applies_nothing(bench: Bench) -> None:
    before = bench.directory.current.bundle
    for query in ("dryrun=true", "dry_run=maybe"):
        reply = await bench.ask("POST", f"/v1/policies?{query}", body(LOOK))
        assert (reply.status, reply.json["error"]["code"]) == (422, "invalid")
    assert bench.directory.current.bundle is before


async def test_a_dry_run_needs_the_role_of_the_change(bench: Bench) -> None:
    await give_each_role_a_token(bench)
    statuses: dict[Role, Any] = {}
    for role, token in ROLE_TOKENS.items():
        reply = await bench.ask("POST", "/v1/policies?dry_run=true", body(LOOK), token=token)
        statuses[role] = reply.status
    assert statuses == {role: 200 if role is Role.ADMIN else 403 for role in Role}


async def test_two_versions_are_compared_by_rule(bench: Bench) -> None:
    await bench.ok("POST", "/v1/policies", body(LOOK))
    await bench.ok("POST", "/v1/policies", body(LOOK.replace("[pods]", "[pods, nodes]")))
    found = await bench.ok("GET", "/v1/policy-versions/2/diff/3")
    assert (found["before"]["version"], found["after"]["version"]) == (2, 3)
    [change] = found["diff"]
    [rule] = change["rules"]
    assert (change["change"], rule["change"]) == ("edited", "edited")
    assert [line for line in rule["lines"] if line[0] != " "] == [
        "-resources: [pods]",
        "+resources: [pods, nodes]",
    ]
    assert (await bench.ok("GET", "/v1/policy-versions/3/diff/3"))["diff"] == []
    back = await bench.ok("GET", "/v1/policy-versions/2/diff/1")
    assert [each["change"] for each in back["diff"]] == ["removed"]


@pytest.mark.parametrize("path", ["1/diff/9", "9/diff/1", "x/diff/1", "1/diff/-1", "1/diff/9999999999"])
async def test_a_version_that_is_not_kept_cannot_be_compared(bench: Bench, path: str) -> None:
    assert (await bench.ask("GET", f"/v1/policy-versions/{path}")).status == 404
