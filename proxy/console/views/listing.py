"""A page of a listing: its rows among all that match, its filters, and the links to its neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

import attrs

from proxy.console.views.given import given

# A hundred rows are read in a few milliseconds, and need no script on a phone.
ROWS = 100
OFFSET_DIGITS_MAX = 9


def filters_of(query: Mapping[str, str], names: Sequence[str]) -> Mapping[str, str]:
    """Read the filters in an address; a missing one is empty."""
    return dict.fromkeys(names, "") | given(query, names)


def offset_of(text: str) -> int:
    """Read the offset in an address; a malformed one is the beginning."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= OFFSET_DIGITS_MAX else 0


@attrs.frozen
class Few:
    """The first of many names, and how many are left out."""

    names: Sequence[str]
    more: int

    @classmethod
    def of(cls, names: Sequence[str], most: int) -> Few:
        """Take the first names; one more is shown in place of "1 more"."""
        taken = names if len(names) <= most + 1 else names[:most]
        return cls(taken, len(names) - len(taken))


@attrs.frozen
class Listing:
    """One page of a listing."""

    path: str
    filters: Mapping[str, str]
    """What the rows were chosen by; empty ones count as absent."""
    offset: int
    rows: int
    total: int

    @property
    def filtered(self) -> bool:
        """Whether it can have left rows out."""
        return any(self.filters.values())

    @property
    def text(self) -> str:
        """`101–200 of 10,000`; nothing if all rows are on the page."""
        if self.rows == self.total:
            return ""
        if not self.rows:
            return f"none from {self.offset + 1:,} on, of {self.total:,}"
        return f"{self.offset + 1:,}–{self.offset + self.rows:,} of {self.total:,}"

    @property
    def before(self) -> str:
        """The address of the page before, or nothing."""
        return self.address(offset=max(0, min(self.offset, self.total) - ROWS)) if self.offset else ""

    @property
    def after(self) -> str:
        """The address of the next page, or nothing."""
        end = self.offset + self.rows
        return self.address(offset=end) if self.rows and end < self.total else ""

    def address(self, offset: int = 0, **changed: str) -> str:
        """Return the address of this listing with other filters, from its beginning by default."""
        given = {name: value for name, value in {**self.filters, **changed}.items() if value}
        if offset:
            given["offset"] = str(offset)
        return f"{self.path}?{urlencode(given)}" if given else self.path
