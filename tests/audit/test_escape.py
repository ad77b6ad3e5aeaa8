from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from audit.escape import escape


@given(st.text())
def test_escaped_text_is_printable_never_turns_and_can_be_told_apart(text: str) -> None:
    escaped = escape(text)
    assert escaped.isprintable()
    assert all(
        unicodedata.bidirectional(character) not in {"R", "AL", "RLO", "LRO", "RLI"} for character in escaped
    )
    assert escaped.count("\\") >= text.count("\\") * 2
    assert escape(escaped) == escaped or "\\" in escaped


def test_plain_text_of_other_languages_stays_readable() -> None:
    assert escape("Grüße 你好 a\\b") == "Grüße 你好 a\\\\b"
