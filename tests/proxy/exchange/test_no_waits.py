"""The engine of an exchange, its ports and the HTTP connection never wait: bytes move by callbacks."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "proxy" / "exchange"
# With what may wait in each: a port opens its connection before its exchange starts.
MODULES: dict[str, set[str]] = {
    "client_port": set(),
    "engine": set(),
    "http_client": set(),
    "http_connection": set(),
    "http_server": set(),
    "http_state": set(),
    "tunnel_port": set(),
    "upstream_port": {"dial"},
}


def waits_in(source: str) -> set[str]:
    """Return the names of the functions that are `async`."""
    return {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.AsyncFunctionDef)}


@pytest.mark.parametrize("module", MODULES)
def test_nothing_on_the_path_of_the_bytes_waits(module: str) -> None:
    assert waits_in((FOLDER / f"{module}.py").read_text()) == MODULES[module]


def test_every_port_is_held_to_it() -> None:
    assert {path.stem for path in FOLDER.glob("*_port.py")} <= MODULES.keys()


def test_a_function_that_waits_is_found() -> None:
    assert waits_in("class Port:\n    async def write(self): ...\n    def room(self): ...\n") == {"write"}
