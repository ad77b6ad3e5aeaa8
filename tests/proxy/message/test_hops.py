from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.message.hops import (
    HOP_BY_HOP,
    HOP_LINES,
    RESERVED_PREFIX,
    RESPONSE_NEVER,
    needs_rewriting,
    passing,
)

FIRST = b"HTTP/1.1 200 OK\r\n"
NAMES = sorted(HOP_BY_HOP | RESPONSE_NEVER | {RESERVED_PREFIX + b"x", b"location", b"close", b"date"})
# Names that begin or end as those do, and values that hold them, are nothing to them.
OTHERS = [b"x-connection", b"connections", b"x-hawse-", b"close-by", b"content-type", b"audit-id"]
VALUES = [b"", b"close", b"keep-alive", b"chunked", b"connection: close", b"set-cookie:", b"a, close"]
LINES = st.one_of(
    st.sampled_from(sorted(HOP_LINES)),
    st.builds(lambda name, value: name + b": " + value + b"\r\n", *map(st.sampled_from, (NAMES, VALUES))),
    st.builds(lambda name, value: name + b": " + value + b"\r\n", *map(st.sampled_from, (OTHERS, VALUES))),
)


@given(st.lists(LINES, max_size=6))
def test_an_answer_passes_without_the_usual_words_or_not_at_all(lines: list[bytes]) -> None:
    left = [line for line in lines if line not in HOP_LINES]
    dealt_with = any(needs_rewriting(line.partition(b":")[0]) for line in left)
    expected = None if dealt_with else b"".join((FIRST, *left, b"\r\n"))
    assert passing(b"".join((FIRST, *lines, b"\r\n"))) == expected


def test_what_has_nothing_to_lose_stays_the_same_object() -> None:
    head = FIRST + b"content-type: application/json\r\n\r\n"
    assert passing(head) is head
