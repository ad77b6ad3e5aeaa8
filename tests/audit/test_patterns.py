from __future__ import annotations

import re

import pytest

from audit.patterns import PatternError, compile_pattern


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("hunter2(", "not a regular expression: missing )"), ("x*", "empty text"), ("^$", "empty text")],
)
def test_a_pattern_that_cannot_mask_is_refused_and_not_repeated(pattern: str, message: str) -> None:
    with pytest.raises(PatternError, match=re.escape(message)) as caught:
        compile_pattern(pattern)
    assert pattern not in str(caught.value)


def test_anchors_stand_for_the_ends_of_a_line() -> None:
    assert compile_pattern("^b$").search("a\nb\nc") is not None
