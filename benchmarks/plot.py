"""Bars as SVG, written by hand: a page of bars needs no plotting library."""

from __future__ import annotations

from html import escape
from math import log10

from benchmarks.figures import Found, brief

WIDTH = 760
LABEL_WIDTH = 150
VALUE_WIDTH = 90
BAR_HEIGHT = 16
BAR_GAP = 4
GROUP_GAP = 14
TOP = 44
# Beyond this range the short bars of a linear scale are invisible.
LINEAR_RANGE_MAX = 60.0

# Hawse stands out, labels distinguish the yardsticks.
COLOURS = {"hawse": "#d1495b", "hawse-nowheel": "#e58f9b", "nginx": "#2e4057", "direct": "#9aa5b1"}
OTHER_COLOUR = "#66a182"


def bars(found: Found, workload: str) -> str:
    """One bar a system and variant, of the figure that the workload is about."""
    figure = found.figures(workload)[0]
    groups: dict[int, list[tuple[str, float]]] = {}
    for series in found.of(workload):
        value = series.figure(figure.name)
        if value is not None:
            groups.setdefault(series.variant, []).append((series.system, value))
    scale = Scale([value for group in groups.values() for _, value in group])
    parts: list[str] = []
    y = TOP
    for variant, group in groups.items():
        for system, value in group:
            parts.append(bar(y, f"{variant}  {system}", system, value, scale))
            y += BAR_HEIGHT + BAR_GAP
        y += GROUP_GAP
    note = ", logarithmic" if scale.logarithmic else ""
    title = escape(f"{workload}: {figure.title}{note}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}"'
        ' font-family="sans-serif" font-size="12">\n'
        f'<rect width="{WIDTH}" height="{y}" fill="#ffffff"/>\n'
        f'<text x="10" y="24" font-size="15" font-weight="bold">{title}</text>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


class Scale:
    """From a value to a length: linear from 0, or logarithmic where that would hide the small ones."""

    def __init__(self, values: list[float]) -> None:
        positive = [value for value in values if value > 0] or [1.0]
        self.logarithmic = max(positive) / min(positive) > LINEAR_RANGE_MAX
        self._most = max(positive)
        # Half a decade below the least, so that it has a bar as well.
        self._least = min(positive) / 3

    def share(self, value: float) -> float:
        """Of the full length."""
        if not self.logarithmic:
            return max(0.0, value) / self._most
        if value <= self._least:
            return 0.0
        return log10(value / self._least) / log10(self._most / self._least)


def bar(y: int, label: str, system: str, value: float, scale: Scale) -> str:
    length = scale.share(value) * (WIDTH - LABEL_WIDTH - VALUE_WIDTH)
    colour = COLOURS.get(system, OTHER_COLOUR)
    baseline = y + BAR_HEIGHT - 4
    return (
        f'<text x="{LABEL_WIDTH - 8}" y="{baseline}" text-anchor="end" xml:space="preserve">'
        f"{escape(label)}</text>"
        f'<rect x="{LABEL_WIDTH}" y="{y}" width="{length:.1f}" height="{BAR_HEIGHT}" fill="{colour}"/>'
        f'<text x="{LABEL_WIDTH + length + 6:.1f}" y="{baseline}">{brief(value)}</text>'
    )
