"""The headers by which a relay marks an answer as its own, and their readers at the hub. Pure."""

from __future__ import annotations

import re

from proxy.message.failure import Failure, Processed, StreamCode
from proxy.message.head import ResponseHead

# Marks the relay's own failures in direct mode, to tell them from the API server's answers.
FAILURE_HEADER = b"hawse-relay-failure"
# The rule by which the relay itself denied a request, in both modes.
DECISION_HEADER = b"hawse-relay-decision"
_FAILURE_REASON_BYTES_MAX = 200


def failure_header(failure: Failure) -> tuple[bytes, bytes]:
    """Return the header that marks an answer as a failure of the relay itself, in direct mode."""
    reason = re.sub(r"[^\x20-\x7e]", "?", failure.reason)[:_FAILURE_REASON_BYTES_MAX].strip()
    return FAILURE_HEADER, f"{int(failure.code)};{int(failure.processed)};{reason}".encode("ascii")


def failure_of(head: ResponseHead) -> Failure | None:
    """Return the failure that a relay in direct mode marked its answer with, or None.

    An unreadable mark is still the relay's, and leaves open whether the request was processed.
    """
    value = head.header(FAILURE_HEADER)
    if value is None:
        return None
    match = re.fullmatch(rb"([0-9]{1,5});([0-2]);([\x20-\x7e]*)", value)
    if match is None:
        return Failure(StreamCode.INTERNAL, Processed.MAYBE, "the relay's refusal cannot be read")
    try:
        code = StreamCode(int(match[1]))
    except ValueError:
        code = StreamCode.INTERNAL
    return Failure(code, Processed(int(match[2])), match[3].decode("ascii"))


def guardrail_of(head: ResponseHead) -> str:
    """Return the rule by which the relay itself denied a request; empty if it did not."""
    # Nearly no answer has it, so the headers are not parsed.
    if DECISION_HEADER not in head.encode():
        return ""
    value = head.header(DECISION_HEADER)
    if value is None:
        return ""
    match = re.fullmatch(rb"guardrails ([a-z0-9/-]{1,200})", value)
    return match[1].decode("ascii") if match is not None else "unreadable"
