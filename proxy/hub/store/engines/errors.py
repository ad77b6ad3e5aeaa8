"""The errors of the store, each with its status and code in the admin API.

Here, below the store, because the engines raise some of them.
"""

from __future__ import annotations

# As in the middle of a pg_restore, and in a database from which a row was deleted by hand.
LACKS_ROW = "the store lacks a row that it must have: finish the restore of its backup, or restore one"


class StoreError(Exception):
    """A refused change; the message is for the operator who requested it."""

    status = 500
    code = "failed"
    """The error code in the admin API's answer."""


class NotFoundError(StoreError):
    """No such team, agent, cluster, key or token."""

    status, code = 404, "not_found"


class ForbiddenError(StoreError):
    """The caller's role may ask for the change, and this caller may not make it."""

    status, code = 403, "forbidden"


class ConflictError(StoreError):
    """The change conflicts with the present state."""

    status, code = 409, "conflict"


class InvalidError(StoreError):
    """A name, label or address that must not be stored."""

    status, code = 422, "invalid"


class StoreUnavailableError(StoreError):
    """The database cannot be read or written (disk full, damaged, held by another process)."""

    status, code = 503, "store_unavailable"
