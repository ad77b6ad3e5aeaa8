"""What keeps the trail from being used."""

from __future__ import annotations


class AuditUnavailable(Exception):
    """The trail cannot be written (or read) now; says why."""


class AnotherTrail(AuditUnavailable):
    """The file is not the trail that was written until now."""


class NoTrail(AuditUnavailable):
    """There is no trail where one was looked for."""


class NoSuchCall(Exception):
    """The trail has no call of this id or number, or more than one; says what it has."""
