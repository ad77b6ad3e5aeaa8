"""Checks a cluster's RBAC against the hub's agents and teams. Pure: from objects to findings.

It answers three questions. May the relay impersonate all enrolled users and groups, no others, and do nothing
else? Do bindings name users or groups of Hawse's form (`agent:<name>`, `<org>/<team>`) that are not enrolled?
Such a name comes from another identity provider, or gives its rights to the next agent enrolled under it. And
which rights do the enrolled have?
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import TypeAlias

import attrs

from auth.impersonation import AGENT_ID_KEY, SESSION_KEY
from auth.policy.rules import RESOURCE_VERBS
from auth.principal import USER_PREFIX
from proxy.kubernetes.cluster_role import (
    CLUSTER_ROLE,
    NAMESPACE,
    SERVICE_ACCOUNT,
    SYSTEM_NAMESPACE,
    is_dns_label,
)
from proxy.process.plural import counted

Object: TypeAlias = Mapping[str, object]

_EXTRAS = tuple(f"userextras/{key}" for key in (AGENT_ID_KEY, SESSION_KEY))
_AUTHENTICATION = "authentication.k8s.io"
# verb → the API group of users and groups under it
_CONSTRAINED = "impersonate:user-info"
_FORMS = {"impersonate": "", _CONSTRAINED: _AUTHENTICATION}
_ON = "impersonate-on:user-info:"
_EVERY_ACCOUNT = "system:serviceaccounts"


class Level(StrEnum):
    """The severity of a finding."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    """Something does not work."""


@attrs.frozen(order=True)
class Finding:
    """One fact, in one sentence; `fix` is the action to take, if any."""

    level: Level
    check: str
    message: str
    fix: str = ""


@attrs.frozen
class Enrolled:
    """The hub's users and groups, as far as they concern this cluster."""

    cluster: str
    org: str
    users: frozenset[str]
    """The users that the relay must be able to impersonate: `agent:<name>`."""
    groups: frozenset[str]
    known: frozenset[str] = frozenset()
    """All users and groups of the hub, even those without access to this cluster."""


def examine(
    enrolled: Enrolled, bindings: Sequence[Object], role: Object | None, kubectl: Sequence[str] = ("kubectl",)
) -> list[Finding]:
    """Check a cluster's bindings and the relay's ClusterRole (None if it is missing).

    `kubectl` is the command line for that cluster, used in fixes.
    """
    return sort_findings(
        [*_relay(enrolled, bindings, role, kubectl), *_names(enrolled, bindings, first=role is None)]
    )


def sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Sort by severity, worst first."""
    order = (Level.ERROR, Level.WARNING, Level.INFO)
    return sorted(findings, key=lambda finding: order.index(finding.level))


def examine_relays(cluster: Object, relays: Sequence[Object]) -> Iterable[Finding]:
    """Check whether a relay of the cluster is connected, and whether its API server answers.

    The hub dials a relay in direct mode when needed, so such a relay never counts as connected.
    """
    here = [relay for relay in relays if relay.get("connected")]
    name = cluster.get("name")
    if not here and cluster.get("mode") == "tunnel":
        fix = "start the relay, or read its log: it shows why the hub refuses it"
        yield Finding(Level.ERROR, "relay", f"no relay of {name} is connected", fix)
    for relay in here:
        if relay.get("api_server") == "down":
            message = f"the API server does not answer relay {relay.get('instance')}"
            yield Finding(Level.ERROR, "relay", message, "read the relay's log: it shows why")
    if not cluster.get("cluster_uid"):
        message = f"{name} is not pinned: no relay has stated its cluster, so any kubeconfig passes"
        yield Finding(Level.INFO, "relay", message)


def _relay(
    enrolled: Enrolled, bindings: Sequence[Object], role: Object | None, kubectl: Sequence[str]
) -> Iterable[Finding]:
    rules = [] if role is None else _objects(role, "rules")
    # Assume the form of which less is missing.
    form = min(_FORMS, key=lambda verb: len(list(_missing(enrolled, rules, verb))))
    print_role = _command(enrolled.cluster, bindings, constrained=form == _CONSTRAINED)
    apply = f"{print_role} | {shlex.join([*kubectl, 'apply', '-f', '-'])}"
    if role is None:
        message = f"there is no ClusterRole {CLUSTER_ROLE}: the relay may not impersonate any agent"
        yield Finding(Level.ERROR, "relay-rights", message, apply)
        return
    accounts = _accounts(bindings)
    if not accounts:
        message = f"the ClusterRole {CLUSTER_ROLE} is bound to no service account"
        yield Finding(Level.ERROR, "relay-rights", message, apply)
    yield from _rights(enrolled, rules, form, apply)
    for subject in _holders(bindings):
        if subject.get("kind") != "ServiceAccount":
            message = (
                f"{subject.get('kind')} {subject.get('name')} may impersonate the same users as the relay"
            )
            fix = f"remove it from the bindings of the ClusterRole {CLUSTER_ROLE}"
            yield Finding(Level.WARNING, "relay-rights", message, fix)
    for namespace, name in accounts:
        # The service account that the relay really uses can't be seen from here.
        message = f"the relay has these rights where it runs as service account {namespace}/{name}"
        yield Finding(Level.INFO, "relay-rights", message)
        if not _is_plain(namespace, name):
            message = f"the service account {namespace}/{name} is not one that a relay is set up with"
            fix = (
                f"remove it from the bindings of the ClusterRole {CLUSTER_ROLE}; no command is printed for it"
            )
            yield Finding(Level.WARNING, "relay-rights", message, fix)
        for kind, where, target in _other_rights(bindings, namespace, name):
            message = f"the relay's service account {namespace}/{name} has more rights, by {kind} {where}"
            fix = f"remove it from {target}: a way around impersonation would give these rights to an agent"
            yield Finding(Level.WARNING, "relay-rights", message, fix)


def _command(cluster: str, bindings: Sequence[Object], *, constrained: bool) -> str:
    """Return the command that prints the role for the same service account, and in the same form.

    Other options would bind the role to another account, or grant what the constrained form withholds.
    """
    own = [binding for binding in bindings if _meta(binding, "name") == CLUSTER_ROLE]
    # The API server accepts any text as a subject's namespace, and the operator pastes this into a shell.
    plain = (account for account in _accounts(own) if _is_plain(*account))
    namespace, account = next(plain, (NAMESPACE, SERVICE_ACCOUNT))
    options = [
        *(["--constrained"] if constrained else []),
        *(["--namespace", namespace] if namespace != NAMESPACE else []),
        *(["--service-account", account] if account != SERVICE_ACCOUNT else []),
    ]
    return shlex.join(["hawse", "admin", "cluster", "rbac", cluster, *options])


def _is_plain(namespace: str, account: str) -> bool:
    return is_dns_label(namespace) and is_dns_label(account)


def _rights(enrolled: Enrolled, rules: Sequence[Object], form: str, apply: str) -> Iterable[Finding]:
    missing = list(_missing(enrolled, rules, form))
    for resource, name in missing:
        yield Finding(Level.ERROR, "relay-rights", f"the relay may not impersonate {resource} {name}", apply)
    if not missing:
        count = f"{counted(len(enrolled.users), 'user')} and {counted(len(enrolled.groups), 'group')}"
        yield Finding(Level.INFO, "relay-rights", f"the relay may impersonate all that are enrolled: {count}")
    if form == _CONSTRAINED and (withheld := _withheld(rules)):
        message = f"agents can't use the verbs {', '.join(withheld)} here: the ClusterRole lacks {_ON}…"
        yield Finding(Level.INFO, "relay-rights", message)
    if not any(_reads_system_namespace(rule) for rule in rules):
        message = (
            f"the relay may not read the namespace {SYSTEM_NAMESPACE}: the hub can't identify its cluster"
        )
        yield Finding(Level.WARNING, "relay-rights", message, apply)
    for rule in rules:
        if _reads_system_namespace(rule):
            continue
        verbs = set(_texts(rule, "verbs"))
        # With other impersonation verbs the relay could act as a service account or a node.
        strange = {verb for verb in verbs if verb not in _FORMS and not verb.startswith(_ON)}
        if strange:
            message = f"the ClusterRole {CLUSTER_ROLE} grants more than needed: {', '.join(sorted(strange))}"
            yield Finding(Level.WARNING, "relay-rights", message, apply)
        if not verbs & set(_FORMS):
            continue
        resources = set(_texts(rule, "resources"))
        others = sorted(resources - {"users", "groups", "*", *_EXTRAS})
        if others:
            message = f"the relay may impersonate by resources that no agent needs: {_some(others)}"
            yield Finding(Level.WARNING, "relay-rights", message, apply)
        if not {"users", "groups", "*"} & resources:
            continue
        names = _texts(rule, "resourceNames")
        if not names:
            message = "the relay may impersonate any user or group, system:masters too (--wildcard)"
            yield Finding(Level.WARNING, "relay-rights", message, apply)
        left = sorted(set(names) - enrolled.users - enrolled.groups)
        if left:
            message = f"the relay may impersonate names that are not enrolled for this cluster: {_some(left)}"
            yield Finding(Level.WARNING, "relay-rights", message, apply)


def _reads_system_namespace(rule: Object) -> bool:
    """Whether a rule grants exactly the read access to that one namespace."""
    return {key: tuple(_texts(rule, key)) for key in rule} == {
        "apiGroups": ("",),
        "resources": ("namespaces",),
        "verbs": ("get",),
        "resourceNames": (SYSTEM_NAMESPACE,),
    }


def _missing(enrolled: Enrolled, rules: Sequence[Object], verb: str) -> Iterable[tuple[str, str]]:
    group = _FORMS[verb]
    for resource, names in (("users", enrolled.users), ("groups", enrolled.groups)):
        for name in sorted(names):
            if not any(_allows(rule, verb, group, resource, name) for rule in rules):
                yield resource.removesuffix("s"), name
    for resource in _EXTRAS:
        if not any(_allows(rule, verb, _AUTHENTICATION, resource, None) for rule in rules):
            yield "the extra", resource
    if verb == _CONSTRAINED and not any(
        text.startswith(_ON) for rule in rules for text in _texts(rule, "verbs")
    ):
        yield "any user on", f"any resource: no verb {_ON}…"


def _withheld(rules: Sequence[Object]) -> list[str]:
    """Return the constrained form's verbs for resources that no rule grants any more."""
    given = {verb for rule in rules if _texts(rule, "resources") for verb in _texts(rule, "verbs")}
    left = [verb for verb in RESOURCE_VERBS if f"{_ON}{verb}" not in given]
    # If all are missing, `_missing` reports an error.
    return left if len(left) < len(RESOURCE_VERBS) else []


