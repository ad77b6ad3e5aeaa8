r"""The operator's patterns of what the trail must not show, checked before a hub runs with them.

Apart from the masks, so that reading a hub's configuration loads nothing of the trail. The engine is RE2 (the
extra `mask`), loaded by the first pattern. Anybody can make up the text that is searched, and on one made for
it Python's own takes minutes, with the interpreter's lock held. RE2's time grows with the text's length, by
itself for each match, and other threads run meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Protocol

# Longer than any pattern that a person reads.
PATTERN_CHARACTERS_MAX = 1000
# Of one pattern, with what it remembers of texts. Enough for `[\pL\pN]{0,64}`; of a hundred it is 200 MiB.
PATTERN_MEMORY_BYTES_MAX = 2 * 1024 * 1024

# Python's engine takes it for {0,n}, RE2 for plain text: such a pattern would mask nothing any more.
_OPEN_REPEAT = re.compile(r"(?:^|[^\\])(?:\\\\)*\{,\d*\}")
# What Python's engine knows and RE2 does not, by the words in which RE2 refuses it.
_UNKNOWN = {
    "invalid perl operator": "it has no lookahead, lookbehind, atomic group, comment or flag x",
    "bad repetition operator": "it has no possessive repeat",
    "invalid escape sequence": r"it has no backreference, \Z or \u",
    "invalid repetition size": "it repeats at most 1000 times, those within one another multiplied",
}


class PatternError(ValueError):
    """A pattern that cannot mask; the message never repeats it."""


class Match(Protocol):
    """A place that a pattern matches."""

    def span(self) -> tuple[int, int]: ...


class Pattern(Protocol):
    """A compiled pattern, of whichever engine."""

    def finditer(self, text: str, /) -> Iterator[Match]: ...


def compile_pattern(pattern: str) -> Pattern:
    """Compile a regular expression as the masks search it. Raises PatternError; ImportError without RE2."""
    import re2

    if len(pattern) > PATTERN_CHARACTERS_MAX:
        raise PatternError(f"has {len(pattern)} characters, more than {PATTERN_CHARACTERS_MAX}")
    if _OPEN_REPEAT.search(pattern) is not None:
        raise PatternError("has a repeat {,n}, which is plain text to RE2: write {0,n}")
    options = re2.Options()
    options.max_mem = PATTERN_MEMORY_BYTES_MAX
    # It would write the pattern to stderr.
    options.log_errors = False
    # Where a group is in a match nobody asks, and to find out is dearer than the match.
    options.never_capture = True
    try:
        compiled = re2.compile(f"(?m){pattern}", options)
    except UnicodeEncodeError:
        raise PatternError("is not in UTF-8") from None
    except re2.error as error:
        raise PatternError(_told(error)) from None
    if compiled.search("") is not None:
        raise PatternError("matches the empty text, so it would mask everything")
    found: Pattern = compiled
    return found


def _told(error: Exception) -> str:
    """What RE2 says of a pattern, less the part of it that it repeats."""
    reason = error.args[0].decode("utf-8", "replace").partition(":")[0]
    if reason.startswith("pattern too large"):
        return f"needs more than {PATTERN_MEMORY_BYTES_MAX // 1024**2} MiB: repeat less"
    hint = f"; {_UNKNOWN[reason]}" if reason in _UNKNOWN else ""
    return f"is not a regular expression in RE2's syntax: {reason}{hint}"
