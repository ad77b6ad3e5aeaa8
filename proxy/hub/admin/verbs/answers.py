"""The answers of the admin API's actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol, TypeVar

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
    accepted: bool = False
    """Whether the work goes on after the answer, which is a 202 then."""
    tag: str = ""
    """What the ETag is made from, for a verb that declares one; "" for the body itself."""

    @property
    def status(self) -> int:
        """The HTTP status of the answer."""
        return 202 if self.accepted else 201 if self.created else 200


@attrs.frozen
class ServerEvent:
    """One server-sent event."""

    data: bytes
    """JSON on one line."""
    event: str = ""
    """Its type; "" for `message`."""
    id: str = ""
    """The cursor that a client sends as `Last-Event-ID`; "" leaves the client's as it is."""


class Gap(Exception):
    """A source has lost events, since the client took them too slowly. The text says what was lost."""


class Source(Protocol):
    """The events of one stream."""

    async def receive(self) -> Sequence[ServerEvent]:
        """Wait for the next events. Raises trio.EndOfChannel at the end, and Gap.

        It is not called again before the client can take more, so a source that reads from a store may go on
        where it stopped. One that is fed has a bounded buffer, and raises Gap when that is full.
        """
        ...

    async def aclose(self) -> None:
        """Release what the source holds."""
        ...


@attrs.frozen
class Followed:
    """The result of an action that streams server-sent events."""

    source: Source
    note: str = ""


class Chunks(Protocol):
    """The body of a download."""

    async def receive(self) -> bytes:
        """Make the next piece; b"" at the end."""
        ...

    async def aclose(self) -> None:
        """Release what the chunks hold."""
        ...


@attrs.frozen
class Download:
    """The result of an action whose body is made while it is sent."""

    chunks: Chunks
    media_type: str
    filename: str
    """Offered to a browser; ASCII, without quotes."""
    note: str = ""


Answer = Done | Followed | Download


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
