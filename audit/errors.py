"""Errors that prevent the use of the trail."""

from __future__ import annotations

from collections.abc import Mapping


class AuditUnavailable(Exception):
    """The trail cannot be written (or read) now; the message says why."""


class AnotherTrail(AuditUnavailable):
    """The file is not the trail that this hub has been writing."""


class NoTrail(AuditUnavailable):
    """There is no trail at the expected path."""


class CommitUnknown(AuditUnavailable):
    """The batch may be written or not. The store keeps it, and writes it before any other batch."""


class ContentRefused(AuditUnavailable):
    """The batch is written, except events that the database refuses for their content."""

    def __init__(self, refused: Mapping[str, str], stored: Mapping[tuple[str, str], int]) -> None:
        super().__init__("; ".join(f"event {eid}: {reason}" for eid, reason in refused.items()))
        self.refused = refused
        """The reason for each event's id."""
        self.stored = stored
        """What `append` returns."""


class NoSuchCall(Exception):
    """The trail has no call with this id or number, or several; the message says what it has."""
