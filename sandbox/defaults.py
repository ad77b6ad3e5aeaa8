"""Default values that the server fills in, and validation beyond the table of fields."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable

from sandbox.kinds import Kind
from sandbox.objects import Json, Object, child, items, lookup, mapping, string_map, strings, text
from sandbox.selectors import from_object, labels_match
from sandbox.status import Fault, invalid, invalid_field, missing_field

_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
NAME_MAX = 253
LABEL_MAX = 63
_SUBDOMAIN_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must "
    "start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_LABEL_RULE = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start "
    "and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)


def fill(kind: Kind, value: Object) -> None:
    """Set the defaults of a kind, in place."""
    setter = _DEFAULTS.get(kind.kind)
    if setter is not None:
        setter(value)


def _default(value: Object, key: str, default: Json) -> None:
    if value.get(key) is None:
        value[key] = default


def _pod(value: Object) -> None:
    spec = child(value, "spec")
    _pod_spec(spec)
    _default(spec, "serviceAccountName", "default")
    _default(spec, "serviceAccount", spec["serviceAccountName"])
    _default(spec, "enableServiceLinks", True)
    _default(spec, "preemptionPolicy", "PreemptLowerPriority")
    _default(spec, "priority", 0)
    _default(
        spec,
        "tolerations",
        [
            {
                "key": f"node.kubernetes.io/{what}",
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": 300,
            }
            for what in ("not-ready", "unreachable")
        ],
    )
    status = child(value, "status")
    _default(status, "phase", "Pending")
    _default(status, "qosClass", "BestEffort")


def _pod_spec(spec: Object) -> None:
    _default(spec, "restartPolicy", "Always")
    _default(spec, "terminationGracePeriodSeconds", 30)
    _default(spec, "dnsPolicy", "ClusterFirst")
    _default(spec, "securityContext", {})
    _default(spec, "schedulerName", "default-scheduler")
    for container in [
        *items(spec, "containers"),
        *items(spec, "initContainers"),
        *items(spec, "ephemeralContainers"),
    ]:
        image = text(container, "image")
        latest = image.endswith(":latest") or ":" not in image.rpartition("/")[2]
        _default(container, "resources", {})
        _default(container, "terminationMessagePath", "/dev/termination-log")
        _default(container, "terminationMessagePolicy", "File")
        _default(container, "imagePullPolicy", "Always" if latest else "IfNotPresent")
        for port in items(container, "ports"):
            _default(port, "protocol", "TCP")
    for volume in items(spec, "volumes"):
        for source in ("configMap", "secret", "projected", "downwardAPI"):
            if isinstance(volume.get(source), dict):
                _default(child(volume, source), "defaultMode", 420)


def _template(value: Object) -> None:
    metadata = child(value, "spec", "template", "metadata")
    metadata.setdefault("creationTimestamp", None)
    _pod_spec(child(value, "spec", "template", "spec"))


def _deployment(value: Object) -> None:
    spec = child(value, "spec")
    _default(spec, "replicas", 1)
    _default(spec, "revisionHistoryLimit", 10)
    _default(spec, "progressDeadlineSeconds", 600)
    strategy = child(spec, "strategy")
    _default(strategy, "type", "RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        rolling = child(strategy, "rollingUpdate")
        _default(rolling, "maxUnavailable", "25%")
        _default(rolling, "maxSurge", "25%")
    _template(value)
    child(value, "status")


def _replica_set(value: Object) -> None:
    _default(child(value, "spec"), "replicas", 1)
    _template(value)
    _default(child(value, "status"), "replicas", 0)


def _job(value: Object) -> None:
    """Set the defaults of a job, and the labels by which it finds its pods."""
    spec = child(value, "spec")
    _default(spec, "parallelism", 1)
    _default(spec, "completions", 1)
    _default(spec, "backoffLimit", 6)
    _default(spec, "completionMode", "NonIndexed")
    _default(spec, "suspend", False)
    _default(spec, "podReplacementPolicy", "TerminatingOrFailed")
    _template(value)
    child(value, "status")
    if spec.get("manualSelector") is True or spec.get("selector"):
        return
    uid, name = text(value, "metadata", "uid"), text(value, "metadata", "name")
    labels = child(spec, "template", "metadata", "labels")
    for prefix in ("", "batch.kubernetes.io/"):
        labels.update({f"{prefix}controller-uid": uid, f"{prefix}job-name": name})
    spec["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}


def _service(value: Object) -> None:
    spec = child(value, "spec")
    _default(spec, "type", "ClusterIP")
    _default(spec, "sessionAffinity", "None")
    if spec["type"] != "ExternalName":
        _default(spec, "internalTrafficPolicy", "Cluster")
        _default(spec, "ipFamilies", ["IPv4"])
        _default(spec, "ipFamilyPolicy", "SingleStack")
    for port in items(spec, "ports"):
        _default(port, "protocol", "TCP")
        _default(port, "targetPort", port.get("port"))
    child(value, "status", "loadBalancer")


def _secret(value: Object) -> None:
    written = string_map(value, "stringData")
    value.pop("stringData", None)
    if written:
        child(value, "data").update(
            {key: base64.b64encode(item.encode()).decode() for key, item in written.items()}
        )
    _default(value, "type", "Opaque")


def _namespace(value: Object) -> None:
    name = text(value, "metadata", "name")
    child(value, "metadata", "labels")["kubernetes.io/metadata.name"] = name
    _default(child(value, "spec"), "finalizers", ["kubernetes"])
    _default(child(value, "status"), "phase", "Active")


def _binding(value: Object) -> None:
    for subject in items(value, "subjects"):
        if subject.get("kind") in ("User", "Group"):
            _default(subject, "apiGroup", "rbac.authorization.k8s.io")
    _default(child(value, "roleRef"), "apiGroup", "rbac.authorization.k8s.io")


def _webhooks(value: Object) -> None:
    for webhook in items(value, "webhooks"):
        _default(webhook, "failurePolicy", "Fail")
        _default(webhook, "matchPolicy", "Equivalent")
        _default(webhook, "timeoutSeconds", 10)
        _default(webhook, "namespaceSelector", {})
        _default(webhook, "objectSelector", {})
        for rule in items(webhook, "rules"):
            _default(rule, "scope", "*")
        if service := mapping(webhook, "clientConfig", "service"):
            _default(service, "port", 443)


def _widget(value: Object) -> None:
    _default(child(value, "spec"), "size", "small")


def _mutating_webhooks(value: Object) -> None:
    _webhooks(value)
    for webhook in items(value, "webhooks"):
        _default(webhook, "reinvocationPolicy", "Never")


_DEFAULTS: dict[str, Callable[[Object], None]] = {
    "Pod": _pod,
    "Deployment": _deployment,
    "ReplicaSet": _replica_set,
    "Job": _job,
    "Service": _service,
    "Secret": _secret,
    "Namespace": _namespace,
    "RoleBinding": _binding,
    "ClusterRoleBinding": _binding,
    "MutatingWebhookConfiguration": _mutating_webhooks,
    "ValidatingWebhookConfiguration": _webhooks,
    "Widget": _widget,
}


def check(kind: Kind, value: Object, previous: Object | None) -> None:
    """Refuse an invalid object, or a change that is not permitted; raises StatusError."""
    faults = [*_name_faults(kind, value), *(_CHECKS.get(kind.kind) or _nothing)(value)]
    if previous is not None:
        faults += _immutable(kind, value, previous)
    if faults:
        raise invalid(kind.group, kind.kind, text(value, "metadata", "name"), faults)


def _name_faults(kind: Kind, value: Object) -> list[Fault]:
    name = text(value, "metadata", "name")
    if not name:
        return [
            Fault("FieldValueRequired", "metadata.name", "Required value: name or generateName is required")
        ]
    if kind.group == "rbac.authorization.k8s.io" or kind.kind == "APIService":
        bad = "/" in name or "%" in name or name in (".", "..")
        return [invalid_field("metadata.name", name, "may not contain '/' or '%'")] if bad else []
    if kind.kind in ("Namespace", "Service"):
        if len(name) > LABEL_MAX or not _LABEL.fullmatch(name):
            return [invalid_field("metadata.name", name, _LABEL_RULE)]
    elif len(name) > NAME_MAX or not _SUBDOMAIN.fullmatch(name):
        return [invalid_field("metadata.name", name, _SUBDOMAIN_RULE)]
    return []


def _nothing(value: Object) -> list[Fault]:
    return []


def _pod_faults(value: Object) -> list[Fault]:
    return _pod_spec_faults(mapping(value, "spec"), "spec")


def _pod_spec_faults(spec: Object, path: str) -> list[Fault]:
    faults = []
    containers = items(spec, "containers")
    if not containers:
        faults.append(missing_field(f"{path}.containers"))
    seen: set[str] = set()
    for index, container in enumerate(containers):
        where = f"{path}.containers[{index}]"
        name = text(container, "name")
        if not name:
            faults.append(missing_field(f"{where}.name"))
        elif name in seen:
            faults.append(Fault("FieldValueDuplicate", f"{where}.name", f'Duplicate value: "{name}"'))
        elif not _LABEL.fullmatch(name) or len(name) > LABEL_MAX:
            faults.append(invalid_field(f"{where}.name", name, _LABEL_RULE))
        seen.add(name)
        if not text(container, "image"):
            faults.append(missing_field(f"{where}.image"))
    return faults


def _workload_faults(value: Object) -> list[Fault]:
    selector = mapping(value, "spec", "selector")
    if not selector:
        return [missing_field("spec.selector")]
    template = mapping(value, "spec", "template")
    faults = _pod_spec_faults(mapping(template, "spec"), "spec.template.spec")
    if not labels_match(from_object(selector), template):
        labels = lookup(template, "metadata", "labels")
        faults.append(
            invalid_field(
                "spec.template.metadata.labels", labels, "`selector` does not match template `labels`"
            )
        )
    replicas = lookup(value, "spec", "replicas")
    if isinstance(replicas, int) and replicas < 0:
        faults.append(invalid_field("spec.replicas", replicas, "must be greater than or equal to 0"))
    return faults


def _job_faults(value: Object) -> list[Fault]:
    faults = _pod_spec_faults(mapping(value, "spec", "template", "spec"), "spec.template.spec")
    if text(value, "spec", "template", "spec", "restartPolicy") not in ("OnFailure", "Never"):
        where = "spec.template.spec.restartPolicy"
        faults.append(_required(where, 'valid values: "OnFailure", "Never"'))
    return faults


def _service_faults(value: Object) -> list[Fault]:
    spec = mapping(value, "spec")
    if not items(spec, "ports") and spec.get("type") != "ExternalName" and spec.get("clusterIP") != "None":
        return [missing_field("spec.ports")]
    return [
        invalid_field(f"spec.ports[{index}].port", port.get("port"), "must be between 1 and 65535, inclusive")
        for index, port in enumerate(items(spec, "ports"))
        if not isinstance(port.get("port"), int) or not 1 <= int(str(port["port"])) <= 65535
    ]


def _webhook_faults(value: Object) -> list[Fault]:
    faults = []
    for index, webhook in enumerate(items(value, "webhooks")):
        where, name, client = f"webhooks[{index}]", text(webhook, "name"), mapping(webhook, "clientConfig")
        if name.count(".") < 2 or not _SUBDOMAIN.fullmatch(name):
            why = "should be a domain with at least three segments separated by dots"
            faults.append(invalid_field(f"{where}.name", name, why))
        if ("url" in client) == ("service" in client):
            faults.append(_required(f"{where}.clientConfig", "exactly one of url or service is required"))
        if not webhook.get("sideEffects"):
            faults.append(_required(f"{where}.sideEffects", "must specify one of None, NoneOnDryRun"))
        if not strings(webhook, "admissionReviewVersions"):
            faults.append(_required(f"{where}.admissionReviewVersions", "must specify one of v1, v1beta1"))
    return faults


def _budget_faults(value: Object) -> list[Fault]:
    amounts = {key: lookup(value, "spec", key) for key in ("minAvailable", "maxUnavailable")}
    if None not in amounts.values():
        why = "minAvailable and maxUnavailable cannot be both set"
        return [invalid_field("spec", str(mapping(value, "spec")), why)]
    return [
        invalid_field(f"spec.{key}", amount, "must be a valid percent string (e.g. 5% or 10%)")
        for key, amount in amounts.items()
        if isinstance(amount, str) and not re.fullmatch("[0-9]+%", amount)
    ]


def _required(field: str, why: str) -> Fault:
    return Fault("FieldValueRequired", field, f"Required value: {why}")


_CHECKS: dict[str, Callable[[Object], list[Fault]]] = {
    "Pod": _pod_faults,
    "Deployment": _workload_faults,
    "ReplicaSet": _workload_faults,
    "Job": _job_faults,
    "Service": _service_faults,
    "PodDisruptionBudget": _budget_faults,
    "MutatingWebhookConfiguration": _webhook_faults,
    "ValidatingWebhookConfiguration": _webhook_faults,
}


def _immutable(kind: Kind, value: Object, previous: Object) -> list[Fault]:
    if kind.kind == "Pod" and _fixed_pod_parts(value) != _fixed_pod_parts(previous):
        return [
            Fault(
                "FieldValueForbidden",
                "spec",
                "Forbidden: pod updates may not change fields other than `spec.containers[*].image`,"
                "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only "
                "additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set "
                "to 1 if it was previously negative)",
            )
        ]
    fixed = {
        "Deployment": ("spec", "selector"),
        "ReplicaSet": ("spec", "selector"),
        "Job": ("spec", "template"),
        "RoleBinding": ("roleRef",),
        "ClusterRoleBinding": ("roleRef",),
    }.get(kind.kind)
    if fixed and lookup(value, *fixed) != lookup(previous, *fixed):
        changed = lookup(value, *fixed)
        why = "cannot change roleRef" if fixed == ("roleRef",) else "field is immutable"
        return [invalid_field(".".join(fixed), changed, why)]
    frozen = kind.kind in ("ConfigMap", "Secret") and previous.get("immutable") is True
    if frozen and any(value.get(key) != previous.get(key) for key in ("data", "binaryData", "immutable")):
        return [Fault("FieldValueForbidden", "data", "Forbidden: field is immutable when `immutable` is set")]
    return []


def _fixed_pod_parts(value: Object) -> Object:
    spec = dict(mapping(value, "spec"))
    for key in (
        "activeDeadlineSeconds",
        "tolerations",
        "terminationGracePeriodSeconds",
        "nodeName",
        "ephemeralContainers",
    ):
        spec.pop(key, None)
    for key in ("containers", "initContainers"):
        spec[key] = [{**container, "image": ""} for container in items(spec, key)]
    return spec
