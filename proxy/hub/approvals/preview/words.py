"""What a call does, in one sentence, and what belongs to an object that is deleted. Pure."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from auth.requestinfo import RequestInfo, decode_value, raw_values
from proxy.hub.approvals.preview.bodies import Body
from proxy.hub.approvals.preview.difference import RESTARTED_AT, Difference
from proxy.hub.approvals.preview.flags import query_option
from proxy.hub.approvals.preview.values import Value, items_at, safe, shown_json, text_at

# An object's dependants are information for a person, so a page of each list is enough.
DEPENDANTS_MAX: Final = 200
_KIND = re.compile(r"[A-Za-z][A-Za-z0-9.-]{0,62}")
# The fields that name the object.
_NO_OPTIONS: Final = frozenset({"kind", "apiVersion", "metadata"})
# Parameters that clients add, and that do not change what a call does.
_UNSAID: Final = frozenset({"timeout", "fieldManager", "fieldValidation"})
# The kinds of common resources. Objects of other resources state their kind.
_KINDS: Final = {
    "cronjobs": "CronJob",
    "daemonsets": "DaemonSet",
    "deployments": "Deployment",
    "jobs": "Job",
    "namespaces": "Namespace",
    "nodes": "Node",
    "pods": "Pod",
    "replicasets": "ReplicaSet",
    "replicationcontrollers": "ReplicationController",
    "statefulsets": "StatefulSet",
}
_PODS, _REPLICA_SETS, _JOBS = ("", "pods"), ("apps", "replicasets"), ("batch", "jobs")
# The objects that controllers of Kubernetes make for an owner, by the owner's (group, resource).
_MADE_FOR: Final = {
    ("apps", "daemonsets"): (_PODS,),
    ("apps", "deployments"): (_REPLICA_SETS, _PODS),
    ("apps", "replicasets"): (_PODS,),
    ("apps", "statefulsets"): (_PODS,),
    ("batch", "cronjobs"): (_JOBS, _PODS),
    ("batch", "jobs"): (_PODS,),
    ("", "replicationcontrollers"): (_PODS,),
}
# Objects that no controller makes anything for.
_WITHOUT_DEPENDANTS: Final = frozenset(
    {
        *("configmaps", "endpoints", "endpointslices", "events", "leases", "limitranges", "networkpolicies"),
        *(
            "persistentvolumeclaims",
            "poddisruptionbudgets",
            "pods",
            "resourcequotas",
            "rolebindings",
            "roles",
        ),
        *("secrets", "serviceaccounts", "services"),
    }
)


def subject_of(info: RequestInfo, value: Value = None) -> str:
    """Return what a call is about, as in `Deployment web`."""
    kind = text_at(value, "kind") if not info.subresource else ""
    if not _KIND.fullmatch(kind):
        kind = _KINDS.get(info.resource, safe(info.resource))
    name = info.name or text_at(value, "metadata", "name")
    return f"{kind} {safe(name)}" if name else kind


def creates(info: RequestInfo, value: Value) -> str:
    """Return the sentence of a call that makes an object. `value` is the object, or the body."""
    if info.subresource:
        return f"creates {safe(info.subresource)} of {subject_of(info)}"
    prefix = text_at(value, "metadata", "generateName")
    if prefix and not text_at(value, "metadata", "name"):
        return f"creates {subject_of(info, value)} with a name that begins with {safe(prefix)}"
    return f"creates {subject_of(info, value)}"


def changes(info: RequestInfo, value: Value, found: list[Difference]) -> str:
    """Return the sentence of a call that changes an object in this way."""
    subject = subject_of(info, value)
    if not found:
        return f"changes nothing of {subject}"
    if len(found) == 1:
        [only] = found
        if only.steps == ("spec", "replicas"):
            return f"scales {subject} from {_number(only.before)} to {_number(only.after)}"
        if RESTARTED_AT in only.steps or _holds_restart_alone(only):
            return f"restarts {subject}"
    part = f" ({safe(info.subresource)})" if info.subresource else ""
    return f"changes {subject}{part} in {_counted('places', len(found))}"


def _holds_restart_alone(found: Difference) -> bool:
    """Whether an object's first annotation of a template is that of a restart."""
    return found.steps == ("spec", "template", "metadata", "annotations") and (
        isinstance(found.after, dict) and list(found.after) == [RESTARTED_AT]
    )


def _number(value: object) -> str:
    return str(value) if isinstance(value, int) else "the default"


