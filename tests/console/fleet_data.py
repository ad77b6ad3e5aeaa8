"""Policies, their versions, federation and a code for the made-up hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from auth.policy.text import Source
from proxy.hub.store.federation import NewIssuer
from proxy.hub.store.store import Store

READERS = """apiVersion: hawse.dev/v1
kind: Policy
metadata:
  name: payments-readers
  owner: payments
  contact: "#payments-oncall"
spec:
  bind: {teams: [payments, search]}
  clusters:
    names: ["prod-*", staging]
    matchLabels: {region: eu}
  rules:
  # Everything in the namespaces of the shop may be read.
  - id: read-shop
    effect: allow
    verbs: [read]
    resources: ["*"]
    namespaces: [shop, "shop-*"]

  # Secrets hold card data.
  - id: no-secrets
    effect: deny
    verbs: ["*"]
    resources: [secrets]
    reason: secrets of the shop hold card data
    instead: ask for a sealed secret in the pull request
  - id: shell
    enabled: false
    effect: allow
    verbs: [create]
    resources: [pods/exec]
    obligations: {maxDuration: 15m}
  # A person looks at each.
  - id: risky
    effect: ask
    verbs: [delete]
    namespaces: [shop]
    reason: the shop serves customers
    ask: {approvers: ["ann@payments.example", "!owner"], wait: 45s}
"""
MIGRATIONS = """kind: Policy
metadata: {name: migrations, owner: data, contact: data@example.com}
spec:
  bind: {agents: [db-migrator]}
  rules:
  - {id: jobs, effect: allow, verbs: [create, get, watch], apiGroups: [batch], resources: [jobs]}
"""
OF_HOSTILE_NAMES = """kind: Policy
metadata: {name: odd, owner: "<script>alert(1)</script>", contact: "'\\"><img src=x>"}
spec:
  bind: {teams: ["*"]}
  rules:
  # \u202e<script>alert(1)</script> {{ 7*7 }}
  - {id: odd, effect: deny, verbs: [write], resources: [odd], reason: "</pre><script>alert(1)</script>"}
  - {id: asks, effect: ask, verbs: [patch], ask: {approvers: ["<script>alert(1)</script>"]}}
"""
DAY_S = 86_400.0
ISSUER = "https://token.actions.githubusercontent.com"


def rules(agents: Sequence[str], *, hostile: bool) -> Iterator[tuple[float, Callable[[Store], object]]]:
    """Yield changes, each with how long ago it was made (s).

    They make some versions of policies, and what one agent has besides.
    """
    older = READERS.replace("no-secrets", "no-secret").replace("[read]", "[get]")
    yield 16 * DAY_S + 3011, lambda store: store.apply_policies([Source(older)])
    yield 9 * DAY_S + 12_007, lambda store: store.apply_policies([Source(MIGRATIONS)])
    yield 2 * DAY_S + 7_212, lambda store: store.apply_policies([Source(READERS)])
    yield 5 * 3600 + 44, lambda store: store.switch_rules("guard", ["secrets"], enabled=True)
    if hostile:
        yield 3600, lambda store: store.apply_policies([Source(OF_HOSTILE_NAMES)])
    yield (
        0,
        lambda store: store.add_federation(
            agents[0],
            NewIssuer(ISSUER),
            audience="https://hub.example",
            claims={"repository_id": "74219042", "ref": "refs/heads/main"},
            mutable=True,
        ),
    )
    yield 0, lambda store: store.add_code(agents[0], "h" * 64)


CHANGES = [
    {
        "change": "newly denied",
        "count": 41,
        "agent": "deploy-bot",
        "cluster": "prod-eu-1",
        "verb": "get",
        "resource": "configmaps",
        "namespace": "shop",
        "rule_before": "granted/all",
        "rule_after": "payments-readers/no-secrets",
    },
    {
        "change": "newly asked",
        "count": 2,
        "agent": "deploy-bot",
        "cluster": "prod-eu-1",
        "verb": "delete",
        "resource": "deployments.apps",
        "namespace": "shop",
        "rule_before": "granted/all",
        "rule_after": "payments-readers/risky",
    },
    {
        "change": "newly allowed",
        "count": 3,
        "agent": "oncall-helper",
        "cluster": "staging",
        "verb": "create",
        "resource": "pods/exec",
        "namespace": "",
        "rule_before": "no-rule-allows",
        "rule_after": "payments-readers/shell",
    },
]
# The result of a simulation.
SIMULATED: dict[str, object] = {
    "since": "2027-01-14T08:00:00Z",
    "trail_begins": "2027-01-14T20:00:00Z",
    "calls": 1812,
    "newly_denied": 41,
    "newly_asked": 2,
    "newly_allowed": 3,
    "unknown": 2,
    "unreadable": 0,
    "changes": CHANGES,
    "missing": [],
    "diff": [
        {
            "policy": "payments-readers",
            "change": "edited",
            "settings": [],
            "rules": [
                {
                    "rule": "no-secrets",
                    "change": "edited",
                    "effect": "deny",
                    "line": 21,
                    "lines": [
                        " id: no-secrets",
                        "-resources: [secrets]",
                        "+resources: [secrets, configmaps]",
                    ],
                }
            ],
        }
    ],
}


def simulated(texts: Sequence[str]) -> dict[str, object]:
    """Return the result of a simulation, with these texts in its rows if there are any."""
    chosen = ("agent", "cluster", "verb", "resource", "namespace", "rule_before", "rule_after")
    rows = [dict.fromkeys(chosen, text) | {"change": "newly denied", "count": 1} for text in texts]
    return {**SIMULATED, "changes": [*CHANGES, *rows]}
