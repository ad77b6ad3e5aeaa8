"""The import graph: which file imports which, its cycles, and on how many floors it stands."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import attrs

from benchmarks.structure.sources import Source

Graph = Mapping[str, frozenset[str]]
"""What each node imports. Every node is a key."""


def import_graph(sources: Iterable[Source], *, typing: bool = False) -> Graph:
    """The imports between the files, by path; imports within functions count too.

    With `typing`, imports under TYPE_CHECKING are a part of it. They never run, so they make no cycle that an
    importing program meets.
    """
    files = list(sources)
    by_module = {source.module: source.path for source in files}
    return {
        source.path: frozenset(
            by_module[name] for name in _imported(source.tree, by_module, typing) if name in by_module
        )
        - {source.path}
        for source in files
    }


def _imported(tree: ast.Module, known: Mapping[str, str], typing: bool) -> Iterable[str]:
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names):
                for alias in names:
                    # `from package import module` imports the module, any other name its package.
                    whole = f"{module}.{alias.name}"
                    yield whole if whole in known else module
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")) if (
                not typing
            ):
                pending += node.orelse
            case _:
                pending += ast.iter_child_nodes(node)


def merged(graph: Graph, group: Callable[[str], str]) -> Graph:
    """The graph of groups of nodes; edges within a group are left out."""
    found: dict[str, set[str]] = {}
    for node, targets in graph.items():
        edges = found.setdefault(group(node), set())
        edges.update(map(group, targets))
    return {node: frozenset(targets - {node}) for node, targets in found.items()}


def within(graph: Graph, nodes: Iterable[str]) -> Graph:
    """The part of the graph that lies between these nodes."""
    kept = frozenset(nodes)
    return {node: targets & kept for node, targets in graph.items() if node in kept}


def components(graph: Graph) -> list[tuple[str, ...]]:
    """The strongly connected components (Tarjan), each after those that it imports; without recursion."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    found: list[tuple[str, ...]] = []
    for root in sorted(graph):
        if root in order:
            continue
        work = [(root, iter(sorted(graph[root])))]
        order[root] = low[root] = len(order)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, targets = work[-1]
            for target in targets:
                if target not in order:
                    order[target] = low[target] = len(order)
                    stack.append(target)
                    on_stack.add(target)
                    work.append((target, iter(sorted(graph[target]))))
                    break
                if target in on_stack:
                    low[node] = min(low[node], order[target])
            else:
                work.pop()
                if work:
                    above = work[-1][0]
                    low[above] = min(low[above], low[node])
                if low[node] == order[node]:
                    at = stack.index(node)
                    found.append(tuple(sorted(stack[at:])))
                    on_stack.difference_update(stack[at:])
                    del stack[at:]
    return found


def cycles(graph: Graph) -> list[tuple[str, ...]]:
    """The components of more than one node."""
    return [component for component in components(graph) if len(component) > 1]


def floors(graph: Graph) -> int:
    """How many nodes the longest path has once each cycle is one node; 0 without nodes."""
    height: dict[str, int] = defaultdict(int)
    for component in components(graph):
        beneath = max(
            (height[target] for node in component for target in graph[node] if target not in component),
            default=0,
        )
        for node in component:
            height[node] = beneath + 1
    return max(height.values(), default=0)


@attrs.frozen
class Folder:
    """A folder as a newcomer sees it: its files, and its children (files and folders) with their imports."""

    path: str
    files: int
    """Directly in it, without `__init__.py`."""
    children: int
    """Files and folders directly in it, without `__init__.py`."""
    edges: int
    """Imports between its children: one for each pair."""
    floors: int
    cycles: tuple[tuple[str, ...], ...]
    """Of its children."""


def folders(sources: Iterable[Source], graph: Graph) -> list[Folder]:
    """Each folder that holds files, with the graph of its children."""
    files = list(sources)
    paths = sorted({parent for source in files for parent in _parents(source.folder)})
    return [_folder(path, files, graph) for path in paths]


def _parents(folder: str) -> Iterable[str]:
    parts = folder.split("/")
    return ("/".join(parts[:end]) for end in range(1, len(parts) + 1))


def _folder(path: str, sources: list[Source], graph: Graph) -> Folder:
    inside = [source for source in sources if source.path.startswith(f"{path}/")]

    def child(node: str) -> str:
        return node.removeprefix(f"{path}/").partition("/")[0]

    children = merged(within(graph, (source.path for source in inside)), child)
    names = children.keys() - {"__init__.py"}
    return Folder(
        path=path,
        files=sum(source.folder == path and source.name != "__init__" for source in inside),
        children=len(names),
        edges=sum(map(len, children.values())),
        floors=floors(children),
        cycles=tuple(cycles(children)),
    )
