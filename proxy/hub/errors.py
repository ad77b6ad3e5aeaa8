"""Why the hub refuses a change: each kind is one answer of the admin API."""

from __future__ import annotations


class StoreError(Exception):
    """A change that is refused; the message is for the operator who asked for it."""


class NotFoundError(StoreError):
    """No such team, agent, cluster, key or token."""


class ConflictError(StoreError):
    """The change collides with what is there."""


class InvalidError(StoreError):
    """A name, label or address that must not be stored."""


class StoreUnavailableError(StoreError):
    """The database cannot be read or written (disk full, damaged, held by another process)."""
