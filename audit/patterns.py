"""Checks the operator's mask patterns before a hub runs with them.

This is separate from the masks, so that reading a hub's configuration does not load the trail's modules. The
engine is RE2 (the extra `mask`), loaded for the first pattern. Clients choose the text that is searched. On a
crafted text Python's engine takes minutes, with the interpreter lock held. RE2 takes time linear in the text
for each match, and releases the lock.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Protocol

# Longer than any pattern that people read.
PATTERN_CHARACTERS_MAX = 1000
# Memory of one pattern, with its cache of states. Enough for `[\pL\pN]{0,64}`; a hundred of them take 200
# MiB.
PATTERN_MEMORY_BYTES_MAX = 2 * 1024 * 1024

# Python reads this as {0,n} and RE2 as plain text: such a pattern would silently mask nothing.
_OPEN_REPEAT = re.compile(r"(?:^|[^\\])(?:\\\\)*\{,\d*\}")
# Syntax of Python's engine that RE2 lacks, by RE2's error text.
_UNKNOWN = {
    "invalid perl operator": "it has no lookahead, lookbehind, atomic group, comment or flag x",
    "bad repetition operator": "it has no possessive repeat",
    "invalid escape sequence": r"it has no backreference, \Z or \u",
    "invalid repetition size": "it repeats at most 1000 times, those within one another multiplied",
}


class PatternError(ValueError):
    """A pattern that cannot mask; the message never repeats it."""


class Match(Protocol):
    """A match of a pattern."""

    def span(self) -> tuple[int, int]: ...


class Pattern(Protocol):
    """A compiled pattern of either engine."""

    def finditer(self, text: str, /) -> Iterator[Match]: ...


def compile_pattern(pattern: str) -> Pattern:
    """Compile a regular expression for the masks. Raises PatternError; ImportError without RE2."""
    import re2

    if len(pattern) > PATTERN_CHARACTERS_MAX:
        raise PatternError(f"has {len(pattern)} characters, more than {PATTERN_CHARACTERS_MAX}")
    if _OPEN_REPEAT.search(pattern) is not None:
        raise PatternError("has a repeat {,n}, which is plain text to RE2: write {0,n}")
    options = re2.Options()
    options.max_mem = PATTERN_MEMORY_BYTES_MAX
    # RE2 would write the pattern to stderr.
    options.log_errors = False
    # Groups are never used, and locating them costs more than the match.
    options.never_capture = True
    try:
        compiled = re2.compile(f"(?m){pattern}", options)
    except UnicodeEncodeError:
        raise PatternError("is not in UTF-8") from None
    except re2.error as error:
        raise PatternError(_reason_of(error)) from None
    if compiled.search("") is not None:
        raise PatternError("matches the empty text, so it would mask everything")
    found: Pattern = compiled
    return found


def _reason_of(error: Exception) -> str:
    """RE2's error without the part of the pattern that it quotes."""
    reason = error.args[0].decode("utf-8", "replace").partition(":")[0]
    if reason.startswith("pattern too large"):
        return f"needs more than {PATTERN_MEMORY_BYTES_MAX // 1024**2} MiB: repeat less"
    hint = f"; {_UNKNOWN[reason]}" if reason in _UNKNOWN else ""
    return f"is not a regular expression in RE2's syntax: {reason}{hint}"
