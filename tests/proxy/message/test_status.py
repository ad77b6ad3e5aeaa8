from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.message.failure import Failure, Processed, StreamCode
from proxy.message.status import STATUS_BYTES_MAX, failure_response, failure_status, status_response, warning


def test_a_status_is_what_kubectl_decodes():
    head, body = status_response(403, "Forbidden", 'agent "a" may not', details={"name": "p", "kind": "pods"})
    assert json.loads(body) == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": 'agent "a" may not',
        "reason": "Forbidden",
        "code": 403,
        "details": {"name": "p", "kind": "pods"},
    }
    assert (head.status, head.reason) == (403, b"Forbidden")
    assert head.header(b"content-type") == b"application/json"
    assert head.body_length == len(body)
    assert head.header(b"warning") == b'299 - "agent \\"a\\" may not"'
    assert head.header(b"x-content-type-options") == b"nosniff"
    head.encode()


def test_the_reason_of_a_code_is_known():
    _, body = status_response(503, "", "offline")
    assert json.loads(body)["reason"] == "ServiceUnavailable"
    head, body = status_response(431, "", "too many headers")
    assert json.loads(body)["reason"] == ""
    assert head.reason == b"Request Header Fields Too Large"
    assert status_response(599, "", "")[0].reason == b""


@given(
    st.text(max_size=3000),
    st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=900), max_size=3),
)
def test_a_status_is_always_small_and_its_head_always_valid(message, details):
    head, body = status_response(500, "InternalError", message, details=details)
    assert len(body) <= STATUS_BYTES_MAX
    assert json.loads(body)["code"] == 500
    assert head.body_length == len(body)
    head.encode()


def test_a_long_message_keeps_its_beginning():
    _, body = status_response(500, "InternalError", "because " * 500)
    message = json.loads(body)["message"]
    assert message.startswith("because because")
    assert message.endswith("...")
    assert len(body) > STATUS_BYTES_MAX - 100


def test_a_warning_is_one_quoted_line_of_ascii():
    assert warning('a "b" \\ c\r\nx: y ü') == b'299 - "a \\"b\\" \\\\ c??x: y ?"'


@pytest.mark.parametrize("code", StreamCode)
@pytest.mark.parametrize("processed", Processed)
@pytest.mark.parametrize(("method", "upgrade"), [(b"GET", False), (b"GET", True), (b"POST", False)])
def test_every_failure_has_an_honest_answer(code, processed, method, upgrade):
    failure = Failure(code, processed, "why")
    status = failure_status(failure, method, upgrade=upgrade)
    assert status.code >= 400
    assert status.reason
    assert "why" in status.message
    head, body = failure_response(failure, method, upgrade=upgrade)
    assert head.status == status.code
    assert json.loads(body)["reason"] == status.reason
    # client-go would repeat the request on its own, a POST too.
    assert head.header(b"retry-after") is None
    seen = {
        Processed.NO: "has not seen this request",
        Processed.MAYBE: "may ",
        Processed.YES: "has seen this request",
    }
    assert f"the API server {seen[processed]}" in status.message
    changing = upgrade or method == b"POST"
    if changing and processed is not Processed.NO:
        assert status.code not in {429, 503}
        assert "look before you send it again" in status.message
    else:
        assert "look before" not in status.message


@pytest.mark.parametrize(
    ("code", "processed", "method", "expected"),
    [
        (StreamCode.REFUSED, Processed.NO, b"POST", 503),
        (StreamCode.DETACH_EXPIRED, Processed.MAYBE, b"GET", 503),
        (StreamCode.DETACH_EXPIRED, Processed.MAYBE, b"POST", 504),
        (StreamCode.UPSTREAM_RESET, Processed.MAYBE, b"PATCH", 504),
        (StreamCode.UPSTREAM_RESET, Processed.MAYBE, b"HEAD", 503),
        (StreamCode.TIMEOUT, Processed.MAYBE, b"GET", 504),
        (StreamCode.UNAUTHENTICATED, Processed.NO, b"GET", 401),
        (StreamCode.FORBIDDEN, Processed.NO, b"POST", 403),
        (StreamCode.TOO_LARGE, Processed.NO, b"POST", 413),
        (StreamCode.PROTOCOL, Processed.NO, b"GET", 500),
        (StreamCode.PROTOCOL, Processed.MAYBE, b"GET", 502),
        (StreamCode.PROTOCOL, Processed.MAYBE, b"POST", 502),
        (StreamCode.PROTOCOL, Processed.YES, b"GET", 502),
    ],
)
def test_the_codes_that_users_meet(code, processed, method, expected):
    assert failure_status(Failure(code, processed, ""), method).code == expected
