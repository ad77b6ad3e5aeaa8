"""Why a call cannot wait for an approval."""

from __future__ import annotations


class CannotAskError(Exception):
    """The call is answered with this status and reason, and no request is opened."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        """400, 403, 408, 413, 415 or 503."""
        self.reason = reason
        """For the agent: one line, with the next step. It holds no part of the body."""