def _allows(rule: Object, verb: str, group: str, resource: str, name: str | None) -> bool:
    names = _texts(rule, "resourceNames")
    return (
        bool({verb, "*"} & set(_texts(rule, "verbs")))
        and bool({group, "*"} & set(_texts(rule, "apiGroups")))
        and bool({resource, "*"} & set(_texts(rule, "resources")))
        # The values of an extra are ids, so a rule with resourceNames matches none of them.
        and (not names or (name is not None and name in names))
    )


def _accounts(bindings: Sequence[Object]) -> list[tuple[str, str]]:
    """Return the service accounts that the relay's ClusterRole is bound to cluster-wide."""
    return sorted(
        {
            (str(subject.get("namespace", "")), str(subject.get("name", "")))
            for subject in _holders(bindings)
            if subject.get("kind") == "ServiceAccount"
        }
    )


def _holders(bindings: Sequence[Object]) -> list[Object]:
    """Return the subjects that the relay's ClusterRole is bound to cluster-wide."""
    return [
        subject
        for binding in bindings
        if binding.get("kind") == "ClusterRoleBinding" and _role_of(binding) == f"ClusterRole {CLUSTER_ROLE}"
        for subject in _objects(binding, "subjects")
    ]


def _other_rights(bindings: Sequence[Object], namespace: str, name: str) -> Iterable[tuple[str, str, str]]:
    user = ("User", f"system:serviceaccount:{namespace}:{name}")
    every = (_EVERY_ACCOUNT, f"{_EVERY_ACCOUNT}:{namespace}", "system:authenticated")
    groups = {("Group", group) for group in every}
    for binding in bindings:
        role = _role_of(binding)
        if role == f"ClusterRole {CLUSTER_ROLE}":
            continue
        for subject in _objects(binding, "subjects"):
            where = subject.get("namespace") or _meta(binding, "namespace")
            named = (subject.get("kind"), subject.get("name"))
            itself = (*named, where) == ("ServiceAccount", name, namespace) or named == user
            # Kubernetes grants its own `system:` roles to all accounts.
            if itself or (named in groups and not role.startswith("ClusterRole system:")):
                yield str(binding.get("kind")), _place(binding), role


def _names(enrolled: Enrolled, bindings: Sequence[Object], *, first: bool) -> Iterable[Finding]:
    found: dict[str, list[str]] = {}
    for binding in bindings:
        for subject in _objects(binding, "subjects"):
            kind, name = subject.get("kind"), str(subject.get("name", ""))
            ours = (kind == "User" and name.startswith(USER_PREFIX)) or (
                kind == "Group" and name.startswith(f"{enrolled.org}/")
            )
            if ours:
                place = f"{binding.get('kind')} {_place(binding)} ({_role_of(binding)})"
                found.setdefault(name, []).append(place)
    for name, places in sorted(found.items()):
        where = _some(sorted(places))
        if name not in enrolled.known:
            message = f"{name} has rights and is not enrolled at this hub: {where}"
            fix = "an agent enrolled under that name gets them; remove the binding, or choose other names"
            yield Finding(Level.WARNING, "names", message, fix)
        elif first:
            # Without a relay, only another identity provider can have brought the name.
            message = f"{name} has rights already, before a relay was set up here: {where}"
            fix = "check that no other identity provider issues this name"
            yield Finding(Level.WARNING, "names", message, fix)
        else:
            yield Finding(Level.INFO, "names", f"{name} has rights: {where}")


def _role_of(binding: Object) -> str:
    ref = binding.get("roleRef")
    return f"{ref.get('kind', '')} {ref.get('name', '')}" if isinstance(ref, Mapping) else ""


def _place(binding: Object) -> str:
    namespace = _meta(binding, "namespace")
    return f"{namespace}/{_meta(binding, 'name')}" if namespace else _meta(binding, "name")


def _meta(binding: Object, key: str) -> str:
    metadata = binding.get("metadata")
    return str(metadata.get(key, "")) if isinstance(metadata, Mapping) else ""


def _objects(item: Object, key: str) -> list[Object]:
    value = item.get(key)
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def _texts(item: Object, key: str) -> list[str]:
    value = item.get(key)
    return [str(each) for each in value] if isinstance(value, list) else []


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + rest
