"""Errors that prevent the use of the trail."""

from __future__ import annotations


class AuditUnavailable(Exception):
    """The trail cannot be written (or read) now; the message says why."""


class AnotherTrail(AuditUnavailable):
    """The file is not the trail that this hub has been writing."""


class NoTrail(AuditUnavailable):
    """There is no trail at the expected path."""


class NoSuchCall(Exception):
    """The trail has no call with this id or number, or several; the message says what it has."""
