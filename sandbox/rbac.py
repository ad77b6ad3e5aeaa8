"""Role-based access control by the stored roles and bindings, as the API server evaluates them."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from sandbox.authn import MASTERS, User, split_service_account
from sandbox.objects import Object, items, strings, text
from sandbox.requestinfo import RequestInfo
from sandbox.status import GroupResource, StatusError, forbidden, quote
from sandbox.storage import Store

GROUP = "rbac.authorization.k8s.io"


@attrs.frozen
class Attributes:
    """The attributes of a request for the authoriser; without a resource, it is for a path."""

    user: User
    verb: str
    group: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""

    @classmethod
    def of_request(cls, user: User, info: RequestInfo) -> Attributes:
        """Return the attributes of a request."""
        return cls(
            user=user,
            verb=info.verb,
            group=info.group,
            resource=info.resource,
            subresource=info.subresource,
            namespace=info.namespace,
            name=info.name,
            path=info.path,
        )


class Authorizer:
    """Decides by the roles and bindings in the store."""

    def __init__(self, store: Store) -> None:
        self._cluster_roles = store.collection(GROUP, "clusterroles")
        self._cluster_bindings = store.collection(GROUP, "clusterrolebindings")
        self._roles = store.collection(GROUP, "roles")
        self._bindings = store.collection(GROUP, "rolebindings")

    def refusal(self, attributes: Attributes) -> StatusError | None:
        """Return the API server's 403, or None if the request is allowed."""
        errors: list[str] = []
        if MASTERS in attributes.user.groups:
            return None
        for rule in self.rules(attributes.user, attributes.namespace, errors):
            if rule_allows(rule, attributes):
                return None
        why = forbidden_message(attributes)
        if errors:
            reason = errors[0] if len(errors) == 1 else f"[{', '.join(errors)}]"
            why = f"{why}: RBAC: {reason}"
        return forbidden(GroupResource(attributes.group, attributes.resource), attributes.name, why)

    def rules(self, user: User, namespace: str, errors: list[str]) -> Iterator[Object]:
        """Yield every rule that applies to a user in a namespace; unresolvable references are added to
        `errors`.
        """
        for binding in self._cluster_bindings.items():
            if any(subject_matches(subject, user, "") for subject in items(binding.value, "subjects")):
                yield from self._role_rules(binding.value, "", errors)
        if not namespace:
            return
        for binding in self._bindings.items(namespace):
            if any(subject_matches(subject, user, namespace) for subject in items(binding.value, "subjects")):
                yield from self._role_rules(binding.value, namespace, errors)

    def _role_rules(self, binding: Object, namespace: str, errors: list[str]) -> list[Object]:
        kind, name = text(binding, "roleRef", "kind"), text(binding, "roleRef", "name")
        if kind == "ClusterRole":
            role = self._cluster_roles.get("", name)
        else:
            role = self._roles.get(namespace, name)
        if role is None:
            errors.append(f"{kind.lower()}.{GROUP} {quote(name)} not found")
            return []
        return items(role.value, "rules")


def subject_matches(subject: Object, user: User, namespace: str) -> bool:
    """Whether a binding's subject matches the user; `namespace` is the binding's own."""
    name = text(subject, "name")
    match text(subject, "kind"):
        case "User":
            return user.name == name
        case "Group":
            return name in user.groups
        case "ServiceAccount":
            where = text(subject, "namespace") or namespace
            return bool(where) and split_service_account(user.name) == (where, name)
    return False


def rule_allows(rule: Object, attributes: Attributes) -> bool:
    """Whether one rule allows a request."""
    if not _has(strings(rule, "verbs"), attributes.verb):
        return False
    if not attributes.resource:
        return any(_path_matches(url, attributes.path) for url in strings(rule, "nonResourceURLs"))
    names = strings(rule, "resourceNames")
    return (
        _has(strings(rule, "apiGroups"), attributes.group)
        and _resource_matches(strings(rule, "resources"), attributes.resource, attributes.subresource)
        and (not names or attributes.name in names)
    )


def _has(allowed: list[str], value: str) -> bool:
    return "*" in allowed or value in allowed


def _resource_matches(allowed: list[str], resource: str, subresource: str) -> bool:
    if "*" in allowed:
        return True
    if not subresource:
        return resource in allowed
    return f"{resource}/{subresource}" in allowed or f"*/{subresource}" in allowed


def _path_matches(allowed: str, path: str) -> bool:
    return allowed in ("*", path) or (allowed.endswith("*") and path.startswith(allowed.rstrip("*")))


_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def forbidden_message(attributes: Attributes) -> str:
    """Name the user and the forbidden action, in the API server's words."""
    user, verb = quote(attributes.user.name), attributes.verb
    if not attributes.resource:
        message = f"User {user} cannot {verb} path {quote(attributes.path)}"
    else:
        sub = f"/{attributes.subresource}" if attributes.subresource else ""
        where = (
            f"in the namespace {quote(attributes.namespace)}"
            if attributes.namespace
            else "at the cluster scope"
        )
        resource = quote(attributes.resource + sub)
        message = (
            f"User {user} cannot {verb} resource {resource} in API group {quote(attributes.group)} {where}"
        )
    return message.translate(_HTML)
