"""Why the hub refuses a change: each kind is one answer of the admin API."""

from __future__ import annotations


class StoreError(Exception):
    """A change that is refused; the message is for the operator who asked for it."""

    status = 500
    code = "failed"
    """As which the admin API answers it."""


class NotFoundError(StoreError):
    """No such team, agent, cluster, key or token."""

    status, code = 404, "not_found"


class ConflictError(StoreError):
    """The change collides with what is there."""

    status, code = 409, "conflict"


class InvalidError(StoreError):
    """A name, label or address that must not be stored."""

    status, code = 422, "invalid"


class StoreUnavailableError(StoreError):
    """The database cannot be read or written (disk full, damaged, held by another process)."""

    status, code = 503, "store_unavailable"
