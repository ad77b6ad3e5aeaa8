"""Admission webhooks: which ones a request meets, and the programs that answer in their place.

The programs are part of the sandbox: a webhook whose URL is https://webhook.invalid/PROGRAM runs one of them,
and any other webhook can't be reached. Webhooks see the requests of clients, but not the writes of the
sandbox's own controllers.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable, Iterator

import attrs

from sandbox.kinds import CONFIG_MAPS, MUTATING_WEBHOOKS, NAMESPACES, VALIDATING_WEBHOOKS, Kind
from sandbox.objects import Object, child, clone, items, mapping, now, strings, text
from sandbox.selectors import from_object, labels_match
from sandbox.status import StatusError, bad_request, internal_error, quote
from sandbox.storage import Item, Store

PROGRAMS_URL = "https://webhook.invalid/"
# Where the program `record` counts its calls, by the webhook's name.
CALLS_NAMESPACE, CALLS_NAME = "kube-system", "webhook-calls"
_CALLS: Object = {"name": CALLS_NAME, "namespace": CALLS_NAMESPACE}
_DRY_RUN_SAFE = ("None", "NoneOnDryRun")


@attrs.frozen
class Attributes:
    """What is admitted: `value` is None for a delete, `old` for a create."""

    kind: Kind
    operation: str
    namespace: str
    name: str
    value: Object | None
    old: Object | None = None
    subresource: str = ""
    dry_run: bool = False


class Admission:
    """Runs the webhooks that the stored configurations name."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._programs: dict[str, Callable[[Attributes, Object], None]] = {
            "allow": _allow,
            "deny": _deny,
            "label": _label,
            "random": _random,
            "record": self._record,
        }

    def mutate(self, attributes: Attributes) -> None:
        """Let the mutating webhooks change the object, in place; raises StatusError."""
        self._call(MUTATING_WEBHOOKS, attributes)

    def validate(self, attributes: Attributes) -> None:
        """Ask the validating webhooks, which see a copy of the object; raises StatusError."""
        value = clone(attributes.value) if attributes.value is not None else None
        self._call(VALIDATING_WEBHOOKS, attrs.evolve(attributes, value=value))

    def _call(self, configurations: Kind, attributes: Attributes) -> None:
        if attributes.kind in (MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS):
            # Otherwise a webhook could prevent its own removal.
            return
        for webhook in self._webhooks(configurations):
            if not self._meets(webhook, attributes):
                continue
            if attributes.dry_run and text(webhook, "sideEffects") not in _DRY_RUN_SAFE:
                name = quote(text(webhook, "name"))
                raise bad_request(f"admission webhook {name} does not support dry run")
            program = self._program(webhook)
            if program is not None:
                program(attributes, webhook)
            elif text(webhook, "failurePolicy") != "Ignore":
                raise _unreachable(webhook)

    def _webhooks(self, configurations: Kind) -> Iterator[Object]:
        for item in self._store.collection(configurations.group, configurations.resource).items():
            yield from items(item.value, "webhooks")

    def _program(self, webhook: Object) -> Callable[[Attributes, Object], None] | None:
        url = text(webhook, "clientConfig", "url")
        if not url.startswith(PROGRAMS_URL):
            return None
        return self._programs.get(url.removeprefix(PROGRAMS_URL))

    def _meets(self, webhook: Object, attributes: Attributes) -> bool:
        return (
            any(_covers(rule, attributes) for rule in items(webhook, "rules"))
            and self._namespace_matches(webhook, attributes)
            and _object_matches(webhook, attributes)
        )

    def _namespace_matches(self, webhook: Object, attributes: Attributes) -> bool:
        """Compare with the namespace's labels; an object outside of namespaces always matches."""
        selector = mapping(webhook, "namespaceSelector")
        if attributes.kind is NAMESPACES:
            return labels_match(from_object(selector), attributes.value or attributes.old or {})
        if not selector or not attributes.kind.namespaced:
            return True
        namespace = self._store.collection(NAMESPACES.group, NAMESPACES.resource).get(
            "", attributes.namespace
        )
        return namespace is not None and labels_match(from_object(selector), namespace.value)

    def _record(self, attributes: Attributes, webhook: Object) -> None:
        """Count the call in a config map: the side effect of this webhook."""
        if attributes.dry_run and text(webhook, "sideEffects") == "NoneOnDryRun":
            return
        calls = self._store.collection(CONFIG_MAPS.group, CONFIG_MAPS.resource)
        present: Item | None = calls.get(CALLS_NAMESPACE, CALLS_NAME)
        value: Object = (
            clone(present.value)
            if present is not None
            else {"metadata": {**_CALLS, "uid": str(uuid.uuid4()), "creationTimestamp": now()}}
        )
        name = text(webhook, "name")
        counted = text(value, "data", name)
        child(value, "data")[name] = str(int(counted or "0") + 1)
        calls.put(value)


def _covers(rule: Object, attributes: Attributes) -> bool:
    kind = attributes.kind
    scope = text(rule, "scope") or "*"
    return (
        _listed(rule, "operations", attributes.operation)
        and _listed(rule, "apiGroups", kind.group)
        and _listed(rule, "apiVersions", kind.version)
        and scope in ("*", "Namespaced" if kind.namespaced else "Cluster")
        and any(_names(pattern, attributes) for pattern in strings(rule, "resources"))
    )


def _listed(rule: Object, field: str, value: str) -> bool:
    listed = strings(rule, field)
    return "*" in listed or value in listed


def _names(pattern: str, attributes: Attributes) -> bool:
    """Compare with `pods`, `pods/eviction`, `pods/*`, `*/scale`, `*` (no subresource) or `*/*`."""
    resource, _, subresource = pattern.partition("/")
    return resource in ("*", attributes.kind.resource) and (
        subresource == attributes.subresource or (subresource == "*" and "/" in pattern)
    )


def _object_matches(webhook: Object, attributes: Attributes) -> bool:
    """Compare with the labels of either version; a match of one is enough."""
    selector = mapping(webhook, "objectSelector")
    if not selector:
        return True
    terms = from_object(selector)
    versions = (attributes.value, attributes.old)
    return any(labels_match(terms, value) for value in versions if value is not None)


def _unreachable(webhook: Object) -> StatusError:
    url = text(webhook, "clientConfig", "url")
    service = mapping(webhook, "clientConfig", "service")
    if not url:
        url = f"https://{text(service, 'name')}.{text(service, 'namespace')}.svc:443{text(service, 'path')}"
    name = quote(text(webhook, "name"))
    why = f"failed calling webhook {name}: failed to call webhook: Post {quote(url)}: no route to host"
    return internal_error(why)


def _allow(attributes: Attributes, webhook: Object) -> None:
    """Admit the request as it is."""


def _deny(attributes: Attributes, webhook: Object) -> None:
    name = quote(text(webhook, "name"))
    raise StatusError(
        403, "Forbidden", f"admission webhook {name} denied the request: the sandbox denies all of them", {}
    )


def _label(attributes: Attributes, webhook: Object) -> None:
    if attributes.value is not None:
        child(attributes.value, "metadata", "labels")["sandbox.example/webhook"] = "seen"


def _random(attributes: Attributes, webhook: Object) -> None:
    if attributes.value is not None:
        annotations = child(attributes.value, "metadata", "annotations")
        annotations["sandbox.example/random"] = secrets.token_hex(8)
