"""Whether a call that failed at a relay is sent again, where, and under which token. Pure.

A request may be sent again only if nothing of it can have reached the API server (`processed` is NO), its
answer has not begun, and its whole body is kept. The one exception is a read that was taken back from a
tunnel in doubt: another relay may carry it out as well.
"""

from __future__ import annotations

import enum

import attrs

from proxy.hub.calls.outcome import Outcome
from proxy.message.failure import Processed, StreamCode

# The first attempt, one under a fresh token, and two at other relays: the second one may go as well.
ATTEMPTS_MAX = 4
# After these, another relay of the cluster may take the request.
_ELSEWHERE = frozenset(
    {
        StreamCode.REFUSED,
        StreamCode.DRAINING,
        StreamCode.DIAL_FAILED,
        StreamCode.DETACH_EXPIRED,
        StreamCode.OVERLOADED,
    }
)
# After these, the same relay may too, if there is no other: it may have been full for a moment.
_AGAIN = frozenset({StreamCode.REFUSED, StreamCode.DRAINING})


class Where(enum.Enum):
    """The relay of the next attempt."""

    SAME = "the same one"
    OTHER = "another one; without one there is no attempt"
    ANY = "another one, or the same where there is no other"
    SUBSTITUTE = "the one that stands in for it while its tunnel is in doubt"


@attrs.frozen
class Attempt:
    """An attempt that follows another one."""

    where: Where
    renew: bool = False
    """It needs a fresh token."""
    renewed: bool = False
    """It, or one before it at relays that believe the hub, is under a fresh token."""


@attrs.frozen
class Tried:
    """The facts about a call when an attempt has an outcome."""

    attempts: int = 1
    last: Attempt = Attempt(Where.SAME)
    whole: bool = True
    """The request can be sent again."""
    ended: bool = False
    """The call must not go on."""
    left: bool = False
    """The last attempt was taken back, because its tunnel is in doubt."""


def next_attempt(outcome: Outcome, tried: Tried) -> Attempt | None:
    """Return the next attempt; None if this outcome is the call's."""
    failure, last = outcome.failure, tried.last
    if failure is None or outcome.status or not tried.whole or tried.attempts >= ATTEMPTS_MAX:
        return None
    if tried.left and outcome.unanswered and not tried.ended:
        return Attempt(Where.SUBSTITUTE, last.renew, last.renewed)
    if failure.processed is not Processed.NO:
        return None
    code = failure.code
    if code is StreamCode.UNAUTHENTICATED:
        # A relay that refuses a fresh token refuses every token, for instance by a wrong clock. A sibling
        # may not.
        return Attempt(Where.OTHER) if last.renewed else Attempt(Where.SAME, renew=True, renewed=True)
    if code not in _ELSEWHERE:
        return None
    return Attempt(Where.ANY if code in _AGAIN else Where.OTHER, renewed=last.renewed)
