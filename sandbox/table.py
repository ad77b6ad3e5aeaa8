"""Objects as the rows of a Table: the columns that kubectl prints, computed by the server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import attrs

from sandbox.codec import typed
from sandbox.kinds import Kind
from sandbox.objects import Json, Object, integer, items, lookup, mapping, string_map, strings, text
from sandbox.selectors import from_object
from sandbox.storage import Item

Cell = Callable[[Object], Json]


@attrs.frozen
class Column:
    """One column; those with priority 1 are shown only by `-o wide`."""

    name: str
    cell: Cell
    type: str = "string"
    priority: int = 0
    format: str = ""

    def to_json(self) -> Object:
        """Return the TableColumnDefinition."""
        return {
            "name": self.name,
            "type": self.type,
            "format": self.format,
            "description": f"{self.name} of the object",
            "priority": self.priority,
        }


def render(
    kind: Kind, objects: Sequence[Item], metadata: Object, *, version: str, include: str, header: bool = True
) -> Object:
    """Return a Table of objects; `include` says how much of each object its row holds besides the cells."""
    columns = columns_of(kind)
    table: Object = {
        "kind": "Table",
        "apiVersion": f"meta.k8s.io/{version}",
        "metadata": metadata,
        "columnDefinitions": [column.to_json() for column in columns] if header else None,
        "rows": [_row(kind, columns, item.value, version, include) for item in objects],
    }
    if not header:
        del table["columnDefinitions"]
    return table


def _row(kind: Kind, columns: Sequence[Column], value: Object, version: str, include: str) -> Object:
    row: Object = {"cells": [column.cell(value) for column in columns]}
    if include == "Object":
        row["object"] = typed(kind, value)
    elif include != "None":
        row["object"] = partial(value, version)
    return row


def partial(value: Object, version: str) -> Object:
    """Return an object's metadata only."""
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": f"meta.k8s.io/{version}",
        "metadata": value.get("metadata"),
    }


def columns_of(kind: Kind) -> tuple[Column, ...]:
    """Return a kind's columns."""
    return _COLUMNS.get(kind.kind, (_NAME, _CREATED))


def age(moment: str) -> str:
    """Format the age of a time, as kubectl does."""
    if not moment:
        return "<unknown>"
    then = datetime.fromisoformat(moment.replace("Z", "+00:00"))
    return duration(int((datetime.now(UTC) - then).total_seconds()))


def duration(seconds: int) -> str:
    """Format a number of seconds with at most two units, and fewer for long durations."""
    if seconds < 0:
        return "0s"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    years = days // 365
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return f"{minutes}m{seconds % 60}s" if seconds % 60 else f"{minutes}m"
    if hours < 3:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    if years < 2:
        return f"{days}d"
    if years < 8:
        return f"{years}y{days % 365}d" if days % 365 else f"{years}y"
    return f"{years}y"


def _field(*path: str, none: str = "<none>") -> Cell:
    return lambda value: text(value, *path) or none


def _count(*path: str) -> Cell:
    return lambda value: integer(value, *path)


def _size(*path: str) -> Cell:
    def cell(value: Object) -> Json:
        found = lookup(value, *path)
        return len(found) if isinstance(found, (dict, list)) else 0

    return cell


def _pairs(labels: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items())) or "<none>"


def _selector(value: Object) -> str:
    selector = mapping(value, "spec", "selector")
    plain = _pairs(string_map(selector, "matchLabels"))
    extra = [
        f"{term.key} {term.operator} ({','.join(sorted(term.values))})" if term.values else term.key
        for term in from_object({"matchExpressions": selector.get("matchExpressions")})
    ]
    return ",".join([*([] if plain == "<none>" else [plain]), *extra]) or "<none>"


def _pod_status(pod: Object) -> str:
    """Summarise a pod's state in one word, as the real printer does from the containers' states."""
    reason = text(pod, "status", "reason") or text(pod, "status", "phase")
    statuses = items(pod, "status", "containerStatuses")
    running = False
    for status in reversed(statuses):
        if why := text(status, "state", "waiting", "reason"):
            reason = why
        elif lookup(status, "state", "terminated") is not None:
            terminated = mapping(status, "state", "terminated")
            reason = text(terminated, "reason") or f"ExitCode:{integer(terminated, 'exitCode')}"
        elif status.get("ready") is True and lookup(status, "state", "running") is not None:
            running = True
    if reason == "Completed" and running:
        reason = "Running" if _ready(pod) else "NotReady"
    if text(pod, "metadata", "deletionTimestamp"):
        reason = "Terminating"
    return reason or "Unknown"


def _ready(pod: Object) -> bool:
    return any(
        condition.get("type") == "Ready" and condition.get("status") == "True"
        for condition in items(pod, "status", "conditions")
    )


