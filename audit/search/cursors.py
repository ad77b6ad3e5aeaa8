"""Cursors: where a search goes on to older events, and where a follower goes on to new ones.

Both are opaque to clients. A position is enough for older events. New events need the last number that was
read in each epoch, since an event may be committed after later ones of other epochs. A trail in a file has
the epoch 0 alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs

# A position has 160 bits. The numbers in it have 63 bits at most, and an epoch 31.
_POSITION = re.compile(r"p([0-9a-f]{1,40})")
_NUMBER = r"[0-9a-f]{1,16}"
_HEADS = rf"(?:\.{_NUMBER}-{_NUMBER})*"
_MARK = re.compile(rf"m({_NUMBER})({_HEADS})(?:~([0-9a-f]{{1,40}})({_HEADS}))?")
_NUMBER_MAX = 2**63 - 1
_EPOCH_MAX = 2**31 - 1
# One for each hub that is open, twice: as many as fit into a header of 1,024 characters.
_HEADS_MAX = 24


class BadCursor(ValueError):
    """A text that is no cursor, or one of another trail."""


@attrs.frozen
class Mark:
    """How far a follower has read: all events up to a number in each epoch."""

    heads: Mapping[int, int]
    """The last number that was read, in each epoch that is open."""
    newest: int = 0
    """The newest epoch. Epochs up to it that are not in `heads` are closed, and read to their ends."""
    at: int | None = None
    """The position up to which the events between `heads` and `target` are read; None if there are none."""
    target: Mapping[int, int] = attrs.Factory(dict)

    @property
    def text(self) -> str:
        """The cursor of a client."""
        rest = "" if self.at is None else f"~{self.at:x}{_written(self.target)}"
        return f"m{self.newest:x}{_written(self.heads)}{rest}"

    @classmethod
    def parse(cls, text: str) -> Mark:
        """Read a client's cursor; raises BadCursor."""
        found = _MARK.fullmatch(text)
        if found is None:
            raise BadCursor("it is not a cursor of the trail's stream")
        newest, heads, at, target = found.groups(default="")
        mark = cls(_read(heads), int(newest, 16), int(at, 16) if at else None, _read(target))
        bounds = (
            max(len(mark.heads), len(mark.target)) <= _HEADS_MAX,
            max([mark.newest, *mark.heads, *mark.target]) <= _EPOCH_MAX,
            max([0, *mark.heads.values(), *mark.target.values()]) <= _NUMBER_MAX,
            mark.at is None or mark.target,
        )
        if not all(bounds):
            raise BadCursor("it is not a cursor of the trail's stream")
        return mark


def position_text(position: int) -> str:
    """The cursor of a client that goes on to the events before a position."""
    return f"p{position:x}"


def parse_position(text: str) -> int:
    """Read a client's cursor; raises BadCursor."""
    found = _POSITION.fullmatch(text)
    if found is None:
        raise BadCursor("it is not a cursor of a search")
    return int(found[1], 16)


def _written(heads: Mapping[int, int]) -> str:
    return "".join(f".{epoch:x}-{n:x}" for epoch, n in sorted(heads.items()))


def _read(text: str) -> dict[int, int]:
    pairs = (pair.split("-") for pair in text.split(".")[1:])
    return {int(epoch, 16): int(n, 16) for epoch, n in pairs}
