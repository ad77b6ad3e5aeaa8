"""Tests that a page names as `FILE::NAME`, by their folder under `tests/`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
_NAMED = re.compile(r"`([a-z_/0-9]+)::([a-z_0-9]+)`")


def missing_tests(page: str) -> list[str]:
    """Those that are not there; raises AssertionError for a page that names none."""
    named = _NAMED.findall(page)
    assert named
    return [f"{file}::{name}" for file, name in named if name not in _tests_of(TESTS / f"{file}.py")]


def _tests_of(file: Path) -> set[str]:
    if not file.exists():
        return set()
    return {
        node.name
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