def _pod_ready(pod: Object) -> str:
    statuses = items(pod, "status", "containerStatuses")
    ready = sum(status.get("ready") is True for status in statuses)
    return f"{ready}/{len(items(pod, 'spec', 'containers'))}"


def _restarts(pod: Object) -> str:
    statuses = items(pod, "status", "containerStatuses")
    count = sum(integer(status, "restartCount") for status in statuses)
    ended = [text(status, "lastState", "terminated", "finishedAt") for status in statuses]
    last = max(ended, default="")
    return f"{count} ({age(last)} ago)" if count and last else str(count)


def _containers(what: str, *path: str) -> Cell:
    return lambda value: ",".join(text(each, what) for each in items(value, *path)) or "<none>"


def _ports(service: Object) -> str:
    shown = []
    for port in items(service, "spec", "ports"):
        node = f":{integer(port, 'nodePort')}" if integer(port, "nodePort") else ""
        shown.append(f"{integer(port, 'port')}{node}/{text(port, 'protocol')}")
    return ",".join(shown) or "<none>"


def _deployment_ready(value: Object) -> str:
    return f"{integer(value, 'status', 'readyReplicas')}/{integer(value, 'spec', 'replicas')}"


def _subjects(kind: str) -> Cell:
    def cell(value: Object) -> Json:
        names = []
        for subject in items(value, "subjects"):
            if subject.get("kind") == kind:
                prefix = f"{text(subject, 'namespace')}/" if kind == "ServiceAccount" else ""
                names.append(prefix + text(subject, "name"))
        return ", ".join(names)

    return cell


def _role(value: Object) -> str:
    return f"{text(value, 'roleRef', 'kind')}/{text(value, 'roleRef', 'name')}"


def _node_roles(value: Object) -> str:
    prefix = "node-role.kubernetes.io/"
    labels = string_map(value, "metadata", "labels")
    return ",".join(sorted(key.removeprefix(prefix) for key in labels if key.startswith(prefix))) or "<none>"


def _node_status(value: Object) -> str:
    cordoned = ",SchedulingDisabled" if mapping(value, "spec").get("unschedulable") else ""
    return ("Ready" if _ready(value) else "NotReady") + cordoned


def _address(kind: str) -> Cell:
    return lambda value: next(
        (text(each, "address") for each in items(value, "status", "addresses") if each.get("type") == kind),
        "<none>",
    )


def _event_object(value: Object) -> str:
    return f"{text(value, 'involvedObject', 'kind').lower()}/{text(value, 'involvedObject', 'name')}"


def _last_seen(value: Object) -> str:
    return age(text(value, "lastTimestamp") or text(value, "eventTime"))


def _budget(field: str) -> Cell:
    def cell(value: Object) -> Json:
        wanted = lookup(value, "spec", field)
        return "N/A" if wanted is None else str(wanted)

    return cell


def _created(value: Object) -> str:
    return age(text(value, "metadata", "creationTimestamp"))


def _created_at(value: Object) -> str:
    return text(value, "metadata", "creationTimestamp")


_NAME = Column("Name", _field("metadata", "name"), format="name")
_AGE = Column("Age", _created)
_CREATED = Column("Created At", _created_at, type="date")
_TEMPLATE = ("spec", "template", "spec", "containers")


def _job_status(value: Object) -> Json:
    ended = next(iter(items(value, "status", "conditions")), {})
    if ended:
        return text(ended, "type")
    return "Suspended" if lookup(value, "spec", "suspend") is True else "Running"


def _completions(value: Object) -> Json:
    wanted = integer(value, "spec", "completions", default=1)
    return f"{integer(value, 'status', 'succeeded')}/{wanted}"


def _job_duration(value: Object) -> Json:
    start, end = text(value, "status", "startTime"), text(value, "status", "completionTime")
    if not start or not end:
        return age(start) if start else ""
    moments = [datetime.fromisoformat(moment.replace("Z", "+00:00")) for moment in (start, end)]
    return duration(int((moments[1] - moments[0]).total_seconds()))


def _api_service(value: Object) -> Json:
    service = mapping(value, "spec", "service")
    return f"{text(service, 'namespace')}/{text(service, 'name')}" if service else "Local"


def _available(value: Object) -> Json:
    return any(
        condition.get("type") == "Available" and condition.get("status") == "True"
        for condition in items(value, "status", "conditions")
    )


