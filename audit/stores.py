"""The interface of a store of events: audit.store is for a file, and audit.postgres.store for PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

from audit.record import Event
from audit.shares import Agent
from audit.store import TrailMark


class TrailStore(Protocol):
    """A store; synchronous, and for one thread at a time."""

    def append(self, batch: Sequence[Event], *, boot: str = "") -> dict[Agent, int]:
        """Write the events in one transaction, and return how many bytes each agent has added.

        Raises AuditUnavailable if none is written, CommitUnknown and ContentRefused.
        """

    def append_once(self, batch: Sequence[Event]) -> None:
        """Write those of the events that the trail does not have yet."""

    def close_unknown(
        self, boot: str, now: datetime, *, is_running: Callable[[str], bool] | None = None
    ) -> int:
        """End the open calls of other boots that no longer run as `unknown`."""


class OwnTrail(TrailStore, Protocol):
    """A store that continues one trail."""

    @property
    def mark(self) -> TrailMark:
        """The trail's identity and progress; callable from any thread."""

    def expect(self, mark: TrailMark) -> None:
        """Accept the trail with this mark, on an operator's word; callable from any thread."""

    def close(self) -> None:
        """Close the database; the next use opens it again."""
