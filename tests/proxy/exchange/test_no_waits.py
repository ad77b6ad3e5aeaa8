"""The bytes of an exchange move by callbacks: the engine, its ports and the HTTP connection never wait."""

from __future__ import annotations

import ast
from pathlib import Path

FOLDER = Path(__file__).parents[3] / "proxy"
# A port opens its connection before its exchange starts.
PORTS: dict[str, set[str]] = {
    "AnswerPort": set(),
    "ClientPort": set(),
    "DirectPort": {"open"},
    "PeerPort": set(),
    "Port": set(),
    "RelayPort": set(),
    "SplicedPort": set(),
    "TunnelPort": set(),
    "UpstreamPort": {"dial"},
}
# All modules of exchange/. A task runs an exchange, and waits for its end.
MODULES: dict[str, set[str]] = {
    "__init__": set(),
    "client_port": set(),
    "engine": set(),
    "groups": set(),
    "http_client": set(),
    "http_connection": set(),
    "http_server": set(),
    "http_state": set(),
    "kept_body": set(),
    "parked_connection": {"carry_on", "park"},
    "parked_exchange": {"run"},
    "tunnel_port": set(),
    "upstream_port": {"dial"},
    "wire": set(),
    # The tasks of a process.
    "deadlines": {"run", "_close_due", "aclose"},
    "inflight_memory": {"run", "_look"},
    "next_pass": {"run"},
    "pool": {"acquire", "sweep", "keep_spare", "aclose", "_close"},
    # Requests that a process sends or answers by itself, by a task, and the head of every connection's first
    # request.
    "client": {"send_request", "receive_head", "receive_body", "aclose", "_receive", "_write"},
    "received": {"receive", "wait_end"},
    "server": {
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


def waits_in(tree: ast.AST) -> set[str]:
    """Return the names of the functions that are `async`."""
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef)}


def ports_in(source: str) -> dict[str, set[str]]:
    """Return the classes of ports, with the names of their methods that are `async`."""
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    return {node.name: waits_in(node) for node in classes if node.name.endswith("Port")}


def test_no_function_waits_that_moves_bytes() -> None:
    sources = {path.stem: path.read_text() for path in (FOLDER / "exchange").glob("*.py")}
    assert {module: waits_in(ast.parse(source)) for module, source in sources.items()} == MODULES


def test_no_port_waits() -> None:
    ports: dict[str, set[str]] = {}
    for path in FOLDER.rglob("*.py"):
        ports |= ports_in(path.read_text())
    assert ports == PORTS


def test_a_function_that_waits_is_found() -> None:
    source = "class APort:\n    async def write(self): ...\n    def room(self): ...\n"
    assert ports_in(source) == {"APort": {"write"}}
    assert waits_in(ast.parse(source)) == {"write"}
