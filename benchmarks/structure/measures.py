"""All figures of the layout, taken together, and the bounds that they are held to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs

from benchmarks.structure.imports import Folder, Graph, cycles, floors, folders, import_graph, merged, within
from benchmarks.structure.shapes import (
    ClassShape,
    English,
    FunctionShape,
    classes,
    english,
    event_places,
    functions,
)
from benchmarks.structure.sources import PRODUCT, TESTS, Source, read_sources

BOUNDS = Path(__file__).parent.with_name("structure.json")
METHODS_WANTED, LINES_WANTED, BRANCHES_WANTED, FILES_WANTED = 20, 60, 15, 14
_MIGRATIONS = "migrations/versions"


@attrs.frozen
class Package:
    """A top-level package as a whole."""

    name: str
    files: int
    rooms: int
    """Folders with files in them."""
    lines: int
    """Not blank."""
    floors: int
    """Of the files, within the package."""
    room_floors: int


@attrs.frozen
class Layout:
    """What can be read from the sources alone."""

    packages: tuple[Package, ...]
    folders: tuple[Folder, ...]
    cycles: tuple[tuple[str, ...], ...]
    """Of files, by imports that run."""
    typing_cycles: tuple[tuple[str, ...], ...]
    """Of files, with the imports under TYPE_CHECKING."""
    room_cycles: tuple[tuple[str, ...], ...]
    edges: int
    floors: int
    room_floors: int
    classes: tuple[ClassShape, ...]
    functions: tuple[FunctionShape, ...]
    event_places: tuple[str, ...]
    lines: int
    test_lines: int


def read_layout(root: Path) -> Layout:
    """Measure the packages below a root; those that are not there count as empty."""
    sources = read_sources(root, PRODUCT)
    graph = import_graph(sources)
    rooms = merged(graph, folder_of)
    return Layout(
        packages=tuple(_package(name, sources, graph) for name in PRODUCT),
        folders=tuple(folders(sources, graph)),
        cycles=tuple(cycles(graph)),
        typing_cycles=tuple(cycles(import_graph(sources, typing=True))),
        room_cycles=tuple(cycles(rooms)),
        edges=sum(map(len, graph.values())),
        floors=floors(graph),
        room_floors=floors(rooms),
        classes=tuple(shape for source in sources for shape in classes(source)),
        # A migration is a list of statements that is written once.
        functions=tuple(
            shape for source in sources if _MIGRATIONS not in source.path for shape in functions(source)
        ),
        event_places=tuple(place for source in sources for place in event_places(source)),
        lines=sum(source.lines for source in sources),
        test_lines=sum(source.lines for source in read_sources(root, TESTS)),
    )


def folder_of(path: str) -> str:
    return path.rpartition("/")[0]


def _package(name: str, sources: Iterable[Source], graph: Graph) -> Package:
    inside = [source for source in sources if source.package == name]
    own = within(graph, (source.path for source in inside))
    return Package(
        name=name,
        files=len(inside),
        rooms=len({source.folder for source in inside}),
        lines=sum(source.lines for source in inside),
        floors=floors(own),
        room_floors=floors(merged(own, folder_of)),
    )


def read_english(root: Path) -> dict[str, English]:
    """The measure of each package's comments and docstrings."""
    return {name: english(read_sources(root, (name,))) for name in PRODUCT}


@attrs.frozen
class Size:
    """A size with a wanted maximum, for many things: the methods of each class, say."""

    title: str
    wanted: int
    sizes: Mapping[str, int]
    """By names that a move to another file does not change, where there are such."""

    @property
    def offenders(self) -> dict[str, int]:
        """Those above what is wanted, the worst first."""
        above = [(name, size) for name, size in self.sizes.items() if size > self.wanted]
        return dict(sorted(above, key=lambda item: (-item[1], item[0])))

    def figures(self) -> dict[str, int]:
        """The largest, how many are above what is wanted, and by how much in all."""
        above = self.offenders.values()
        return {
            f"{self.title}, the most": max(self.sizes.values(), default=0),
            f"{self.title}, how many above {self.wanted}": len(above),
            f"{self.title}, above {self.wanted} in all": sum(above) - self.wanted * len(above),
        }


def sizes(layout: Layout) -> list[Size]:
    """The sizes that have a wanted maximum."""
    files = {folder.path: folder.files for folder in layout.folders if not folder.path.endswith(_MIGRATIONS)}
    return [
        Size(
            "methods of a class",
            METHODS_WANTED,
            largest((each.name, each.methods) for each in layout.classes),
        ),
        Size(
            "lines of a function", LINES_WANTED, largest((each.name, each.lines) for each in layout.functions)
        ),
        Size(
            "branches of a function",
            BRANCHES_WANTED,
            largest((each.name, each.branches) for each in layout.functions),
        ),
        Size("files in a folder", FILES_WANTED, files),
    ]


def largest(named: Iterable[tuple[str, int]]) -> dict[str, int]:
    """The largest size of each name, since a name may be there twice."""
    found: dict[str, int] = {}
    for name, size in named:
        found[name] = max(size, found.get(name, 0))
    return found


@attrs.frozen
class Record:
    """The figures that may not grow, and what they consist of."""

    figures: dict[str, int]
    offenders: dict[str, dict[str, int]]
    """By title: for messages alone."""

    @classmethod
    def of(cls, layout: Layout, journeys: Mapping[str, Mapping[str, int]]) -> Record:
        """What a run has measured."""
        parts = {
            "files in import cycles": layout.cycles,
            "files in import cycles, TYPE_CHECKING included": layout.typing_cycles,
            "folders in import cycles": layout.room_cycles,
        }
        figures = {title: sum(map(len, found)) for title, found in parts.items()}
        offenders = {
            title: {" ".join(cycle): len(cycle) for cycle in found} for title, found in parts.items()
        }
        figures["import floors of a folder, the most"] = max(
            (folder.floors for folder in layout.folders), default=0
        )
        for size in sizes(layout):
            figures |= size.figures()
            offenders[size.title] = size.offenders
        for title, journey in journeys.items():
            figures |= {f"{title}, {kind}": journey[kind] for kind in ("calls", "moves")}
        return cls(figures, offenders)

    @classmethod
    def read(cls, file: Path = BOUNDS) -> Record:
        return cls(**json.loads(file.read_text()))

    def write(self, file: Path = BOUNDS) -> None:
        file.write_text(json.dumps(attrs.asdict(self), indent=1) + "\n")

    def grown(self, before: Record) -> list[str]:
        """What is more than it was, one line a figure; a figure that was not recorded is not bounded."""
        return [
            f"{title}: {now}, recorded {before.figures[title]}{self._reason(title, before)}"
            for title, now in self.figures.items()
            if now > before.figures.get(title, now)
        ]

    def _reason(self, title: str, before: Record) -> str:
        """The things behind a figure that are new or have grown."""
        kind = title if title in self.offenders else title.rpartition(", ")[0]
        if kind not in self.offenders:
            return ""
        known = before.offenders.get(kind, {})
        changed = [
            f"{name} {size} ({f'recorded {known[name]}' if name in known else 'new'})"
            for name, size in self.offenders[kind].items()
            if size > known.get(name, 0)
        ]
        return "".join(f"\n    {each}" for each in changed)

    def lowered(self, before: Record) -> Record:
        """This one with what is recorded already where it is lower there."""
        figures = {title: min(now, before.figures.get(title, now)) for title, now in self.figures.items()}
        return attrs.evolve(self, figures=figures)
