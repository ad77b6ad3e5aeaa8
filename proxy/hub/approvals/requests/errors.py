"""The errors of requests, each with its status and code in the admin API."""

from __future__ import annotations

from proxy.hub.approvals.request import Request, State
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


def refusal_of(request: Request, shown: str | None) -> NotOpenError | ShownDiffersError | TooLargeError:
    """Return why a transition is refused: of a pending request, or as `shown`, or else of an open one."""
    if request.state is not State.PENDING:
        return NotOpenError(f"request {request.id} {_became(request)}")
    if shown is not None and request.new.shown != shown:
        return ShownDiffersError(
            f"request {request.id} is not what you were shown: look at it again, and approve "
            "what it shows now"
        )
    return TooLargeError(
        f"request {request.id} cannot be approved: its difference is too large to be shown. Ask for the "
        "change in smaller parts"
    )


def _became(request: Request) -> str:
    match request.state:
        case State.APPROVED | State.DENIED:
            return f"was {request.state} by {request.decided_by}"
        case State.USING:
            return f"was approved by {request.decided_by}, and a call uses it"
        case State.USED:
            return f"was approved by {request.decided_by}, and used"
        case State.EXPIRED:
            return "has expired"
        case State.STALE:
            return "is stale, since the object changed"
        case State.CANCELLED | State.REVOKED:
            return f"was {request.state}: {request.because}" if request.because else f"was {request.state}"
        case State.PENDING:
            return "changed at this moment: try again"
