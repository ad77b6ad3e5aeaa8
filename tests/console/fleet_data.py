"""Policies, versions, federation, codes and past relays for the made-up hub."""

from __future__ import annotations

from collections.abc import Sequence

from auth.policy.text import Source
from proxy.hub.store.clusters import RelayContact
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
"""
ISSUER = "https://token.actions.githubusercontent.com"


def fill_rules(store: Store, agents: Sequence[str], *, hostile: bool) -> None:
    """Write some versions of policies, and what one agent and one cluster have besides."""
    store.apply_policies([Source(READERS.replace("no-secrets", "no-secret").replace("[read]", "[get]"))])
    store.apply_policies([Source(MIGRATIONS)])
    store.apply_policies([Source(READERS)])
    store.switch_rules("guard", ["secrets"], enabled=True)
    if hostile:
        store.apply_policies([Source(OF_HOSTILE_NAMES)])
    claims = {"repository_id": "74219042", "ref": "refs/heads/main"}
    store.add_federation(
        agents[0], NewIssuer(ISSUER), audience="https://hub.example", claims=claims, mutable=True
    )
    store.add_code(agents[0], "h" * 64)


def note_relays(store: Store, cluster_ids: Sequence[str], *, hostile: bool) -> None:
    """Write relays that were here before, of these clusters."""
    for cluster_id in cluster_ids:
        instance = "<b>relay</b>\x1b[2J" if hostile else "hawse-relay-5c9d-old"
        store.relay_connected(RelayContact(cluster_id, instance, "b", "0.0.9", "192.0.2.99"))
        store.relay_disconnected(cluster_id, instance, "b")
