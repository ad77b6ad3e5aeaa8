"""The errors of requests, each with its status and code in the admin API."""

from __future__ import annotations

from proxy.hub.store.engines.errors import ConflictError, StoreError


class NotOpenError(ConflictError):
    """The request is decided, used or ended, so this transition is refused."""

    code = "not_open"


class ShownDiffersError(ConflictError):
    """The request is not what the approver was shown."""

    code = "shown_differs"


class TooLargeError(ConflictError):
    """The difference is too large to be shown, so the request cannot be approved."""

    code = "too_large"


class TooManyRequestsError(StoreError):
    """The agent has too many requests, or one of its calls was denied too often by this rule."""

    status, code = 429, "too_many_requests"
