"""Whether a call that failed at a relay is sent again, where, and under which token. Pure.

A request may be sent again only while nothing of it can have reached the API server (`processed` is NO), its
answer has not begun, and its body is still here as a whole. A read that was taken back from a tunnel in doubt
is the one exception: another relay may carry it out as well.
"""

from __future__ import annotations

import enum

import attrs

from proxy.hub.calls.outcome import Outcome
from proxy.message.failure import Processed, StreamCode

# The first attempt, one under a fresh token, and two at other relays: the second one may go as well.
ATTEMPTS_MAX = 4
# Failures after which another relay of the cluster may accept the request.
_ELSEWHERE = frozenset(
    {
        StreamCode.REFUSED,
        StreamCode.DRAINING,
        StreamCode.DIAL_FAILED,
        StreamCode.DETACH_EXPIRED,
        StreamCode.OVERLOADED,
    }
)
# Failures after which the same relay may accept it if there is no other: a full or a restarted relay.
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
    """This attempt, or an earlier one, has a fresh token, and no relay has refused it since."""


@attrs.frozen
class Tried:
    """The attempts of a call so far, and its state after the last one."""

    attempts: int = 1
    last: Attempt = Attempt(Where.SAME)
    whole: bool = True
    """The request's body can be sent again."""
    ended: bool = False
    """The hub has ended the call."""
    left: bool = False
    """The last attempt was taken back, because its tunnel is in doubt."""


def next_attempt(outcome: Outcome, tried: Tried) -> Attempt | None:
    """Return the next attempt; None if this outcome is final."""
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
