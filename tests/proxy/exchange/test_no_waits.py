"""The bytes of an exchange move by callbacks: the engine, its ports and the HTTP connection never wait."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "proxy"
# A port opens its connection before its exchange starts; a task runs the exchange, and waits for its end.
PORTS: dict[str, set[str]] = {
    "exchange/client_port": set(),
    "exchange/tunnel_port": set(),
    "exchange/upstream_port": {"dial"},
    "hub/calls/direct_port": {"open"},
    "hub/calls/relay_port": set(),
}
# All other modules of exchange/.
MODULES: dict[str, set[str]] = {
    "exchange/__init__": set(),
    "exchange/engine": set(),
    "exchange/groups": set(),
    "exchange/http_client": set(),
    "exchange/http_connection": set(),
    "exchange/http_server": set(),
    "exchange/http_state": set(),
    "exchange/parked_connection": {"carry_on", "park"},
    "exchange/parked_exchange": {"run"},
    "exchange/wire": set(),
    # The tasks of a process.
    "exchange/deadlines": {"run", "_close_due", "aclose"},
    "exchange/inflight_memory": {"run", "_look"},
    "exchange/next_pass": {"run"},
    "exchange/pool": {"acquire", "sweep", "aclose", "_close"},
    # Requests that a process sends or answers by itself, by a task, and the head of every connection's first
    # request.
    "exchange/client": {"send_request", "receive_head", "receive_body", "aclose", "_receive", "_write"},
    "exchange/received": {"receive", "wait_end"},
    "exchange/server": {
        "next_request",
        "_park",
        "_receive_head",
        "_receive_idle",
        "receive_body",
        "send_head",
        "send_body",
        "answer",
        "_until_sendable",
        "_send_continue",
        "_write",
        "wait_disconnect",
        "cut",
        "aclose",
        "_close",
        "_linger",
    },
}


def waits_in(source: str) -> set[str]:
    """Return the names of the functions that are `async`."""
    return {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.AsyncFunctionDef)}


@pytest.mark.parametrize("module", [*PORTS, *MODULES])
def test_no_function_waits_that_moves_bytes(module: str) -> None:
    assert waits_in((FOLDER / f"{module}.py").read_text()) == (PORTS | MODULES)[module]


def test_every_module_is_checked() -> None:
    ports = {path.relative_to(FOLDER).with_suffix("") for path in FOLDER.rglob("*_port.py")}
    assert {str(path) for path in ports} == PORTS.keys()
    modules = {f"exchange/{path.stem}" for path in (FOLDER / "exchange").glob("*.py")}
    assert modules - PORTS.keys() == MODULES.keys()


def test_a_function_that_waits_is_found() -> None:
    assert waits_in("class Port:\n    async def write(self): ...\n    def room(self): ...\n") == {"write"}
