"""The figures for people: today beside what is wanted, each folder, each package, and the worst."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.structure.measures import METHODS_WANTED, Layout, Size, sizes
from benchmarks.structure.shapes import English

WORST = 12
# The wanted calls and moves of the journeys, in their order.
JOURNEYS_WANTED = ((100, 60), (95, 55), (75, 40))
HUB = "proxy/hub"
RIDDLES_WANTED = 0.2


def report(layout: Layout, words: Mapping[str, English], journeys: Mapping[str, Mapping[str, int]]) -> str:
    """Everything, as Markdown that a terminal shows as well."""
    parts = [
        _table(("", "today", "wanted"), _wanted(layout, words, journeys)),
        _table(
            ("package", "files", "folders", "lines", "floors of files", "of folders", "vague pronouns"),
            (
                (p.name, p.files, p.rooms, p.lines, p.floors, p.room_floors, f"{words[p.name].per_1000:.2f}")
                for p in layout.packages
            ),
        ),
        "Vague pronouns: sentences with one, in 1,000 words of comments and docstrings.",
        _table(
            ("folder", "files", "children", "edges", "floors", "in cycles"),
            (
                (f.path, f.files, f.children, f.edges, f.floors, sum(map(len, f.cycles)))
                for f in layout.folders
            ),
        ),
        "Files lie directly in the folder; children are files and folders; edges and floors are theirs.",
        *_cycles(layout),
        *(_worst(size) for size in sizes(layout)),
        "private fields of those classes: "
        + ", ".join(f"{c.name} {c.fields}" for c in layout.classes if c.methods > METHODS_WANTED),
        "Events are constructed in: " + ", ".join(layout.event_places),
    ]
    return "\n\n".join(parts)


def _wanted(
    layout: Layout, words: Mapping[str, English], journeys: Mapping[str, Mapping[str, int]]
) -> Iterable[Sequence[object]]:
    by_path = {folder.path: folder for folder in layout.folders}
    if hub := by_path.get(HUB):
        yield f"{HUB}/: folders, loose files", f"{hub.children - hub.files}, {hub.files}", 9
        yield f"{HUB}/: floors of its children", hub.floors, 9
        yield f"{HUB}/: edges between its children", hub.edges, ""
    if proxy := by_path.get("proxy"):
        yield "loose files in proxy/", proxy.files, 0
    yield "files in import cycles", sum(map(len, layout.cycles)), 0
    yield "the same with TYPE_CHECKING", sum(map(len, layout.typing_cycles)), 0
    yield "folders in import cycles", sum(map(len, layout.room_cycles)), 0
    yield "floors of all files, of all folders", f"{layout.floors}, {layout.room_floors}", ""
    yield "import edges between files", layout.edges, ""
    for size in sizes(layout):
        most, above, excess = size.figures().values()
        yield f"{size.title}: most; above {size.wanted}; excess", f"{most}; {above}; {excess}", size.wanted
    for (title, journey), (calls, moves) in zip(journeys.items(), JOURNEYS_WANTED, strict=False):
        functions, files = journey["functions"], journey["files"]
        yield f"{title}: calls", f"{journey['calls']} of {functions} functions in {files} files", calls
        yield f"{title}: moves", journey["moves"], moves
    yield "places that construct an Event", len(layout.event_places), 1
    everything = English(
        sum(each.words for each in words.values()), sum(each.riddles for each in words.values())
    )
    yield "vague pronouns, in 1,000 words", f"{everything.per_1000:.2f}", RIDDLES_WANTED
    yield "lines of product (reported)", layout.lines, ""
    yield "lines of tests (reported)", layout.test_lines, ""


def _cycles(layout: Layout) -> Iterable[str]:
    for title, found in (
        ("files", layout.cycles),
        ("files, TYPE_CHECKING included", layout.typing_cycles),
        ("folders", layout.room_cycles),
    ):
        for cycle in found:
            yield f"A cycle of {len(cycle)} {title}: {', '.join(cycle)}"


def _worst(size: Size) -> str:
    worst = [f"{name} {count}" for name, count in size.offenders.items()][:WORST]
    return f"{size.title} above {size.wanted}: {', '.join(worst) or 'none'}"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    cells = [head, *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
