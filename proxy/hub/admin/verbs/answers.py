"""The answers of the admin API's actions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TypeVar

import attrs

from proxy.hub.store.entities import Cluster
from proxy.hub.store.names import not_found

Payload = Mapping[str, object]
T = TypeVar("T")


@attrs.frozen
class Done:
    """The result of an action: a body for the operator, and a note without secrets for the audit trail."""

    body: Payload = attrs.field(repr=False)
    created: bool = False
    note: str = ""
    cluster: Cluster | None = None


def known(by_name: Mapping[str, T], kind: str, name: str) -> T:
    """Return the entity of that name; raises NotFoundError."""
    found = by_name.get(name)
    if found is None:
        raise not_found(kind, name, by_name)
    return found


def time_text(epoch_s: float | None) -> str | None:
    """Format a time for the API."""
    if epoch_s is None:
        return None
    return datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
