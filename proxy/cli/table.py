"""Tables for people: full width in a pipe, and never wider than a terminal's window.

On a narrow terminal, lists and sentences are wrapped within their columns. If that is not enough, whole
columns are left out, the least needed first. In a pipe a row is always one line with all columns, for grep
and awk.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from itertools import zip_longest

import attrs

Row = Sequence[str]

GAP = "  "
# Narrower wrapped columns would have one word a line.
WRAPPED_COLUMNS_MIN = 20


@attrs.frozen
class Table:
    """The lines to print, and the headings of the columns that did not fit."""

    lines: list[str]
    left_out: list[str]


def terminal_columns() -> int | None:
    """Return the window's width; None if standard output is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else None


def laid_out(rows: Sequence[Row], spare: Sequence[str], columns: int | None) -> Table:
    """Lay out rows, headings first, within a width in characters.

    `spare` are the headings of columns that may be left out, in that order.
    """
    left_out: list[str] = []
    widths = _widths(rows, columns)
    for heading in spare:
        if columns is None or _total(widths) <= columns:
            break
        number = list(rows[0]).index(heading)
        rows = [[*row[:number], *row[number + 1 :]] for row in rows]
        left_out.append(heading)
        widths = _widths(rows, columns)
    return Table([line for row in rows for line in _lines(row, widths)], left_out)


def _widths(rows: Sequence[Row], columns: int | None) -> list[int]:
    """Return the width of each column: its longest text, or less where it must and can be wrapped."""
    cells = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in cells]
    if columns is None or _total(widths) <= columns:
        return widths
    # Names and ids are not broken, so that they can be copied.
    words = [max((len(word) for cell in column for word in cell.split()), default=0) for column in cells]
    spread = [width - max(longest, WRAPPED_COLUMNS_MIN) for width, longest in zip(widths, words, strict=True)]
    while _total(widths) > columns:
        wrappable, _, number = max((spread[n] > 0, widths[n], n) for n in range(len(widths)))
        if not wrappable:
            break
        widths[number] -= 1
        spread[number] -= 1
    return widths


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _lines(row: Row, widths: Sequence[int]) -> list[str]:
    wrapped = [_wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
    return [
        GAP.join(text.ljust(width) for text, width in zip(parts, widths, strict=True)).rstrip()
        for parts in zip_longest(*wrapped, fillvalue="")
    ]


def _wrapped(cell: str, width: int) -> list[str]:
    if len(cell) <= width:
        return [cell]
    return textwrap.wrap(cell, width, break_long_words=False, break_on_hyphens=False)
