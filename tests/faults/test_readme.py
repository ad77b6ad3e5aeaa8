"""The table of failures names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = Path(__file__).with_name("README.md").read_text()
# Of several hubs on one store, which there are not yet.
LATER = {36, 37, 49}


def names(file: Path) -> set[str]:
    return {
        node.name
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_test_that_it_names_is_there() -> None:
    named = re.findall(r"`([a-z_/0-9]+)::([a-z_0-9]+)`", PAGE)
    assert named
    missing = [f"{file}::{name}" for file, name in named if name not in names(TESTS / f"{file}.py")]
    assert missing == []


def test_every_failure_is_named() -> None:
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)]
    assert numbers == [number for number in range(1, 51) if number not in LATER]
