"""The names that a mistyped one may mean."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice

# How many are named: a longer list would be no help to choose.
NEAR_MAX = 3
# Names that are compared, at up to 50 µs each: an operator's slip holds up the hub for 10 ms at most.
COMPARED_MAX = 200
# The beginning of a name is one that was not written to its end.
BEGINNING_MIN = 3


def near_names(name: str, names: Iterable[str]) -> list[str]:
    """The nearest of those that begin or end with the same letter, the best first."""
    # No name has more characters, and the comparison grows with their square.
    typed = name[:63].lower()
    alike = (each for each in names if each[:1] == typed[:1] or each[-1:] == typed[-1:])
    compared = [*islice(alike, COMPARED_MAX)]
    if near := get_close_matches(typed, compared, NEAR_MAX):
        return near
    return [each for each in compared if len(typed) >= BEGINNING_MIN and each.startswith(typed)][:NEAR_MAX]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The question that an error asks at its end, with a blank before it; empty where no name is near."""
    near = near_names(name, names)
    return f" (did you mean {' or '.join(near)}?)" if near else ""
