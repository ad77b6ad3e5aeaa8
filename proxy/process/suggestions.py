"""Suggests names for a mistyped one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice

# Suggestions per error: a longer list would not help.
NEAR_MAX = 3
# Compared names, at up to 50 µs each: a mistyped name blocks the hub for 10 ms at most.
COMPARED_MAX = 200
# A typed prefix of at least this length counts as an incomplete name.
BEGINNING_MIN = 3


def near_names(name: str, names: Iterable[str]) -> list[str]:
    """The nearest names that share the first or the last letter, the best first."""
    # No name is longer, and the cost of the comparison grows with the square of the length.
    typed = name[:63].lower()
    alike = (each for each in names if each[:1] == typed[:1] or each[-1:] == typed[-1:])
    compared = [*islice(alike, COMPARED_MAX)]
    if near := get_close_matches(typed, compared, NEAR_MAX):
        return near
    return [each for each in compared if len(typed) >= BEGINNING_MIN and each.startswith(typed)][:NEAR_MAX]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A question for the end of an error message, with a leading blank; empty if no name is near."""
    near = near_names(name, names)
    return f" (did you mean {' or '.join(near)}?)" if near else ""
