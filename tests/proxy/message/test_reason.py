from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.message.reason import REASON_CHARACTERS_MAX, ReasonError, check_reason, read_reason


@given(st.lists(st.binary(max_size=900) | st.text(max_size=250).map(str.encode), max_size=2))
def test_a_reason_is_one_short_line_of_plain_text_or_refused(values: list[bytes]) -> None:
    try:
        reason = read_reason(values)
    except ReasonError:
        return
    assert reason.isprintable()
    assert len(reason) <= REASON_CHARACTERS_MAX
    assert check_reason(reason) == reason
    assert reason.encode() in b"".join(values)


@pytest.mark.parametrize("text", ["", "   ", "x" * 200, f" {'x' * 200} ", "Überlast an Knoten 3", "日本語"])
def test_what_is_taken(text: str) -> None:
    assert check_reason(text) == text.strip()


@pytest.mark.parametrize(
    "text", ["a\nb", "a\x1b[2J", "a\u202eb", "a\u2066b", "a\u200bb", "a\u2028b", "\ud800", "x" * 201]
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(ReasonError):
        check_reason(text)
