"""Rules that ask: what wins, what they match, which dry runs they leave alone, and the field `ask`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.kinds import CLUSTER_SCOPED, NAMESPACED
from auth.policy.advice import asking
from auth.policy.ask import (
    ANY_PERSON,
    NOT_OWNER,
    OWNER,
    TRUSTED_DRY_RUN_GROUPS,
    VALID_FOR_S,
    WAIT_S,
    Ask,
    wrong_person,
)
from auth.policy.match import NO_RULE, Bundle, Decision
from auth.policy.rules import Effect
from auth.policy.subjects import may_overlap
from auth.policy.text import PolicyError
from auth.request_kind import request_kind_of
from tests.auth.policies import AGENT, CLUSTER, ask, bundle, info_of, policy
from tests.auth.policy.test_match import rules, skips

POD = "/api/v1/namespaces/app-1/pods/web"
ALL = '- {id: all, effect: allow, verbs: ["*"], resources: ["*", "*/*"], nonResourceURLs: ["/*"]}'
ASKS = "ask: {approvers: [ann@example.com]}"


def rule_of(fields: str, *, block: str = ASKS, name: str = "asks") -> str:
    return f"- {{id: {name}, effect: ask, {fields}, {block}}}"


def asked(rules: str, request: str, *, upgrade: bool = False) -> Effect:
    return ask(policy(rules), request, upgrade=upgrade).effect


def read_ask(block: str) -> Ask:
    [one] = bundle(policy(rule_of("verbs: [write]", block=f"ask: {block}"))).policies
    found = one.rules[0].ask
    assert found is not None
    return found


def faults(rules: str) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        bundle(policy(rules))
    return [f"{fault.path}: {fault.message}" for fault in caught.value.faults]


# -- what wins -----------------------------------------------------------------------------------------------


def test_a_denial_wins_over_a_rule_that_asks_and_that_over_one_that_allows() -> None:
    both = f"{ALL}\n{rule_of('verbs: [delete]')}"
    decision = ask(policy(both), f"DELETE {POD}")
    assert (decision.allowed, decision.effect, decision.rule, decision.policy) == (False, "ask", "asks", "p")
    assert decision.ask == Ask(("ann@example.com",))
    assert asked(both, f"GET {POD}") is Effect.ALLOW
    assert asked(both + "\n- {id: no, effect: deny, verbs: [delete]}", f"DELETE {POD}") is Effect.DENY


def test_of_several_rules_that_ask_the_first_decides_and_the_others_are_listed() -> None:
    one = policy(rule_of("verbs: [delete]", name="second"), name="b")
    two = policy(f"{rule_of('verbs: [patch]')}\n{rule_of('verbs: [write]', name='first')}\n{ALL}", name="a")
    made = bundle(one, two)
    assert ask(made, f"DELETE {POD}").rule == "first"
    found = asking(made, AGENT, CLUSTER, info_of(f"DELETE {POD}"), 0.0)
    assert [(each.policy, each.rule) for each in found] == [("a", "first"), ("b", "second")]
    assert found[0] is ask(made, f"DELETE {POD}")
    assert asking(made, AGENT, CLUSTER, info_of(f"GET {POD}"), 0.0) == []


def test_a_call_that_no_rule_allows_can_be_asked_about() -> None:
    assert asked(rule_of("verbs: [delete]"), f"DELETE {POD}") is Effect.ASK


def test_no_rule_asks_about_a_method_without_a_verb() -> None:
    made = policy(f"{ALL}\n{rule_of('verbs: [' + chr(39) + '*' + chr(39) + ']')}")
    assert ask(made, f"OPTIONS {POD}") is NO_RULE


def test_the_rule_that_asks_gives_the_longest_duration() -> None:
    rule = rule_of("verbs: [create], resources: [pods/exec], obligations: {maxDuration: 10m}")
    assert ask(policy(f"{ALL}\n{rule}"), f"GET {POD}/exec").max_duration_s == 600


# -- what matches --------------------------------------------------------------------------------------------

CONSOLE = "GET /apis/example.com/v1/namespaces/a/things/b/console"
UPGRADES = [f"GET {POD}", f"GET {POD}/exec", "GET /socket", CONSOLE]


@pytest.mark.parametrize("verb", ["get", "create, post"])
@pytest.mark.parametrize("request_", UPGRADES)
def test_either_half_of_an_upgrade_is_asked_about(verb: str, request_: str) -> None:
    denied = policy(f"{ALL}\n- {{id: no, effect: deny, verbs: [{verb}]}}")
    asks = f"{ALL}\n{rule_of(f'verbs: [{verb}]')}"
    matches = not ask(denied, request_, upgrade=True).allowed
    assert (asked(asks, request_, upgrade=True) is Effect.ASK) is matches


def test_of_the_halves_of_an_upgrade_a_denial_wins_and_else_the_first_rule_that_asks() -> None:
    create, read = rule_of("verbs: [create]", name="opens"), rule_of("verbs: [get]", name="reads")
    made = bundle(policy(f"{ALL}\n{create}\n{read}"))
    assert ask(made, CONSOLE, upgrade=True).rule == "opens"
    found = asking(made, AGENT, CLUSTER, info_of(CONSOLE, upgrade=True), 0.0)
    assert [each.rule for each in found] == ["opens", "reads"]
    denied = "- {id: no, effect: deny, verbs: [create]}"
    assert ask(policy(f"{ALL}\n{denied}\n{read}"), CONSOLE, upgrade=True).rule == "no"


def test_no_dry_run_hides_an_upgrade() -> None:
    console = f"{CONSOLE}?dryRun=All"
    block = "ask: {approvers: [any], dryRun: [example.com]}"
    assert asked(f"{ALL}\n{rule_of('verbs: [create]', block=block)}", console, upgrade=True) is Effect.ASK
    post = console.replace("GET", "POST")
    assert asked(f"{ALL}\n{rule_of('verbs: [create]', block=block)}", post) is Effect.ALLOW
    assert asked(f"{ALL}\n{rule_of('verbs: [create]', block=block)}", post, upgrade=True) is Effect.ASK
    # Nor does a condition take it for one.
    when = "- {id: dry, effect: allow, verbs: ['*'], resources: ['*/*'], when: request.dryRun}"
    look = "- {id: look, effect: allow, verbs: [get], resources: ['*/*']}"
    assert asked(when, post) is Effect.ALLOW
    assert asked(f"{look}\n{when}", console, upgrade=True) is Effect.DENY


NAMED = st.sampled_from(["", "/web", "/db-1", "/db-1:80", "/https:db-1:", "/kube-system", "/top"])
TARGETS = st.builds(
    "{}{}/{}{}{}{}".format,
    st.sampled_from(["/api/v1", "/apis/apps/v1", "/api/v1/proxy", "/api/v1/watch", "/apis/example.com/v1"]),
    st.sampled_from(["", "/namespaces/app-1", "/namespaces/app-2", "/namespaces/kube-system"]),
    st.sampled_from(["pods", "secrets", "services", "nodes", "namespaces", "deployments"]),
    NAMED,
    st.sampled_from(["", "/log", "/exec", "/proxy", "/proxy/x", "/status", "/scale", "/token"]),
    st.sampled_from(
        ["", "?watch=1", "?fieldSelector=metadata.name%3Dweb", "?fieldSelector=metadata.name%3Dtop"]
    ),
) | st.sampled_from(["/metrics", "/socket", "/logs/a", "/api", "/apis/apps/v1"])
METHODS = st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])


def _effects(text: str, was: str, now: str) -> str:
    """The same rules with another effect; `ask` stands in all rules that ask."""
    lines = []
    for line in text.splitlines():
        plain = line.replace(", ask: {approvers: [any]}", "")
        if f"effect: {was}," not in line:
            lines.append(line)
        elif now:
            block = ", ask: {approvers: [any]}" if now == "ask" else ""
            lines.append(plain.replace(f"effect: {was},", f"effect: {now}{block},"))
    return "\n".join(lines)


def _decided(of: Bundle, line: str, *, upgrade: bool = False) -> Decision:
    return of.decide(AGENT, CLUSTER, info_of(line, upgrade=upgrade), 0.0)


@given(rules(), METHODS, TARGETS, st.booleans())
def test_a_rule_matches_as_one_that_asks_just_what_it_matches_as_one_that_denies(
    text: str, method: str, target: str, upgrade: bool
) -> None:
    denying = _effects(text, "ask", "deny")
    line = f"{method} {target}"
    denied = _decided(bundle(policy(f"{denying}\n{ALL}")), line, upgrade=upgrade)
    asks = _decided(bundle(policy(f"{_effects(denying, 'deny', 'ask')}\n{ALL}")), line, upgrade=upgrade)
    if denied.effect is Effect.ALLOW:
        assert (asks.effect, asks.rule) == (Effect.ALLOW, denied.rule)
    elif asks.effect is Effect.DENY:
        # A condition fails; of an upgrade, perhaps that of the other half.
        assert asks.failure
        assert upgrade or (asks.rule, asks.failure) == (denied.rule, denied.failure)
    else:
        assert asks.effect is Effect.ASK
        assert not denied.failure or upgrade
        # Of the two halves of an upgrade, the first one to be denied need not be that of the first rule.
        assert upgrade or asks.rule == denied.rule


@given(rules(), METHODS, TARGETS, st.booleans())
def test_a_rule_that_asks_lifts_no_denial_and_only_takes_calls_from_those_that_allow(
    text: str, method: str, target: str, upgrade: bool
) -> None:
    line = f"{method} {target}"
    rest = "- {id: end, effect: deny, verbs: [get], resources: [nodes]}"
    before = _decided(bundle(policy(f"{_effects(text, 'ask', '')}\n{rest}")), line, upgrade=upgrade)
    after = _decided(bundle(policy(f"{text}\n{rest}")), line, upgrade=upgrade)
    if after.effect is Effect.ALLOW:
        assert (before.effect, before.rule) == (after.effect, after.rule)
    if f"id: {before.rule}, effect: deny" in f"{text}{rest}":
        assert (after.effect, after.rule) == (before.effect, before.rule)


# -- dry runs ------------------------------------------------------------------------------------------------


def test_the_trusted_groups_are_those_of_kubernetes_that_no_other_server_serves() -> None:
    groups = {group for group, _ in NAMESPACED | CLUSTER_SCOPED}
    reviews = {"authentication.k8s.io", "authorization.k8s.io"}
    assert groups - {"metrics.k8s.io", *reviews} == TRUSTED_DRY_RUN_GROUPS
    assert all(
        resource.endswith("reviews") for group, resource in NAMESPACED | CLUSTER_SCOPED if group in reviews
    )


@pytest.mark.parametrize(
    ("line", "effect"),
    [
        (f"PATCH {POD}?dryRun=All", "allow"),
        ("PATCH /apis/apps/v1/namespaces/a/deployments/web/scale?dryRun=All&fieldManager=kubectl", "allow"),
        (f"POST {POD}/eviction?dryRun=All", "allow"),
        # No dry run, or one that the API server may not honour.
        (f"PATCH {POD}", "ask"),
        (f"PATCH {POD}?dryRun=None", "ask"),
        (f"PATCH {POD}?dryRun=All&dryRun=All", "ask"),
        (f"DELETE {POD}?dryRun=All", "ask"),
        ("POST /api/v1/namespaces/a/serviceaccounts/d/token?dryRun=All", "ask"),
        (f"POST {POD}/exec?dryRun=All", "ask"),
        (f"POST {POD}/proxy/x?dryRun=All", "ask"),
        (f"POST {POD}/checkpoint?dryRun=All", "ask"),
        ("POST /apis/authorization.k8s.io/v1/subjectaccessreviews?dryRun=All", "ask"),
        ("POST /apis/metrics.k8s.io/v1beta1/namespaces/a/pods?dryRun=All", "ask"),
        ("POST /apis/example.org/v1/namespaces/a/things?dryRun=All", "ask"),
        # The rule names the group.
        ("POST /apis/db.example.com/v1/namespaces/a/things?dryRun=All", "allow"),
        ("POST /apis/db.example.com/v1/namespaces/a/things/x/token?dryRun=All", "ask"),
        ("DELETE /apis/db.example.com/v1/namespaces/a/things/x?dryRun=All", "ask"),
    ],
)
def test_a_trusted_dry_run_is_decided_as_if_the_rule_were_not_there(line: str, effect: str) -> None:
    rule = rule_of("verbs: [write]", block='ask: {approvers: [any], dryRun: ["*.example.com"]}')
    assert asked(f"{ALL}\n{rule}", line) == effect
    # Without the rule that allows, it is denied.
    look = "- {id: look, effect: allow, verbs: [read], resources: ['*', '*/*']}"
    assert asked(f"{look}\n{rule}", line) == {"allow": "deny"}.get(effect, effect)


WRITES = rule_of("verbs: [write]")
SECRET = "/api/v1/namespaces/a/secrets/key"


@pytest.mark.parametrize(
    ("rules", "effect"),
    [
        (WRITES, "allow"),
        (rule_of("verbs: ['*']"), "ask"),
        (rule_of("verbs: [patch, update, get], resources: [secrets]"), "ask"),
        (f"{WRITES}\n{rule_of('verbs: [read], resources: [secrets]', name='b')}", "ask"),
        (f"{WRITES}\n- {{id: no, effect: deny, verbs: [read], resourceNames: [key]}}", "ask"),
        (f"{WRITES}\n- {{id: no, effect: deny, verbs: [get], resourceNames: [other]}}", "allow"),
        (f"{WRITES}\n- {{id: no, effect: deny, verbs: [patch]}}", "deny"),
    ],
)
def test_no_dry_run_shows_an_object_that_the_agent_may_not_read_without_an_approval(
    rules: str, effect: str
) -> None:
    """The answer to `PATCH …?dryRun=All` with an empty patch is the object."""
    assert asked(f"{ALL}\n{rules}", f"PATCH {SECRET}?dryRun=All") == effect
    # The answer to a create has what was sent.
    assert asked(f"{ALL}\n{rules}", f"POST {SECRET.removesuffix('/key')}?dryRun=All") == "allow"


def test_each_rule_trusts_its_own_groups() -> None:
    line = "POST /apis/db.example.com/v1/namespaces/a/things?dryRun=All"
    trusts = rule_of("verbs: [write]", block="ask: {approvers: [any], dryRun: [db.example.com]}")
    assert asked(f"{ALL}\n{trusts}", line) is Effect.ALLOW
    assert ask(policy(f"{ALL}\n{trusts}\n{rule_of('verbs: [write]', name='strict')}"), line).rule == "strict"


def test_a_condition_of_a_rule_that_asks_is_not_evaluated_for_a_trusted_dry_run() -> None:
    rule = rule_of("verbs: [write], when: 'cluster.labels.nothing == \"a\"'")
    assert asked(f"{ALL}\n{rule}", f"PATCH {POD}?dryRun=All") is Effect.ALLOW
    assert ask(policy(f"{ALL}\n{rule}"), f"PATCH {POD}").failure


@given(rules(), TARGETS, METHODS)
def test_a_trusted_dry_run_finds_the_decision_of_the_other_rules(text: str, target: str, method: str) -> None:
    line = f"{method} {target}{'&' if '?' in target else '?'}dryRun=All"
    with_asks, without = (
        bundle(policy(f"{text}\n{ALL}")),
        bundle(policy(f"{_effects(text, 'ask', '')}\n{ALL}")),
    )
    if skips(with_asks, Ask(("any",)), AGENT, CLUSTER, info_of(line)):
        before, after = _decided(without, line), _decided(with_asks, line)
    else:
        plain = line.replace("dryRun=All", "dryRun=None")
        before, after = _decided(with_asks, plain), _decided(with_asks, line)
    assert (before.effect, before.rule) == (after.effect, after.rule)


# -- the field ask -------------------------------------------------------------------------------------------


def test_all_fields_are_read() -> None:
    assert read_ask("{approvers: [any]}") == Ask(("any",), WAIT_S, VALID_FOR_S)
    more = "wait: 55s, validFor: 1h, interactive: true, dryRun: [a.b], show: env"
    found = read_ask(f"{{approvers: [owner, 'Ann  Lee'], {more}}}")
    assert found.approvers == (OWNER, "Ann Lee")
    assert (found.wait_s, found.valid_for_s, found.interactive, found.show_env) == (55, 3600, True, True)
    assert found.dry_run is not None
    assert (found.dry_run.patterns, "a.b" in found.dry_run) == (("a.b",), True)
    assert read_ask("{approvers: [any], wait: 0s}").wait_s == 0


@pytest.mark.parametrize(
    ("block", "fault"),
    [
        ("{}", "ask: the field approvers is missing"),
        ("{approvers: []}", "ask.approvers: a list of 0: it must have 1 to 64 entries"),
        ("{approvers: owner}", "ask.approvers: must be a list"),
        ("{approvers: ['group:sre']}", 'approvers[0]: "group:sre" is refused for now: name a person, owner'),
        (
            "{approvers: ['!ann@example.com']}",
            '"!ann@example.com" is no approver: name a person, owner, !owner or any',
        ),
        ("{approvers: ['*']}", '"*" is no approver'),
        ("{approvers: [Owner]}", '"Owner" is no approver'),
        ("{approvers: ['']}", '"" is no approver'),
        ("{approvers: [a, a]}", '"a" is listed twice'),
        ("{approvers: [owner, '!owner']}", "owner and !owner contradict each other"),
        ("{approvers: [any], wait: 56s}", '"56s" is not a duration of 0s to 55s'),
        ("{approvers: [any], wait: 45}", '"45" is not a duration of 0s to 55s'),
        ("{approvers: [any], validFor: 0s}", '"0s" is not a duration of 1s to 1h, the life of a request'),
        ("{approvers: [any], validFor: 61m}", '"61m" is not a duration of 1s to 1h'),
        ("{approvers: [any], interactive: 1}", '"1" is not a flag'),
        ("{approvers: [any], dryRun: ['*']}", '"*" is not an API group that honours dryRun'),
        ("{approvers: [any], dryRun: ['!apps']}", '"!apps" is not an API group'),
        ("{approvers: [any], dryRun: ['']}", '"" is not an API group'),
        ("{approvers: [any], show: all}", '"all" is not one of env'),
        ("{approvers: [any], approver: x}", 'there is no field "approver" here'),
        ("[any]", "ask: must be a mapping of fields"),
    ],
)
def test_what_is_wrong_is_named(block: str, fault: str) -> None:
    found = faults(rule_of("verbs: [write]", block=f"ask: {block}"))
    assert len(found) == 1, found
    assert fault in found[0]


def test_the_field_and_the_effect_belong_together() -> None:
    [missing] = faults("- {id: a, effect: ask, verbs: [write]}")
    assert "the field ask is missing: a rule that asks names who may approve" in missing
    for effect in ("deny", "allow, resources: [pods]"):
        [misplaced] = faults(f"- {{id: a, effect: {effect}, verbs: [write], {ASKS}}}")
        assert "ask: belongs to a rule with the effect ask" in misplaced
    [useless] = faults("- {id: a, effect: deny, verbs: [write], obligations: {maxDuration: 1m}}")
    assert "belongs to a rule that allows or asks" in useless


@pytest.mark.parametrize(
    ("approvers", "who"),
    [
        (("ann",), {"ann"}),
        ((OWNER,), {"olga"}),
        ((NOT_OWNER,), {"ann", "bob"}),
        ((NOT_OWNER, "ann"), {"ann", "bob"}),
        ((ANY_PERSON, NOT_OWNER), {"ann", "bob"}),
        ((ANY_PERSON,), {"ann", "bob", "olga"}),
        ((OWNER, "ann"), {"olga", "ann"}),
    ],
)
def test_who_may_approve(approvers: tuple[str, ...], who: set[str]) -> None:
    people = {"ann", "bob", "olga", "", "Olga"}
    rule = Ask(approvers)
    assert {person for person in people if rule.may_approve(person, "olga")} - {"Olga"} == who
    assert not rule.may_approve("", "")


def test_a_person_is_no_word_of_policies() -> None:
    for name in (OWNER, NOT_OWNER, ANY_PERSON, "", "Any", "*", "group:sre", "!ann"):
        assert wrong_person(name), name
    assert wrong_person("ann@example.com") == ""


# -- rules that ask about the same calls ---------------------------------------------------------------------

OVERLAPS = [
    ("verbs: [write]", "verbs: [delete]", True),
    ("verbs: [create]", "verbs: [delete]", False),
    ("verbs: [delete], namespaces: [a]", "verbs: [delete], namespaces: [b]", False),
    ("verbs: [delete], namespaces: ['a-*']", "verbs: [delete], namespaces: [a-1]", True),
    ("verbs: [delete], namespaces: ['a-*']", "verbs: [delete], namespaces: [b]", False),
    ("verbs: [list], namespaces: [a]", "verbs: [read], namespaces: [b]", True),
    ("verbs: [delete], resources: [pods]", "verbs: [delete], resources: [secrets]", False),
    ("verbs: [delete], resources: [pods]", "verbs: [delete], resources: ['*', '!pods']", False),
    ("verbs: [create], resources: [pods/exec]", "verbs: [create], resources: ['*']", True),
    ("verbs: [delete], apiGroups: [apps]", "verbs: [delete], apiGroups: ['']", False),
    ("verbs: [get], nonResourceURLs: [/a]", "verbs: [get], resources: [pods]", False),
]


@pytest.mark.parametrize(("one", "other", "expected"), OVERLAPS)
def test_rules_overlap_where_they_may_match_the_same_request(one: str, other: str, expected: bool) -> None:
    [made] = bundle(policy(f"{rule_of(one)}\n{rule_of(other, name='other')}")).policies
    first, second = made.rules
    assert may_overlap(made, first, made, second) is expected
    assert may_overlap(made, second, made, first) is expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("{matchLabels: {env: prod}}", "{matchLabels: {env: dev}}", False),
        ("{matchLabels: {env: prod}}", "{matchLabels: {tier: gold}}", True),
        ("{names: [a]}", "{names: [b]}", False),
        ("{names: ['*']}", "{matchLabels: {env: dev}}", True),
    ],
)
def test_rules_overlap_only_on_clusters_of_both_policies(one: str, other: str, expected: bool) -> None:
    rule = rule_of("verbs: [write]")
    first, second = bundle(
        policy(rule, name="a", more=f"clusters: {one}"), policy(rule, name="b", more=f"clusters: {other}")
    ).policies
    assert may_overlap(first, first.rules[0], second, second.rules[0]) is expected


@given(rules(), METHODS, TARGETS)
def test_two_rules_that_match_one_request_overlap(text: str, method: str, target: str) -> None:
    made = bundle(policy(_effects(_effects(text, "ask", "deny"), "deny", "ask")))
    [one] = made.policies
    by_id = {rule.id: rule for rule in one.rules}
    info = info_of(f"{method} {target}")
    found = [by_id[each.rule] for each in asking(made, AGENT, CLUSTER, info, 0.0)]
    for first in found:
        for second in found:
            assert may_overlap(one, first, one, second), (first, second, request_kind_of(info))
