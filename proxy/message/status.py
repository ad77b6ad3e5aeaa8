"""Failures as Kubernetes Status objects, which kubectl displays best. Pure.

client-go decodes a Status by the Content-Type of the answer, not of the request. Discovery drops its message
but prints a `Warning` header, so each answer carries both. `Retry-After` is never sent: client-go would
repeat the request up to ten times, even a POST, before it shows an error. Content-Length is always sent,
since clients read a failed upgrade until its body ends.
"""

from __future__ import annotations

import http
import json
import re
from collections.abc import Mapping
from typing import assert_never

import attrs

from proxy.message.failure import Failure, Processed, StreamCode
from proxy.message.head import SAFE_METHODS, Headers, ResponseHead

# kubectl reads at most 1,024 bytes of a refused upgrade's body and drops text that it cannot parse.
STATUS_BYTES_MAX = 1000
# Answers other than refused upgrades may be longer: a denial has a text for people and details for programs.
DENIAL_BYTES_MAX = 4000

# The reasons of apimachinery's metav1.StatusReason for the codes used here.
_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    413: "RequestEntityTooLarge",
    415: "UnsupportedMediaType",
    429: "TooManyRequests",
    500: "InternalError",
    502: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}
# The code and the words for each failure.
_FAILURES = {
    StreamCode.CANCEL: (503, "the request was cancelled on its way"),
    StreamCode.INTERNAL: (500, "an internal error of the proxy"),
    StreamCode.REFUSED: (503, "the relay takes no more requests"),
    StreamCode.TIMEOUT: (504, "the cluster did not answer in time"),
    StreamCode.DIAL_FAILED: (503, "the relay cannot reach its API server"),
    StreamCode.UPSTREAM_RESET: (503, "the connection to the API server broke"),
    StreamCode.UNAUTHENTICATED: (401, "the relay does not accept the identity"),
    StreamCode.FORBIDDEN: (403, "the relay forbids it"),
    StreamCode.FLOW_CONTROL: (500, "the tunnel's flow control was violated"),
    StreamCode.STREAM_CLOSED: (500, "the stream was closed too early"),
    StreamCode.TOO_LARGE: (413, "the request is too large"),
    StreamCode.DRAINING: (503, "the relay is going away"),
    StreamCode.DEADLINE: (504, "the time allowed for the request is over"),
    StreamCode.REVOKED: (403, "the access was revoked"),
    StreamCode.DETACH_EXPIRED: (503, "the tunnel to the cluster was lost"),
    StreamCode.OVERLOADED: (503, "the tunnel is out of memory for this request"),
    StreamCode.PROTOCOL: (502, "the answer could not be understood"),
}
_REQUEST_NOT_UNDERSTOOD = (500, "the request could not be understood")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


@attrs.frozen
class Status:
    """A failure's HTTP code, its Kubernetes reason, and its message."""

    code: int
    reason: str
    message: str


def status_response(
    code: int,
    reason: str,
    message: str,
    *,
    details: Mapping[str, object] | None = None,
    headers: Headers = (),
    bytes_max: int = STATUS_BYTES_MAX,
) -> tuple[ResponseHead, bytes]:
    """Return the head and the body of a Status answer of at most `bytes_max` bytes.

    To fit, `details` are dropped first, then the message is cut. An empty `reason` means the usual one of the
    code.
    """
    body = _encode(code, reason or _REASONS.get(code, ""), message, details)
    if len(body) > bytes_max:
        body = _encode(code, reason or _REASONS.get(code, ""), message, None)
    while len(body) > bytes_max:
        # A character takes at most twelve bytes of JSON, so no pass cuts much more than the excess. Each pass
        # removes more characters than it adds, so the loop ends.
        message = message[: -max(1, (len(body) - bytes_max) // 12 + 4)] + "..."
        body = _encode(code, reason or _REASONS.get(code, ""), message, None)
    head = ResponseHead.of(
        code,
        _phrase(code),
        (
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"warning", warning(message)),
            (b"x-content-type-options", b"nosniff"),
            (b"cache-control", b"no-store"),
            *headers,
        ),
    )
    return head, body


def failure_response(
    failure: Failure, method: bytes, *, upgrade: bool = False, headers: Headers = ()
) -> tuple[ResponseHead, bytes]:
    """Return the Status answer for an exchange that failed before its answer began."""
    status = failure_status(failure, method, upgrade=upgrade)
    return status_response(status.code, status.reason, status.message, headers=headers)


def failure_status(failure: Failure, method: bytes, *, upgrade: bool = False) -> Status:
    """Map a failure to the Status for the client.

    If the request may have been processed and is not safe (an upgrade never is), the code must not invite a
    retry.
    """
    status = _plain(failure)
    safe = method in SAFE_METHODS and not upgrade
    message = with_processed(status.message, failure.processed, safe=safe)
    if failure.processed is Processed.NO or safe:
        return Status(status.code, status.reason, message)
    # A specific refusal keeps its code; codes that invite a retry become a timeout.
    if status.code in {503, 429}:
        return Status(504, "Timeout", message)
    return Status(status.code, status.reason, message)


def with_processed(message: str, processed: Processed, *, safe: bool = False) -> str:
    """A failure's message, and whether the API server saw the request; `safe` requests change nothing."""
    match processed:
        case Processed.NO:
            return f"{message}; the API server has not seen this request"
        case Processed.MAYBE:
            doubt = "may have seen" if safe else "may still be processing"
        case Processed.YES:
            doubt = "has seen"
        case _:
            assert_never(processed)
    advice = "" if safe else ", look before you send it again"
    return f"{message}; the API server {doubt} this request{advice}"


def _plain(failure: Failure) -> Status:
    """The table's row, and the reason that the failing side gave."""
    code, what = _FAILURES[failure.code]
    if failure.code is StreamCode.PROTOCOL and failure.processed is Processed.NO:
        code, what = _REQUEST_NOT_UNDERSTOOD
    return Status(code, _REASONS[code], f"{what}: {failure.reason}" if failure.reason else what)


def warning(message: str) -> bytes:
    """Return a message as the value of a Warning header: 299, a quoted string of printable ASCII."""
    text = _UNPRINTABLE.sub("?", message).replace("\\", "\\\\").replace('"', '\\"')
    return f'299 - "{text}"'.encode("ascii")


def _encode(code: int, reason: str, message: str, details: Mapping[str, object] | None) -> bytes:
    status: dict[str, object] = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }
    if details is not None:
        status["details"] = dict(details)
    return json.dumps(status, separators=(",", ":")).encode("ascii")


def _phrase(code: int) -> bytes:
    try:
        return http.HTTPStatus(code).phrase.encode("ascii")
    except ValueError:
        return b""
