"""The question "why may this agent do that?": a form in kubectl's words, and the hub's answer."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import attrs

from proxy.console.base.api import at
from proxy.console.views.given import given

NAMES = ("agent", "cluster", "verb", "resource", "name", "namespace", "upgrade")
# Those of kubectl auth can-i, and the methods of a path.
VERBS = (
    *("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"),
    *("head", "post", "put", "options"),
)
# What agents ask for most; the form takes any resource.
RESOURCES = (
    *("configmaps", "cronjobs.batch", "daemonsets.apps", "deployments.apps", "deployments.apps/scale"),
    *("endpointslices.discovery.k8s.io", "events", "ingresses.networking.k8s.io", "jobs.batch"),
    *("namespaces", "networkpolicies.networking.k8s.io", "nodes", "persistentvolumeclaims", "pods"),
    *("pods/attach", "pods/exec", "pods/log", "pods/portforward", "replicasets.apps"),
    *("rolebindings.rbac.authorization.k8s.io", "roles.rbac.authorization.k8s.io", "secrets"),
    *("serviceaccounts", "services", "statefulsets.apps"),
)


@attrs.frozen
class Question:
    """What the form asks."""

    agent: str = ""
    cluster: str = ""
    verb: str = "get"
    resource: str = ""
    name: str = ""
    namespace: str = ""
    upgrade: str = ""
    """`true`, or empty."""

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Question:
        """Read it from an address."""
        return cls(**given(query, NAMES))

    @property
    def complete(self) -> bool:
        """Whether it can be answered."""
        return bool(self.agent and self.cluster and self.verb and self.resource)

    @property
    def path(self) -> str:
        """The address of the page that asks this."""
        return f"/decision?{urlencode(self.asked())}"

    @property
    def command(self) -> str:
        """The command that asks the same."""
        words = ["hawse", "admin", "policy", "explain"]
        words += ["-n", self.namespace] if self.namespace else []
        words += ["--upgrade"] if self.upgrade else []
        rest = [self.agent, self.cluster, self.verb, self.resource, *([self.name] if self.name else [])]
        # A name that begins with a hyphen would be an option.
        words += ["--"] if any(word.startswith("-") for word in rest) else []
        return shlex.join([*words, *rest])

    def asked(self) -> dict[str, str]:
        """Return the question as the API takes it."""
        return {name: value for name in NAMES if (value := getattr(self, name))}


@attrs.frozen
class Asks:
    """Who may approve a request, and for how long."""

    approvers: Sequence[str]
    wait_s: int
    valid_for_s: int
    interactive: bool
    unapprovable: str
    """Why no approval can be bound to such a call, so that it is refused; else empty."""
    others: Sequence[tuple[str, str, Sequence[str]]]
    """Further rules that ask, and do not decide: each with its page and its approvers."""


@attrs.frozen
class Answer:
    """The hub's answer."""

    allowed: bool
    refused: str
    """Why the request fails before any policy, such as a locked agent; else empty."""
    rule: str
    policy: str
    href: str
    why: str
    instead: str
    ask: str
    message: str
    """What the agent reads; empty if the policies allow it."""
    max_duration_s: float | None
    asks: Asks | None
    """Set if the request needs an approval."""
    request: Sequence[tuple[str, str]]
    """The request as the hub understands it."""
    bound: Sequence[tuple[str, str]]
    """The policies for this agent and cluster, each with its page."""
    bundle: str


def answer_of(found: Mapping[str, Any]) -> Answer:
    """Make the page's view of the API's answer."""
    causes: dict[str, str] = {}
    for cause in found.get("details", {}).get("causes", ()):
        causes[cause["reason"]] = cause["message"]
    return Answer(
        allowed=found["allowed"],
        refused=found.get("refused", ""),
        rule=found["rule"],
        policy=found["policy"],
        href=rule_path(found["policy"], found["rule"], found["bundle"]),
        why=causes.get("Why", ""),
        instead=causes.get("Instead", ""),
        ask=causes.get("Ask", ""),
        message=found.get("message", ""),
        max_duration_s=found["max_duration_s"],
        asks=_asks_of(found) if found.get("ask") else None,
        request=[(name, value) for name, value in found["request"].items() if value],
        bound=[(name, at("/policies/{}", name)) for name in found["bound"]],
        bundle=found["bundle"],
    )


def _asks_of(found: Mapping[str, Any]) -> Asks:
    ask = found["ask"]
    return Asks(
        ask["approvers"],
        ask["wait_s"],
        ask["valid_for_s"],
        ask["interactive"],
        found["unapprovable"],
        [
            (
                f"{other['policy']}/{other['rule']}",
                rule_path(other["policy"], other["rule"], found["bundle"]),
                other["approvers"],
            )
            for other in found["other_asks"]
        ],
    )


def rule_path(policy: str, rule: str, bundle: str) -> str:
    """The page with a rule's text at the version that decided; empty for a decision without a policy.

    A bundle's id begins with its version: `12-0cb4271b433ad5bf`.
    """
    if not policy:
        return ""
    version = bundle.partition("-")[0]
    query = f"?version={version}" if version.isdigit() else ""
    return f"{at('/policies/{}', policy)}{query}{at('#rule-{}', rule)}"
