"""The operator's patterns of what the trail must not show, checked before a hub runs with them.

Apart from the masks, so that reading a hub's configuration loads nothing of the trail.
"""

from __future__ import annotations

import re


class PatternError(ValueError):
    """A pattern that cannot mask; the message never repeats it."""


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a regular expression as the masks search it; raises PatternError."""
    try:
        compiled = re.compile(pattern, re.MULTILINE)
    except re.error as error:
        raise PatternError(f"is not a regular expression: {error.msg}") from error
    if compiled.search("") is not None:
        raise PatternError("matches the empty text, so it would mask everything")
    return compiled
