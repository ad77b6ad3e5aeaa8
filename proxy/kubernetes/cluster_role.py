"""Renders the ClusterRole with the names that a relay may impersonate, and its binding.

It is applied again for each new agent or team, so it is separate from the relay's other objects.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

from auth.impersonation import AGENT_ID_KEY, SESSION_KEY
from auth.policy.rules import RESOURCE_VERBS
from auth.principal import USER_PREFIX, IdentityError, check_user, slug

NAMESPACE = "hawse"
SERVICE_ACCOUNT = "hawse-relay"
NAME = "hawse-relay"
# Separate, so that an operator sees at once which rule allows impersonation.
CLUSTER_ROLE = "hawse-relay-impersonation"
# Its UID identifies the cluster: the namespace exists from the cluster's first start on and cannot be
# deleted.
SYSTEM_NAMESPACE = "kube-system"
DNS_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")

Object: TypeAlias = "dict[str, Value]"
Value: TypeAlias = "str | int | bool | list[Value] | Object"

_AUTHENTICATION = "authentication.k8s.io"
_URL_VERBS = ("get", "head", "post", "put", "patch", "delete", "options")


class ManifestError(ValueError):
    """An input that must not be in a manifest; the message names it, and never a key's content."""


def cluster_role(
    agents: Sequence[str],
    groups: Sequence[str],
    *,
    wildcard: bool = False,
    constrained: bool = False,
    namespace: str = NAMESPACE,
    service_account: str = SERVICE_ACCOUNT,
) -> list[Object]:
    """Render the ClusterRole, which lets the relay impersonate exactly these names, and its binding.

    It also lets the relay read one namespace, whose UID identifies the cluster to the hub.

    `agents` are names, `groups` are `<org>/<team>`. `wildcard` omits the names: any user and any group,
    including `system:masters`. The cluster is then only as safe as the hub and the relay. `constrained` is
    the form for API servers from 1.36 on (KEP-5284): it never allows service accounts or nodes, and its
    second half lists the verbs allowed under an impersonated name. Raises ManifestError.
    """
    check("namespace", namespace, DNS_LABEL)
    check("service account", service_account, DNS_LABEL)
    rules = _impersonation(agents, groups, wildcard=wildcard, constrained=constrained)
    rules.append(
        {
            "apiGroups": [""],
            "resources": ["namespaces"],
            "verbs": ["get"],
            "resourceNames": [SYSTEM_NAMESPACE],
        }
    )
    if constrained:
        # Each verb by name: "*" would include the plain verbs and those that the relay must not have.
        rules += [
            {"apiGroups": ["*"], "resources": ["*"], "verbs": _on(RESOURCE_VERBS)},
            {"nonResourceURLs": ["*"], "verbs": _on(_URL_VERBS)},
        ]
    labels: Object = {
        "app.kubernetes.io/name": NAME,
        "app.kubernetes.io/component": "relay",
        "app.kubernetes.io/part-of": "hawse",
        "app.kubernetes.io/managed-by": "hawse",
    }
    return [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": CLUSTER_ROLE, "labels": labels},
            "rules": rules,
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": CLUSTER_ROLE, "labels": dict(labels)},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": CLUSTER_ROLE,
            },
            "subjects": [{"kind": "ServiceAccount", "name": service_account, "namespace": namespace}],
        },
    ]


def _impersonation(
    agents: Sequence[str], groups: Sequence[str], *, wildcard: bool, constrained: bool
) -> list[Value]:
    """Make the rules for the users, the groups and our own keys that the relay may impersonate."""
    group, verb = (_AUTHENTICATION, "impersonate:user-info") if constrained else ("", "impersonate")
    rules: list[Value]
    if wildcard:
        rules = [{"apiGroups": [group], "resources": ["users", "groups"], "verbs": [verb]}]
    else:
        # An empty list of names means every name to Kubernetes, so a rule without names is left out.
        users = sorted({impersonated_user(agent) for agent in agents})
        named = sorted({impersonated_group(group) for group in groups})
        rules = [
            {"apiGroups": [group], "resources": [resource], "verbs": [verb], "resourceNames": list(names)}
            for resource, names in (("users", users), ("groups", named))
            if names
        ]
    rules.append(
        {
            "apiGroups": [_AUTHENTICATION],
            # Our own keys; their values are ids, which say who acted and open nothing.
            "resources": [f"userextras/{key}" for key in (AGENT_ID_KEY, SESSION_KEY)],
            "verbs": [verb],
        }
    )
    return rules


def _on(verbs: Sequence[str]) -> list[Value]:
    return [f"impersonate-on:user-info:{verb}" for verb in verbs]


def impersonated_user(agent: str) -> str:
    """Return the Kubernetes user of an agent's name; raises ManifestError."""
    try:
        return check_user(f"{USER_PREFIX}{agent}")
    except IdentityError as error:
        raise ManifestError(str(error)) from error


def impersonated_group(group: str) -> str:
    """Return a group of the form `<organisation>/<team>` if it is valid; raises ManifestError."""
    org, separator, team = group.partition("/")
    if not separator:
        raise ManifestError(f"group {ascii(group)[:80]} is not '<organisation>/<team>'")
    try:
        return f"{slug('organisation', org)}/{slug('team', team)}"
    except IdentityError as error:
        raise ManifestError(str(error)) from error


def is_dns_label(name: str) -> bool:
    """Whether a namespace or a service account can have this name."""
    return DNS_LABEL.fullmatch(name) is not None


def check(kind: str, value: str, pattern: re.Pattern[str]) -> None:
    """Raise ManifestError if the value is not of this pattern."""
    if pattern.fullmatch(value) is None:
        # ascii(), because the value may hold newlines or terminal escape sequences.
        raise ManifestError(f"{kind} {ascii(value)[:80]} is not valid")
