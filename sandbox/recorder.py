"""Events: the controllers' reports about objects, for `kubectl describe` and `kubectl events`."""

from __future__ import annotations

from typing import Literal

from sandbox.kinds import EVENTS, Kind
from sandbox.objects import Object, child, clone, integer, now, text
from sandbox.storage import Store
from sandbox.writing import suffix

# A real cluster deletes events after an hour; this one keeps at most this many.
EVENTS_MAX = 1000


class EventRecorder:
    """Writes events; a repeated event increments its count."""

    def __init__(self, store: Store) -> None:
        self._events = store.collection(EVENTS.group, EVENTS.resource)
        self._names: dict[tuple[str, ...], tuple[str, str]] = {}

    def record(
        self,
        kind: Kind,
        about: Object,
        reason: str,
        message: str,
        *,
        component: str,
        field_path: str = "",
        type_: Literal["Normal", "Warning"] = "Normal",
    ) -> None:
        """Report something about an object."""
        name, namespace = text(about, "metadata", "name"), text(about, "metadata", "namespace") or "default"
        key = (text(about, "metadata", "uid"), field_path, reason, message)
        known = self._names.get(key)
        present = self._events.get(*known) if known else None
        if present is not None:
            value = clone(present.value)
            value["count"] = integer(value, "count") + 1
            value["lastTimestamp"] = now()
            self._events.put(value)
            return
        event_name = f"{name}.{suffix()}{suffix()}"
        self._names[key] = (namespace, event_name)
        self._forget_oldest()
        reference: Object = {
            "kind": kind.kind,
            "namespace": namespace,
            "name": name,
            "uid": text(about, "metadata", "uid"),
            "apiVersion": kind.api_version,
            "resourceVersion": text(about, "metadata", "resourceVersion"),
        }
        if field_path:
            reference["fieldPath"] = field_path
        value = {
            "metadata": {"name": event_name, "namespace": namespace, "creationTimestamp": now()},
            "involvedObject": reference,
            "reason": reason,
            "message": message,
            "source": {"component": component},
            "firstTimestamp": now(),
            "lastTimestamp": now(),
            "count": 1,
            "type": type_,
            "eventTime": None,
            "reportingComponent": component,
            "reportingInstance": "",
        }
        child(value, "metadata")["uid"] = f"{suffix()}-{suffix()}-{suffix()}"
        self._events.put(value)

    def _forget_oldest(self) -> None:
        while len(self._names) > EVENTS_MAX:
            oldest = next(iter(self._names))
            self._events.remove(*self._names.pop(oldest))
