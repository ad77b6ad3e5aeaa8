"""The flags of a call: effects that deserve an approver's attention, from a closed list. Pure.

Flags are computed from the values that the call writes: the difference, or the body where there is none.
They are hints for a person. No decision depends on them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from auth.requestinfo import RequestInfo, decode_value, raw_values
from proxy.hub.approvals.plan.query import may_be_true
from proxy.hub.approvals.preview.bodies import Body
from proxy.hub.approvals.preview.mask import LAST_APPLIED
from proxy.hub.approvals.preview.values import Steps, Value, at

_RBAC: Final = "rbac.authorization.k8s.io"
_ADMISSION: Final = "admissionregistration.k8s.io"
# As Go's strconv reads it.
_ZERO: Final = re.compile(r"[+-]?0+")
_DELETIONS: Final = frozenset({"delete", "deletecollection"})


class Flag(StrEnum):
    """The closed list, in the order in which flags are shown."""

    NAMESPACE = "deletes a namespace and everything in it"
    DEFINITION = "deletes a definition of resources and all objects of that kind"
    RBAC = "changes who may do what (RBAC)"
    WEBHOOK = "changes a webhook that sees or changes what others write"
    ADMISSION_POLICY = "changes an admission policy"
    API_SERVICE = "diverts a part of the API to another server"
    PRIVILEGED = "runs privileged"
    HOST_NETWORK = "uses the host's network"
    HOST_PROCESSES = "uses the host's processes"
    HOST_PATH = "mounts a folder of the host"
    CAPABILITIES = "adds capabilities"
    SERVICE_ACCOUNT = "changes a service account"
    TOKEN = "issues a token of a service account"  # noqa: S105 - words for an approver
    TO_ZERO = "scales to 0"
    VOLUME = "changes a volume"
    VOLUME_DATA = "deletes a volume or a claim, and perhaps its data"
    FINALIZERS = "changes finalizers"
    FORCE = "takes fields over from other managers (force)"
    AT_ONCE = "deletes at once (grace period 0)"
    ORPHANS = "leaves dependants behind"


def flags_of(info: RequestInfo, written: Iterable[tuple[Steps, Value]], body: Body) -> tuple[Flag, ...]:
    """Return the flags of a call that writes these leaves. `body` has the options of a deletion."""
    found = set(_of_request(info))
    if info.verb in _DELETIONS:
        found |= _of_deletion(info, body)
    else:
        for steps, value in written:
            # The API server writes this one into each new pod that names none.
            if not (info.verb == "create" and steps[-1:] in _NAMES_OF_ACCOUNTS and value == "default"):
                found |= _of_leaf(tuple(map(str, steps)), value)
    return tuple(flag for flag in Flag if flag in found)


def eviction_flags(body: Body) -> tuple[Flag, ...]:
    """Return the flags of an eviction with this body."""
    at_once = _ZERO.fullmatch(_text(at(body.value, "deleteOptions", "gracePeriodSeconds")))
    return (Flag.AT_ONCE,) if at_once else ()


def pod_flags(written: Iterable[tuple[Steps, Value]]) -> tuple[Flag, ...]:
    """Return the flags of a pod that a call runs a command in, or connects to."""
    powers = {Flag.PRIVILEGED, Flag.HOST_NETWORK, Flag.HOST_PROCESSES, Flag.HOST_PATH, Flag.CAPABILITIES}
    found = {flag for steps, value in written for flag in _of_leaf(tuple(map(str, steps)), value)}
    return tuple(flag for flag in Flag if flag in found & powers)


def _of_request(info: RequestInfo) -> set[Flag]:
    group, resource, found = info.group, info.resource, set[Flag]()
    if not info.is_write:
        return found
    if info.verb == "patch" and may_be_true(info.query, "force"):
        found.add(Flag.FORCE)
    if group == _RBAC:
        found.add(Flag.RBAC)
    if group == _ADMISSION:
        found.add(Flag.WEBHOOK if "webhook" in resource else Flag.ADMISSION_POLICY)
    if group == "apiregistration.k8s.io":
        found.add(Flag.API_SERVICE)
    if group == "" and resource == "serviceaccounts":
        found.add(Flag.TOKEN if info.subresource == "token" else Flag.SERVICE_ACCOUNT)
    if group == "" and resource == "persistentvolumes":
        found.add(Flag.VOLUME)
    return found


def _of_deletion(info: RequestInfo, body: Body) -> set[Flag]:
    found = set()
    subject = info.group, info.resource
    if subject == ("", "namespaces"):
        found.add(Flag.NAMESPACE)
    if subject == ("apiextensions.k8s.io", "customresourcedefinitions"):
        found.add(Flag.DEFINITION)
    if subject in {("", "persistentvolumes"), ("", "persistentvolumeclaims")}:
        found.add(Flag.VOLUME_DATA)
    if _ZERO.fullmatch(deletion_option(info, body, "gracePeriodSeconds")):
        found.add(Flag.AT_ONCE)
    if orphans(info, body):
        found.add(Flag.ORPHANS)
    return found


def orphans(info: RequestInfo, body: Body) -> bool:
    """Whether a deletion leaves the object's dependants behind."""
    if deletion_option(info, body, "propagationPolicy") == "Orphan":
        return True
    if not body.size:
        return may_be_true(info.query, "orphanDependents")
    return at(body.value, "orphanDependents") is True


def deletion_option(info: RequestInfo, body: Body, name: str) -> str:
    """Return an option of a deletion as text; "" if it is not given, or cannot be read.

    The API server reads the options from a body if there is one, and otherwise from the query.
    """
    if not body.size:
        return query_option(info, name)
    return _text(at(body.value, name))


def _text(value: Value) -> str:
    return str(value) if isinstance(value, (str, int)) else ""


def query_option(info: RequestInfo, name: str) -> str:
    """Return the first readable value of a parameter; "" if there is none."""
    return next((text for text in map(decode_value, raw_values(info.query, name)) if text is not None), "")


def _of_leaf(steps: tuple[str, ...], value: Value) -> set[Flag]:
    """Return the flags of one written leaf."""
    if not steps or LAST_APPLIED in steps:
        return set()
    found, last = set(), steps[-1]
    if value is True:
        found |= _SWITCHES.get(last, set())
    if "hostPath" in steps:
        found.add(Flag.HOST_PATH)
    if "capabilities" in steps and "add" in steps and value != []:
        found.add(Flag.CAPABILITIES)
    if (last,) in _NAMES_OF_ACCOUNTS:
        found.add(Flag.SERVICE_ACCOUNT)
    if steps[-2:] == ("spec", "replicas") and value == 0 and not isinstance(value, bool):
        found.add(Flag.TO_ZERO)
    if "volumes" in steps or "volumeClaimTemplates" in steps:
        found.add(Flag.VOLUME)
    if steps[:2] == ("metadata", "finalizers"):
        found.add(Flag.FINALIZERS)
    return found


_NAMES_OF_ACCOUNTS: Final = frozenset({("serviceAccountName",), ("serviceAccount",)})
_SWITCHES: Final = {
    "privileged": {Flag.PRIVILEGED},
    "hostProcess": {Flag.PRIVILEGED},
    "hostNetwork": {Flag.HOST_NETWORK},
    "hostPID": {Flag.HOST_PROCESSES},
    "hostIPC": {Flag.HOST_PROCESSES},
}
