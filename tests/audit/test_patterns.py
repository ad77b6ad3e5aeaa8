from __future__ import annotations

import re

import pytest

from audit.patterns import PATTERN_CHARACTERS_MAX, PatternError, compile_pattern


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("hunter2(", "not a regular expression in RE2's syntax: missing )"),
        ("x*", "empty text"),
        ("^$", "empty text"),
        ("(?<=hunter2)x", "invalid perl operator; it has no lookahead, lookbehind"),
        ("(?!hunter2)x", "invalid perl operator; it has no lookahead, lookbehind"),
        (r"(hunter)\1", "invalid escape sequence; it has no backreference"),
        ("hunter2++", "bad repetition operator; it has no possessive repeat"),
        ("hunter2{1001}", "invalid repetition size; it repeats at most 1000 times"),
        ("(?P<hunter 2>x)", "invalid named capture group"),
        (r"(?:hunter2|\pL{112})", "needs more than 2 MiB: repeat less"),
        ("hunter2{,3}", "has a repeat {,n}, which is plain text to RE2: write {0,n}"),
        ("hunter2{,}", "plain text to RE2"),
        ("h" * (PATTERN_CHARACTERS_MAX + 1), "has 1001 characters, more than 1000"),
        ("hunter2\udcff", "is not in UTF-8"),
    ],
)
def test_a_pattern_that_cannot_mask_is_refused_and_not_repeated(
    pattern: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PatternError, match=re.escape(message)) as caught:
        compile_pattern(pattern)
    assert pattern not in str(caught.value)
    assert "hunter" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "pattern",
    [r"a\{,3}", r"a{0,3}b", "a" * PATTERN_CHARACTERS_MAX, r"(?:hunter2|\pL{111})", r"[\pL\pN]{0,64}x"],
)
def test_what_is_just_within_the_bounds_is_taken(pattern: str) -> None:
    compile_pattern(pattern)


@pytest.mark.parametrize("pattern", ["^b$", r"^(?:a|b)$\nc"])
def test_anchors_stand_for_the_ends_of_a_line(pattern: str) -> None:
    assert len(list(compile_pattern(pattern).finditer("a\nb\nc"))) == 1