_WORKLOAD = (
    Column("Containers", _containers("name", *_TEMPLATE), priority=1),
    Column("Images", _containers("image", *_TEMPLATE), priority=1),
    Column("Selector", _selector, priority=1),
)
_BOUND = (
    Column("Users", _subjects("User"), priority=1),
    Column("Groups", _subjects("Group"), priority=1),
    Column("ServiceAccounts", _subjects("ServiceAccount"), priority=1),
)
_COLUMNS: dict[str, tuple[Column, ...]] = {
    "Pod": (
        _NAME,
        Column("Ready", _pod_ready),
        Column("Status", _pod_status),
        Column("Restarts", _restarts),
        _AGE,
        Column("IP", _field("status", "podIP"), priority=1),
        Column("Node", _field("spec", "nodeName"), priority=1),
        Column("Nominated Node", _field("status", "nominatedNodeName"), priority=1),
        Column("Readiness Gates", lambda pod: "<none>", priority=1),
    ),
    "Service": (
        _NAME,
        Column("Type", _field("spec", "type")),
        Column("Cluster-IP", _field("spec", "clusterIP")),
        Column("External-IP", lambda value: ",".join(strings(value, "spec", "externalIPs")) or "<none>"),
        Column("Port(s)", _ports),
        _AGE,
        Column("Selector", lambda value: _pairs(string_map(value, "spec", "selector")), priority=1),
    ),
    "ConfigMap": (
        _NAME,
        Column(
            "Data", lambda value: len({**mapping(value, "data"), **mapping(value, "binaryData")}), "integer"
        ),
        _AGE,
    ),
    "Secret": (_NAME, Column("Type", _field("type")), Column("Data", _size("data"), "integer"), _AGE),
    "ServiceAccount": (_NAME, Column("Secrets", _size("secrets"), "integer"), _AGE),
    "Namespace": (_NAME, Column("Status", _field("status", "phase")), _AGE),
    "Node": (
        _NAME,
        Column("Status", _node_status),
        Column("Roles", _node_roles),
        _AGE,
        Column("Version", _field("status", "nodeInfo", "kubeletVersion")),
        Column("Internal-IP", _address("InternalIP"), priority=1),
        Column("External-IP", _address("ExternalIP"), priority=1),
        Column("OS-Image", _field("status", "nodeInfo", "osImage"), priority=1),
        Column("Kernel-Version", _field("status", "nodeInfo", "kernelVersion"), priority=1),
        Column("Container-Runtime", _field("status", "nodeInfo", "containerRuntimeVersion"), priority=1),
    ),
    "Event": (
        Column("Last Seen", _last_seen),
        Column("Type", _field("type", none="")),
        Column("Reason", _field("reason", none="")),
        Column("Object", _event_object),
        Column("Subobject", _field("involvedObject", "fieldPath", none=""), priority=1),
        Column("Source", _field("source", "component", none=""), priority=1),
        Column("Message", _field("message", none="")),
        Column("First Seen", lambda value: age(text(value, "firstTimestamp")), priority=1),
        Column("Count", lambda value: integer(value, "count", default=1), "integer", priority=1),
        Column("Name", _field("metadata", "name"), priority=1, format="name"),
    ),
    "Deployment": (
        _NAME,
        Column("Ready", _deployment_ready),
        Column("Up-to-date", _count("status", "updatedReplicas"), "integer"),
        Column("Available", _count("status", "availableReplicas"), "integer"),
        _AGE,
        *_WORKLOAD,
    ),
    "ReplicaSet": (
        _NAME,
        Column("Desired", _count("spec", "replicas"), "integer"),
        Column("Current", _count("status", "replicas"), "integer"),
        Column("Ready", _count("status", "readyReplicas"), "integer"),
        _AGE,
        *_WORKLOAD,
    ),
    "Job": (
        _NAME,
        Column("Status", _job_status),
        Column("Completions", _completions),
        Column("Duration", _job_duration),
        _AGE,
        *_WORKLOAD,
    ),
    "PodDisruptionBudget": (
        _NAME,
        Column("Min Available", _budget("minAvailable")),
        Column("Max Unavailable", _budget("maxUnavailable")),
        Column("Allowed Disruptions", _count("status", "disruptionsAllowed"), "integer"),
        _AGE,
    ),
    "MutatingWebhookConfiguration": (_NAME, Column("Webhooks", _size("webhooks"), "integer"), _AGE),
    "ValidatingWebhookConfiguration": (_NAME, Column("Webhooks", _size("webhooks"), "integer"), _AGE),
    "APIService": (_NAME, Column("Service", _api_service), Column("Available", _available), _AGE),
    "Role": (_NAME, _CREATED),
    "ClusterRole": (_NAME, _CREATED),
    "RoleBinding": (_NAME, Column("Role", _role), _AGE, *_BOUND),
    "ClusterRoleBinding": (_NAME, Column("Role", _role), _AGE, *_BOUND),
}
