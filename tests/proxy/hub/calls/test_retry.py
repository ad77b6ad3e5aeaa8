from __future__ import annotations

import itertools

import pytest

from proxy.hub.calls.outcome import CloseReason, Outcome
from proxy.hub.calls.retry import ATTEMPTS_MAX, Attempt, Tried, Where, next_attempt
from proxy.message.failure import Failure, Processed, StreamCode


def failed(
    code: StreamCode,
    processed: Processed = Processed.NO,
    status: int = 0,
    reason: CloseReason = CloseReason.UPSTREAM_FAILED,
) -> Outcome:
    return Outcome(status, 0, 0, reason, Failure(code, processed, "why"), upgraded=False)


FIRST = Attempt(Where.SAME)
FRESH = Attempt(Where.SAME, renew=True, renewed=True)
# What follows, by what an attempt was refused with: after the first one, and after one under a fresh token.
TABLE: dict[StreamCode, tuple[Attempt | None, Attempt | None]] = dict.fromkeys(StreamCode, (None, None))
TABLE |= {
    StreamCode.UNAUTHENTICATED: (FRESH, Attempt(Where.OTHER)),
    StreamCode.REFUSED: (Attempt(Where.ANY), Attempt(Where.ANY, renewed=True)),
    StreamCode.DRAINING: (Attempt(Where.ANY), Attempt(Where.ANY, renewed=True)),
    StreamCode.DIAL_FAILED: (Attempt(Where.OTHER), Attempt(Where.OTHER, renewed=True)),
    StreamCode.DETACH_EXPIRED: (Attempt(Where.OTHER), Attempt(Where.OTHER, renewed=True)),
    StreamCode.OVERLOADED: (Attempt(Where.OTHER), Attempt(Where.OTHER, renewed=True)),
}


@pytest.mark.parametrize("code", StreamCode)
def test_what_follows_a_refusal(code: StreamCode) -> None:
    for last, expected in zip((FIRST, FRESH), TABLE[code], strict=True):
        assert next_attempt(failed(code), Tried(last=last)) == expected


@pytest.mark.parametrize("code", StreamCode)
def test_what_may_have_been_seen_is_answered_or_is_not_whole_is_not_sent_again(code: StreamCode) -> None:
    assert next_attempt(failed(code, Processed.MAYBE), Tried()) is None
    assert next_attempt(failed(code, Processed.YES), Tried()) is None
    assert next_attempt(failed(code, status=200), Tried()) is None
    assert next_attempt(failed(code), Tried(whole=False)) is None
    assert next_attempt(failed(code), Tried(ATTEMPTS_MAX)) is None


def test_what_has_not_failed_is_not_sent_again() -> None:
    assert next_attempt(Outcome(200, 0, 2, CloseReason.COMPLETE, None, upgraded=False), Tried()) is None


def test_a_read_that_was_taken_back_goes_to_a_substitute_under_the_same_token() -> None:
    taken_back = failed(StreamCode.CANCEL, Processed.MAYBE)
    assert next_attempt(taken_back, Tried(left=True)) == Attempt(Where.SUBSTITUTE)
    assert next_attempt(taken_back, Tried(last=FRESH, left=True)) == Attempt(Where.SUBSTITUTE, True, True)
    assert next_attempt(taken_back, Tried(left=False)) is None
    assert next_attempt(taken_back, Tried(left=True, ended=True)) is None
    assert next_attempt(taken_back, Tried(left=True, whole=False)) is None
    assert next_attempt(taken_back, Tried(ATTEMPTS_MAX, left=True)) is None
    gone = failed(StreamCode.CANCEL, Processed.MAYBE, reason=CloseReason.CLIENT_GONE)
    assert next_attempt(gone, Tried(left=True)) is None


def test_no_history_of_refusals_takes_more_attempts_or_two_fresh_tokens_in_a_row() -> None:
    for codes in itertools.product(TABLE, repeat=ATTEMPTS_MAX):
        attempt, attempts = FIRST, 1
        for code in codes:
            following = next_attempt(failed(code), Tried(attempts, attempt))
            if following is None:
                break
            assert not (attempt.renew and following.renew)
            attempt, attempts = following, attempts + 1
        assert attempts <= ATTEMPTS_MAX
