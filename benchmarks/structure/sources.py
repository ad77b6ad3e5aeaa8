"""The source files that are measured: found and read, and parsed when that is needed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import attrs

ROOT = Path(__file__).parent.parent.parent
# What an installed Hawse consists of. The sandbox is for the demo and the tests of a checkout.
PRODUCT = ("hawse", "tunnel", "auth", "audit", "proxy")
TESTS = ("tests",)


@attrs.frozen
class Source:
    """One file of Python."""

    path: str
    """Relative to the root, with slashes."""
    text: str = attrs.field(repr=False)

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed file."""
        return ast.parse(self.text, self.path)

    @property
    def package(self) -> str:
        """The top-level package."""
        return self.path.partition("/")[0]

    @property
    def folder(self) -> str:
        """The folder, relative to the root."""
        return self.path.rpartition("/")[0]

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.path.rpartition("/")[2].removesuffix(".py")

    @property
    def module(self) -> str:
        """The dotted name by which it is imported."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def lines(self) -> int:
        """How many lines are not blank."""
        return sum(bool(line.strip()) for line in self.text.splitlines())


def read_sources(root: Path, packages: tuple[str, ...]) -> list[Source]:
    """Every Python file of the packages, sorted by path; hidden folders are left out."""
    return [Source(path, text) for package in packages for path, text in sorted(_texts(root, root / package))]


def _texts(root: Path, folder: Path) -> Iterator[tuple[str, str]]:
    for file in folder.rglob("*.py"):
        path = file.relative_to(root)
        if not any(part.startswith(".") for part in path.parts):
            yield path.as_posix(), file.read_text()
