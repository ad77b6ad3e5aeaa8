"""Listings: a filter by text, and a page of what matches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeVar

import msgspec

T = TypeVar("T")

# The rows of one page: more than a screen shows, and some 100 KB.
PAGE_ROWS_MAX = 500
# A name has at most 63 characters, an owner 254.
TEXT_CHARACTERS_MAX = 256


class Listing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The query of a listing. Without a limit, the answer has all rows."""

    q: Annotated[str, msgspec.Meta(max_length=TEXT_CHARACTERS_MAX)] = ""
    """Only rows that contain this text, in any case."""
    offset: Annotated[int, msgspec.Meta(ge=0)] = 0
    limit: Annotated[int, msgspec.Meta(ge=1, le=PAGE_ROWS_MAX)] | None = None

    def contains(self, *texts: str) -> bool:
        """Return whether one of a row's texts contains the text of the query."""
        wanted = self.q.strip().casefold()
        return not wanted or any(wanted in text.casefold() for text in texts)

    def page(self, matching: Sequence[T]) -> Sequence[T]:
        """Return the rows of the page."""
        return matching[self.offset :] if self.limit is None else matching[self.offset :][: self.limit]
