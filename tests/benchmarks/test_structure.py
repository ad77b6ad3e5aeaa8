"""The measures of `benchmarks.structure` on small trees of files, and the bounds of the code as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest

from benchmarks.structure.imports import cycles, floors, folders, import_graph
from benchmarks.structure.journeys import (
    ANSWER,
    EVENT,
    REQUEST,
    WATCH_EVENT,
    Call,
    Journey,
    Recorder,
    measure_apart,
    usual,
)
from benchmarks.structure.measures import BOUNDS, Layout, Record, Size, read_layout
from benchmarks.structure.shapes import ClassShape, FunctionShape, classes, english, event_places, functions
from benchmarks.structure.sources import ROOT, Source, read_sources

JOURNEYS = {title: {"calls": 100, "functions": 80, "files": 30, "moves": 60} for title in (REQUEST, ANSWER)}


def source(text: str) -> Source:
    return Source("proxy/it.py", text)


def write(root: Path, files: Mapping[str, str]) -> None:
    for path, text in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


# One file over another, a cycle through two folders, and one that only type checkers see.
TREE = {
    "proxy/__init__.py": "",
    "proxy/low.py": "",
    "proxy/high.py": "from proxy import low\nimport proxy.hub.front",
    "proxy/hub/__init__.py": "",
    "proxy/hub/front.py": "def later():\n    from proxy.hub.store import Store",
    "proxy/hub/store.py": "from proxy.low import x",
    "tunnel/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tunnel.b import B",
    "tunnel/b.py": "from tunnel.a import A",
}


def graph_of(root: Path, *, typing: bool = False) -> Mapping[str, frozenset[str]]:
    return import_graph(read_sources(root, ("proxy", "tunnel")), typing=typing)


def test_an_import_is_an_edge_to_the_module_or_else_to_its_package(tmp_path: Path) -> None:
    write(tmp_path, {**TREE, "proxy/other.py": "from proxy import name"})
    graph = graph_of(tmp_path)
    assert graph["proxy/high.py"] == {"proxy/low.py", "proxy/hub/front.py"}
    assert graph["proxy/hub/front.py"] == {"proxy/hub/store.py"}
    assert graph["proxy/other.py"] == {"proxy/__init__.py"}


def test_floors_are_the_longest_path_and_a_cycle_is_one_of_them(tmp_path: Path) -> None:
    write(tmp_path, TREE)
    assert floors(graph_of(tmp_path)) == 4
    write(tmp_path, {"proxy/low.py": "import proxy.hub.front"})
    assert floors(graph_of(tmp_path)) == 2


def test_a_cycle_is_found_and_one_for_type_checkers_alone_is_apart(tmp_path: Path) -> None:
    write(tmp_path, TREE)
    assert cycles(graph_of(tmp_path)) == []
    assert cycles(graph_of(tmp_path, typing=True)) == [("tunnel/a.py", "tunnel/b.py")]
    write(tmp_path, {"proxy/low.py": "import proxy.hub.front"})
    assert cycles(graph_of(tmp_path)) == [("proxy/hub/front.py", "proxy/hub/store.py", "proxy/low.py")]


def test_a_folder_has_its_files_and_the_imports_between_its_children(tmp_path: Path) -> None:
    write(tmp_path, TREE)
    sources = read_sources(tmp_path, ("proxy",))
    proxy, hub = folders(sources, import_graph(sources))
    # high imports low and hub, hub imports low.
    assert attrs.astuple(proxy) == ("proxy", 2, 3, 3, 3, ())
    assert attrs.astuple(hub) == ("proxy/hub", 2, 2, 1, 2, ())


def test_the_folders_of_a_tree_that_import_one_another_are_a_cycle(tmp_path: Path) -> None:
    write(tmp_path, TREE)
    assert read_layout(tmp_path).room_cycles == (("proxy", "proxy/hub"),)


def test_a_property_and_its_setter_are_one_method() -> None:
    text = "class It:\n _a: int\n @property\n def x(self): ...\n @x.setter\n def x(self, v): self._b = v\n"
    assert list(classes(source(text))) == [ClassShape("It", "proxy/it.py", methods=1, fields=2)]


def test_a_function_has_its_lines_and_branches_with_those_within_it() -> None:
    text = (
        "class It:\n def x(self):\n  def y():\n   return 1 if a and b else 2\n"
        "  for i in [j for j in k if j]:\n   pass\n"
    )
    assert list(functions(source(text))) == [
        FunctionShape("It.x", "proxy/it.py", lines=5, branches=3),
        FunctionShape("It.x.y", "proxy/it.py", lines=2, branches=1),
    ]


def test_an_event_of_the_audit_trail_is_told_from_one_of_trio() -> None:
    text = "from audit.record import Event as E\nimport trio\nE()\ntrio.Event()\nEvent()\n"
    assert event_places(source(text)) == ["proxy/it.py:3"]


def test_sentences_are_counted_in_comments_and_docstrings_alone() -> None:
    text = '"""Whoever reads. Nobody\nelse."""\n# Somebody comes\n# on two lines.\nx = "nobody"\n'
    assert attrs.astuple(english([source(text)])) == (9, 3)


def test_a_journey_counts_its_moves_from_file_to_file() -> None:
    calls = tuple(Call(file, name) for file, name in (("a", "f"), ("a", "g"), ("b", "h"), ("a", "f")))
    assert Journey(calls).figures() == {"calls": 4, "functions": 3, "files": 2, "moves": 2}


def test_the_usual_journey_is_the_one_of_most_rounds() -> None:
    long, short = Journey((Call("a", "f"), Call("b", "g"))), Journey((Call("a", "f"),))
    assert usual([long, short, long]) == long


def test_a_journey_without_an_end_is_an_error() -> None:
    with pytest.raises(ValueError, match="did not reach the relay"):
        Recorder().until_relay()
    with pytest.raises(ValueError, match="nothing was sent"):
        Recorder().until_client()


def record(layout: Layout, journeys: Mapping[str, Mapping[str, int]] = JOURNEYS) -> Record:
    return Record.of(layout, journeys)


def test_each_figure_that_grows_is_named_with_its_cause(tmp_path: Path) -> None:
    write(tmp_path, TREE)
    before = record(read_layout(tmp_path))
    methods = "".join(f" def m{number}(self): ...\n" for number in range(22))
    branches = "".join(f" if x == {number}: pass\n" for number in range(61))
    write(
        tmp_path,
        {
            "proxy/low.py": f"import proxy.high\nclass Large:\n{methods}",
            "tunnel/a.py": "import tunnel.b",
            "tunnel/c.py": f"def long(x):\n{branches}",
            **{f"tunnel/more{number}.py": "" for number in range(12)},
        },
    )
    grown = record(read_layout(tmp_path), {**JOURNEYS, ANSWER: {"calls": 101, "moves": 61}}).grown(before)
    told = "\n".join(grown)
    assert [line.partition(":")[0] for line in grown] == [
        "files in import cycles",
        "files in import cycles, TYPE_CHECKING included",
        *(f"methods of a class, {kind}" for kind in ("the most", "how many above 20", "above 20 in all")),
        *(f"lines of a function, {kind}" for kind in ("the most", "how many above 60", "above 60 in all")),
        *(f"branches of a function, {kind}" for kind in ("the most", "how many above 15", "above 15 in all")),
        *(f"files in a folder, {kind}" for kind in ("the most", "how many above 14", "above 14 in all")),
        f"{ANSWER}, calls",
        f"{ANSWER}, moves",
    ]
    for name in (
        "Large 22 (new)",
        "long 62 (new)",
        "long 61 (new)",
        "tunnel 15 (new)",
        "tunnel/a.py tunnel/b.py",
    ):
        assert name in told


def test_a_file_that_moves_changes_no_bound(tmp_path: Path) -> None:
    write(tmp_path, TREE)
    before = record(read_layout(tmp_path))
    (tmp_path / "proxy/hub/store.py").rename(tmp_path / "proxy/hub/rows.py")
    write(tmp_path, {"proxy/hub/front.py": "def later():\n    from proxy.hub.rows import Store"})
    assert record(read_layout(tmp_path)).figures == before.figures


def test_writing_lowers_figures_and_raises_none(tmp_path: Path) -> None:
    before = Record({"a": 1, "b": 5}, {})
    now = Record({"a": 2, "b": 4, "c": 3}, {"b": {"it": 4}})
    now.lowered(before).write(tmp_path / "file")
    assert Record.read(tmp_path / "file") == Record({"a": 1, "b": 4, "c": 3}, {"b": {"it": 4}})


def test_an_offender_of_before_is_named_with_what_it_was() -> None:
    before = Record({"methods of a class, the most": 21}, {"methods of a class": {"It": 21, "Other": 21}})
    size = Size("methods of a class", 20, {"It": 23, "Other": 21})
    now = Record(size.figures(), {size.title: size.offenders})
    assert now.grown(before) == ["methods of a class, the most: 23, recorded 21\n    It 23 (recorded 21)"]


# Three seconds of CPU for the journeys' process, which a busy machine may make half a minute.
@pytest.mark.timeout(150)
def test_the_code_is_within_its_bounds() -> None:
    now = Record.of(read_layout(ROOT), measure_apart())
    recorded = Record.read()
    if grown := now.grown(recorded):
        pytest.fail("\n".join(grown), pytrace=False)
    assert now.figures.keys() == recorded.figures.keys()
    assert list(json.loads(BOUNDS.read_text())) == ["figures", "offenders"]
    assert len(WATCH_EVENT) == 100
    assert {title for title in now.figures if EVENT in title} == {f"{EVENT}, calls", f"{EVENT}, moves"}
