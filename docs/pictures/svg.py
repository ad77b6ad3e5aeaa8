"""SVG: the two palettes, the frame of a picture, and its shapes.

A picture is drawn once. Its colours are classes, whose values are the only difference of the light and the
dark file. The text stays text, in fonts of the reader's system.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from xml.sax.saxutils import escape, quoteattr

import attrs

SANS = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
MONO = 'ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "Liberation Mono", monospace'

# Those of the console (proxy/console/static/console.css): light, dark.
_COLOURS = {
    "ground": ("#f6f7f7", "#0f1315"),
    "surface": ("#ffffff", "#181e21"),
    "edge": ("#c9d0d0", "#3b464b"),
    "text": ("#182024", "#e4e9ea"),
    "quiet": ("#566268", "#9aa6ab"),
    "accent": ("#0f6e67", "#5fd0c4"),
    "soft": ("#e2f0ee", "#14302e"),
    "ok": ("#17683a", "#74d196"),
    "bad": ("#ad2117", "#ff9d93"),
}
PALETTES: Mapping[str, Mapping[str, str]] = {
    scheme: {name: pair[index] for name, pair in _COLOURS.items()}
    for index, scheme in enumerate(("light", "dark"))
}


@attrs.frozen
class Picture:
    """A drawing without its colours."""

    name: str
    # For screen readers: what it is, and what it shows.
    title: str
    description: str
    width: int
    height: int
    # The style sheet, with `$name` for each colour.
    style: str
    shapes: tuple[str, ...]

    def svg(self, scheme: str) -> str:
        """The file in that palette."""
        style = self.style
        for name, colour in PALETTES[scheme].items():
            style = style.replace(f"${name};", f"{colour};")
        return "\n".join(
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
                f'width="{self.width}" height="{self.height}" role="img" aria-labelledby="title desc">',
                f'<title id="title">{escape(self.title)}</title>',
                f'<desc id="desc">{escape(self.description)}</desc>',
                f"<style>\n{style.strip()}\n</style>",
                *self.shapes,
                "</svg>\n",
            )
        )

    def files(self) -> dict[str, str]:
        """The content of each file, by its name."""
        return {f"{self.name}-{scheme}.svg": self.svg(scheme) for scheme in PALETTES}


def rect(x: float, y: float, width: float, height: float, kind: str, radius: float = 8) -> str:
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}"/>'


def text(x: float, y: float, content: str, kind: str = "") -> str:
    """A line of text; y is its baseline."""
    return f'<text{_class(kind)} x="{x:g}" y="{y:g}">{escape(content)}</text>'


def spans(x: float, y: float, runs: Iterable[tuple[str, str]]) -> str:
    """A line of text whose parts have a class each."""
    inner = " ".join(f"<tspan{_class(kind)}>{escape(content)}</tspan>" for kind, content in runs)
    return f'<text x="{x:g}" y="{y:g}">{inner}</text>'


def terminal_line(x: float, y: float, runs: Iterable[tuple[str, str]], length: float) -> str:
    """A line of a terminal: it is `length` long in any font, and keeps its spaces."""
    inner = "".join(f"<tspan{_class(kind)}>{escape(content)}</tspan>" for kind, content in runs)
    # Not of an empty line: a length of 0 would be an error there.
    fixed = f' textLength="{length:g}" lengthAdjust="spacingAndGlyphs"' if length else ""
    return f'<text class="line" x="{x:g}" y="{y:g}" xml:space="preserve"{fixed}>{inner}</text>'


def path(points: str, kind: str) -> str:
    return f"<path class={quoteattr(kind)} d={quoteattr(points)}/>"


def arrow(start: tuple[float, float], end: tuple[float, float], kind: str) -> str:
    """A horizontal or vertical line with a head at its end; `kind` is the class of the line."""
    (x, y), (right, down) = start, end
    # The unit vector along the line.
    length = abs(right - x) + abs(down - y)
    along, across = (right - x) / length, (down - y) / length
    back_x, back_y = right - 8 * along, down - 8 * across
    head = (
        f"M{right:g} {down:g}"
        f"L{back_x - 4.5 * across:g} {back_y + 4.5 * along:g}"
        f"L{back_x + 4.5 * across:g} {back_y - 4.5 * along:g}Z"
    )
    return path(f"M{x:g} {y:g}L{back_x:g} {back_y:g}", kind) + path(head, f"{kind}-head")


def _class(kind: str) -> str:
    return f" class={quoteattr(kind)}" if kind else ""
