from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.message.failure import Failure, Processed, StreamCode
from proxy.message.head import ResponseHead
from proxy.message.relay_marks import failure_header, failure_of, guardrail_of
from tests.proxy.message.answers import answer


@given(st.sampled_from(StreamCode), st.sampled_from(Processed), st.text(max_size=300))
def test_a_refusal_survives_its_header(code, processed, reason):
    name, value = failure_header(Failure(code, processed, reason))
    failure = failure_of(ResponseHead.decode(ResponseHead.of(503, b"", ((name, value),)).encode()))
    assert failure is not None
    assert (failure.code, failure.processed) == (code, processed)
    assert failure.reason.isascii()


def test_a_refusals_reason_is_cut_and_holds_no_control() -> None:
    _, value = failure_header(Failure(StreamCode.INTERNAL, Processed.NO, "a\r\n\x00\x7f\u00e4" + "x" * 300))
    failure = failure_of(answer((b"hawse-relay-failure", value)))
    assert failure == Failure(StreamCode.INTERNAL, Processed.NO, "a?????" + "x" * 194)


def test_the_rule_of_a_guardrail_is_read() -> None:
    def rule(*headers: tuple[bytes, bytes]) -> str:
        return guardrail_of(ResponseHead.decode(answer(*headers, status=403).encode()))

    assert rule((b"hawse-relay-decision", b"guardrails no-exec/2")) == "no-exec/2"
    assert rule((b"hawse-relay-decision", b"guardrails " + b"r" * 200)) == "r" * 200
    for unreadable in (
        *(b"guardrails", b"guardrails  a", b"guardrails a b", b"hub a", b"a guardrails a"),
        *(b"guardrails A", b"guardrails " + b"r" * 201, b"guardrails a_b"),
    ):
        assert rule((b"hawse-relay-decision", unreadable)) == "unreadable"
    assert rule() == rule((b"x", b"hawse-relay-decision: guardrails a")) == ""


def test_an_unreadable_mark_promises_nothing():
    for value in (b"", b"x", b"1;9;x", b"999;0;x", b"-1;0;x"):
        failure = failure_of(answer((b"hawse-relay-failure", value)))
        assert failure is not None
        assert failure.code is StreamCode.INTERNAL
    assert failure_of(answer()) is None
