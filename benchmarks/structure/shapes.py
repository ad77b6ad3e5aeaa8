"""What stands in the files: classes and functions by size, places that construct events, and the English."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator

import attrs

from benchmarks.structure.sources import Source

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_BRANCHES = ast.If | ast.IfExp | ast.For | ast.AsyncFor | ast.While | ast.ExceptHandler | ast.match_case
# Persons that stand for things.
_RIDDLE = re.compile(r"\b(?:whoever|nobody|somebody)\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@attrs.frozen
class ClassShape:
    """A class."""

    name: str
    path: str
    methods: int
    fields: int
    """Private ones."""


@attrs.frozen
class FunctionShape:
    """A function or a method, with what is nested in it."""

    name: str
    path: str
    lines: int
    branches: int


@attrs.frozen
class English:
    """Comments and docstrings: their words, and their sentences that name a person for a thing."""

    words: int
    riddles: int

    @property
    def per_1000(self) -> float:
        return self.riddles * 1000 / self.words if self.words else 0.0


def classes(source: Source) -> Iterator[ClassShape]:
    """The classes of a file; a property and its setter are one method."""
    for node, prefix in _definitions(source.tree, ""):
        if isinstance(node, ast.ClassDef):
            methods = {each.name for each in node.body if isinstance(each, _Function)}
            yield ClassShape(f"{prefix}{node.name}", source.path, len(methods), len(_private_fields(node)))


def functions(source: Source) -> Iterator[FunctionShape]:
    """The functions of a file, also nested ones."""
    for node, prefix in _definitions(source.tree, ""):
        if isinstance(node, _Function):
            assert node.end_lineno is not None
            yield FunctionShape(
                f"{prefix}{node.name}", source.path, node.end_lineno - node.lineno + 1, _branches(node)
            )


def _definitions(node: ast.AST, prefix: str) -> Iterator[tuple[_Function | ast.ClassDef, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Function | ast.ClassDef):
            yield child, prefix
            yield from _definitions(child, f"{prefix}{child.name}.")
        else:
            yield from _definitions(child, prefix)


def _private_fields(node: ast.ClassDef) -> set[str]:
    found = set()
    for each in ast.walk(node):
        match each:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                found.add(name)
    for each in node.body:
        match each:
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                found.add(name)
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


def _branches(function: _Function) -> int:
    """The conditions, loops, handlers and cases; `a and b` is one condition."""
    return sum(
        len(node.ifs) if isinstance(node, ast.comprehension) else isinstance(node, _BRANCHES)
        for node in ast.walk(function)
    )


def event_places(source: Source) -> list[str]:
    """Where the audit trail's Event is constructed, as `path:line`."""
    names = {
        alias.asname or alias.name
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "audit"
        for alias in node.names
        if alias.name == "Event"
    }
    if any(isinstance(node, ast.ClassDef) and node.name == "Event" for node in source.tree.body):
        names.add("Event")
    return [
        f"{source.path}:{node.lineno}"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names
    ]


def english(sources: Iterable[Source]) -> English:
    """The measure of all comments and docstrings of the files."""
    words = riddles = 0
    for source in sources:
        for text in (*_docstrings(source.tree), *_comments(source.text)):
            words += len(text.split())
            riddles += sum(_RIDDLE.search(sentence) is not None for sentence in _SENTENCE_END.split(text))
    return English(words, riddles)


def _docstrings(tree: ast.Module) -> Iterator[str]:
    """Those of attributes too: every string that is a statement."""
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield text


def _comments(text: str) -> Iterator[str]:
    """Each block of comments that stand on lines right after one another, as one text."""
    block: list[str] = []
    last = -1
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            line = token.start[0]
            if line != last + 1 and block:
                yield " ".join(block)
                block = []
            block.append(token.string.lstrip("#").strip())
            last = line
    if block:
        yield " ".join(block)
