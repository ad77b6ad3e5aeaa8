"""Numbers with their nouns, for messages."""

from __future__ import annotations


def counted(number: int, one: str, many: str = "") -> str:
    """`1 call` and `2 calls`; `many` is for nouns whose plural is not `one` with an s."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"
