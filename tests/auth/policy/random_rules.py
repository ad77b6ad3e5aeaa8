"""Random rules, and what they decide when they are evaluated one by one, without the memo."""

from __future__ import annotations

import attrs
from hypothesis import strategies as st

from auth.policy.ask import Ask
from auth.policy.match import Bundle, ConditionError, Facts, binds
from auth.policy.subjects import mismatch, names_match
from auth.request_kind import is_discovery, request_kind_of
from auth.requestinfo import RequestInfo
from tests.auth.policies import CONDITIONS, Agent, Cluster

VERBS = ["get", "list", "create", "delete", "read", "write", "*"]
RESOURCES = ["pods", "secrets", "pods/log", "pods/exec", "pods/*", "*", "*/*", "!secrets", "!pods"]
WHENS = [
    'request.name == "web"',
    'cluster.labels.env == "prod"',
    'cluster.labels.none == "x"',
    "request.reads",
]


def _some(values: list[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True)


@st.composite
def rules(draw: st.DrawFn) -> str:
    lines = []
    for number in range(draw(st.integers(1, 6))):
        effect = draw(st.sampled_from(["allow", "allow", "ask", "deny"]))
        fields = [f"id: r{number}", f"effect: {effect}", f"verbs: {draw(_some(VERBS))}"]
        if effect == "ask":
            fields.append("ask: {approvers: [any]}")
        fields.append(f"resources: {draw(_some(RESOURCES))}")
        if draw(st.booleans()):
            fields.append(f"resourceNames: {draw(_some(['web', 'db-*', '!db-1']))}")
        if draw(st.booleans()):
            fields.append(f"namespaces: {draw(_some(['app-*', 'kube-system', '!app-2']))}")
        if draw(st.booleans()):
            fields.append(f"apiGroups: {draw(_some(['', 'apps', '!apps']))}")
        if draw(st.booleans()):
            fields.append(f"when: '{draw(st.sampled_from(WHENS))}'")
        lines.append(f"- {{{', '.join(fields)}}}")
    return "\n".join(lines)


def skips(of: Bundle, ask: Ask, agent: Agent, cluster: Cluster, info: RequestInfo) -> bool:
    """Whether a rule that asks leaves a dry run to the other rules."""
    if not ask.trusts(info):
        return False
    read = attrs.evolve(info, method="GET", verb="get", query=b"")
    return info.verb == "create" or plainly(of, agent, cluster, read)[0] == "allow"


def plainly(of: Bundle, agent: Agent, cluster: Cluster, info: RequestInfo) -> tuple[str, str]:
    """The rules' decision, evaluated one by one without the memo."""
    if is_discovery(info):
        return "allow", "discovery"
    kind = request_kind_of(info)
    for effect in ("deny", "ask", "allow"):
        for each in of.policies:
            for rule in each.rules:
                if not binds(each, agent, cluster) or rule.effect != effect:
                    continue
                if effect != "deny" and not kind.verb:
                    continue
                if rule.ask is not None and skips(of, rule.ask, agent, cluster, info):
                    continue
                if mismatch(rule, kind) or not names_match(rule, info.name, kind):
                    continue
                try:
                    if rule.when and not CONDITIONS.compile(rule.when)(
                        Facts(kind, info, agent, cluster, 0.0)
                    ):
                        continue
                except ConditionError:
                    return "deny", rule.id
                return effect, rule.id
    return "deny", "no-rule-allows"