def written(info: RequestInfo, body: Body) -> str:
    """Return the sentence of a call that was not tried out."""
    if not info.is_resource:
        return f"sends {info.method} to {safe(info.path)}"
    if info.verb == "proxy" or info.subresource == "proxy":
        return f"sends {info.method} to {subject_of(info)} through the API server"
    if info.verb == "create":
        return creates(info, body.value)
    part = f" ({safe(info.subresource)})" if info.subresource else ""
    return f"changes {subject_of(info, body.value)}{part}"


def reads(info: RequestInfo) -> str:
    """Return the sentence of a call that only reads."""
    if not info.is_resource:
        return f"reads {safe(info.path)}"
    if not info.name:
        return f"lists {safe(info.resource)}"
    part = f"the {safe(info.subresource)} of " if info.subresource else ""
    return f"reads {part}{subject_of(info)}"


def deletes(info: RequestInfo, value: Value, counts: Mapping[str, int]) -> str:
    """Return the sentence of a deletion; `counts` are the dependants that were found, by resource."""
    found = [_counted(resource, counts[resource]) for resource in ("jobs", "pods") if counts.get(resource)]
    also = f", at least {' and '.join(found)}" if found else ""
    return f"deletes {subject_of(info, value)}{also}"


def deletes_many(info: RequestInfo, count: int) -> str:
    """Return the sentence of a deletecollection of so many objects."""
    return f"deletes {_counted(safe(info.resource), count)}"


def _counted(plural: str, count: int) -> str:
    return f"1 {plural.removesuffix('s')}" if count == 1 else f"{count} {plural}"


def reaches(info: RequestInfo) -> str:
    """Return the sentence of a call that acts on a running pod."""
    pod = subject_of(info)
    container = query_option(info, "container")
    within = f" (container {safe(container)})" if container else ""
    match info.subresource:
        case "exec":
            words = [
                text for text in map(decode_value, raw_values(info.query, "command")) if text is not None
            ]
            return f"runs `{safe(shlex.join(words))}` in {pod}{within}"
        case "attach":
            return f"attaches to {pod}{within}"
        case "portforward":
            return f"forwards ports of {pod}"
        case _:
            return f"evicts {pod}"


def made_for(info: RequestInfo) -> tuple[tuple[str, str], ...]:
    """Return the (group, resource) of objects that may belong to the one that is deleted, owners first."""
    if not info.namespace or info.resource == "namespaces":
        return ()
    subject = info.group, info.resource
    if subject in _MADE_FOR:
        return _MADE_FOR[subject]
    return () if info.resource in _WITHOUT_DEPENDANTS else (_REPLICA_SETS, _JOBS, _PODS)


def dependants(uid: str, lists: Iterable[tuple[str, Value]]) -> Counter[str]:
    """Return how many objects belong to the one with this uid, by resource. The lists have owners first."""
    owners, counts = {uid}, Counter[str]()
    for resource, listed in lists:
        for item in items_at(listed, "items"):
            references = items_at(item, "metadata", "ownerReferences")
            if any(text_at(reference, "uid") in owners for reference in references):
                counts[resource] += 1
                owners.add(text_at(item, "metadata", "uid"))
    return counts


def options_of(body: Body) -> str:
    """Return the options in the body of a deletion or an eviction, as a note; "" without any."""
    if body.unreadable:
        return f"its options, in a body of {body.size} bytes, are not shown: {body.unreadable}"
    if not isinstance(body.value, dict):
        return ""
    given = {key: value for key, value in body.value.items() if key not in _NO_OPTIONS}
    return f"options: {shown_json(given)}" if given else ""


def parameters_of(info: RequestInfo) -> str:
    """Return the parameters of a call as a note, or its target behind the API server; "" without any."""
    if info.verb == "proxy" or info.subresource == "proxy":
        query = f"?{info.query.decode('ascii')}" if info.query else ""
        return f"the target is {info.raw_path.decode('ascii')}{query}"
    pairs = [_shown_pair(pair) for pair in info.query.split(b"&")]
    unsaid = _UNSAID | {"limit"} if info.verb == "list" else _UNSAID
    given = [pair for pair in pairs if pair and pair.partition("=")[0] not in unsaid]
    return f"with {'&'.join(given)}" if given else ""


def _shown_pair(pair: bytes) -> str:
    """Return a pair of a query decoded, unless that would look like two."""
    decoded = decode_value(pair)
    return pair.decode("ascii") if decoded is None or "&" in decoded else decoded
