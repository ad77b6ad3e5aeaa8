"""The program's texts name nothing that exists only in a checkout."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from proxy.cli.group import COMMANDS, build_group
from tests.fakes.cli import groups
from tests.packaging.installed import ROOT

# Folders and pages of the checkout, and an installation from it.
_NOT_INSTALLED = re.compile(
    r"\b(?:docs|deploy|tests|benchmarks|sandbox)/|\b\w+\.md\b|README|CHANGELOG|checkout|pip install '?\."
)


def test_no_help_names_a_file_of_the_checkout() -> None:
    group = build_group()
    paths = [(), *((name,) for name in COMMANDS)]
    for name in ("admin", "audit"):
        for path in groups(name):
            shown = CliRunner().invoke(group, [*path, "--help"]).stdout
            listed = shown.partition("\nCommands:\n")[2]
            paths += [(*path, line.split()[0]) for line in listed.splitlines() if re.match(r"  \S", line)]
    assert ("admin", "policy", "apply") in paths
    for path in paths:
        done = CliRunner().invoke(group, [*path, "--help"])
        assert done.exit_code == 0
        assert _NOT_INSTALLED.findall(done.stdout) == [], path


@pytest.mark.parametrize("package", ["proxy", "tunnel", "auth", "audit", "hawse"])
def test_no_message_names_a_file_of_the_checkout(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        named = [(text, line) for text, line in _texts(path) if _NOT_INSTALLED.search(text)]
        assert named == [], path


def _texts(path: Path) -> list[tuple[str, int]]:
    """The strings of a module except docstrings, with their lines."""
    tree = ast.parse(path.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        (node.value, node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]
