"""Tables for a person: as wide as they are in a pipe, and no wider than the window on a terminal.

On a terminal that is too narrow, lists and sentences are wrapped inside their columns, and then whole columns
are left out, those first that are missed least. In a pipe a row is always one line with every column, so that
grep and awk find what they look for.
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
# Below this width a wrapped column has one word a line.
WRAPPED_COLUMNS_MIN = 20


@attrs.frozen
class Table:
    """What is printed: lines of text, and the headings of the columns that found no room."""

    lines: list[str]
    left_out: list[str]


def terminal_columns() -> int | None:
    """How wide the window is; None where standard output is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else None


def laid_out(rows: Sequence[Row], spare: Sequence[str], columns: int | None) -> Table:
    """Lay out rows, the headings first, in so many columns of a terminal.

    `spare` are the headings of what may be left out, in that order.
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
    """How wide each column is: its longest text, or less where that can be wrapped and has to be."""
    cells = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in cells]
    if columns is None or _total(widths) <= columns:
        return widths
    # A name or an id stays whole, to be copied.
    words = [max((len(word) for cell in column for word in cell.split()), default=0) for column in cells]
    spread = [width - max(longest, WRAPPED_COLUMNS_MIN) for width, longest in zip(widths, words, strict=True)]
    while _total(widths) > columns:
        room, _, number = max((spread[n] > 0, widths[n], n) for n in range(len(widths)))
        if not room:
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
