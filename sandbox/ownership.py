"""Owners and readiness of pods, for the controllers of workloads."""

from __future__ import annotations

from sandbox.kinds import Kind
from sandbox.objects import Object, items, text


def owner_uid(value: Object) -> str:
    """Return the uid of an object's controller, or the empty string."""
    for owner in items(value, "metadata", "ownerReferences"):
        if owner.get("controller") is True:
            return text(owner, "uid")
    return ""


def reference(kind: Kind, owner: Object) -> Object:
    """Return the reference to an object's controller."""
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "name": text(owner, "metadata", "name"),
        "uid": text(owner, "metadata", "uid"),
        "controller": True,
        "blockOwnerDeletion": True,
    }


def is_ready(pod: Object) -> bool:
    """True if a pod's containers run."""
    return any(
        condition.get("type") == "Ready" and condition.get("status") == "True"
        for condition in items(pod, "status", "conditions")
    )
