"""How a call ended, and what it has transferred: for its record, for limits, and for another attempt."""

from __future__ import annotations

import enum

import attrs

from proxy.message.failure import Failure


class CloseReason(enum.Enum):
    """How a call ended, for its record."""

    COMPLETE = "complete"
    CLIENT_GONE = "client gone"
    CLIENT_ERROR = "client error"
    UPSTREAM_FAILED = "upstream failed"
    REVOKED = "revoked"
    """The agent, its credential, the grant or the policy no longer allows it."""
    DEADLINE = "deadline"
    """It reached its maximum age, or its maximum silence."""
    OVERLOADED = "overloaded"
    """Memory was short, and its agent's calls held the most."""
    KILLED = "killed"
    """By an operator."""
    HUB_FAILED = "hub failed"
    """By a bug of the hub."""


class Tally:
    """What a call has transferred so far."""

    __slots__ = ("bytes_in", "bytes_out", "held", "status", "upgraded")

    def __init__(self) -> None:
        self.status = 0
        """The answer's status once its head was passed on; 0 before."""
        self.bytes_in = 0
        """From the client: the request's body, then the bytes of an upgraded stream."""
        self.bytes_out = 0
        self.upgraded = False
        self.held = False
        """The call is paused."""


@attrs.frozen
class Outcome:
    """The outcome of an attempt.

    When it is `unanswered`, nothing was sent to the client. Its caller answers, or makes another attempt.
    Otherwise the answer is complete, or it was cut because of the `failure`.
    """

    status: int
    bytes_in: int
    bytes_out: int
    close_reason: CloseReason
    failure: Failure | None
    upgraded: bool

    @property
    def unanswered(self) -> bool:
        """Whether the client still waits for an answer."""
        return self.status == 0 and self.close_reason is not CloseReason.CLIENT_GONE


def failed(failure: Failure, reason: CloseReason, tally: Tally) -> Outcome:
    """Return the outcome of a call that ended early."""
    return Outcome(tally.status, tally.bytes_in, tally.bytes_out, reason, failure, tally.upgraded)
